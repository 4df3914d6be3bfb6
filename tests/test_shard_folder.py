"""Tests of folders with foreign files, of damaged unfinished runs, and of unreadable sources and shards."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import DataError, load_manifest, open_loader
from pipelines.files import temporary
from pipelines.sharding import verify
from pipelines.sharding.folder import claim, fingerprint, finish
from pipelines.sharding.plan import plan
from pipelines.sharding.sources import Source, find_images
from pipelines.sharding.sources.tars import members
from pipelines.sharding.writer import ShardTask, write_shard
from pipelines.shards.manifest import ImageFormat
from pipelines.shards.records import Records, SampleError
from pipelines.turbo.native import has_native
from tests.conftest import shard
from tests.test_shard_imagenet import edit_manifest
from tools.shard_imagenet import Options

TOOL = "tools/shard_imagenet.py"
SMALL = {"size": 64, "shard_mb": 0.02, "workers": 1, "max_bad": 1.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 24 train and 4 val images of two classes."""
    source = tmp_path_factory.mktemp("small") / "images"
    chance = np.random.default_rng(0)
    for number in range(28):
        path = source / ("train" if number < 24 else "val") / f"c{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (8, 10, 3), np.uint8)).resize((80, 64)).save(path)
    return source


@pytest.fixture(scope="module")
def whole(images: Path) -> dict[str, bytes]:
    return contents(shard(images, images.parent / "whole", **SMALL))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def planned(images: Path, out: Path) -> tuple[Options, Source, list[ShardTask]]:
    options = Options(images, out, **SMALL)
    source = find_images(images, options.splits, options.seed)
    image = ImageFormat("jpeg", "square", options.size, options.quality, restarts=has_native())
    return options, source, plan(source, out, image, shard_mb=options.shard_mb)


@pytest.fixture
def unfinished(images: Path, tmp_path: Path) -> Path:
    """Return the folder of a run that was stopped after all its shards were written."""
    _, _, tasks = planned(images, tmp_path / "out")
    with claim(tmp_path / "out", fingerprint(tasks, 0)):
        for task in tasks:
            write_shard(task)
    return tmp_path / "out"


def everything(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    "names",
    [
        [".work/thesis.txt"],
        [".work/thesis.txt", "draft.tmp"],
        [".work/plan.json"],
        [".work/lock", ".work/plan.json"],
        [".work/lock", ".work/plan.json", "draft.tmp"],
        [".work/lock", "train-000000.tar"],
    ],
)
def test_a_folder_without_a_plan_of_ours_is_refused_untouched(images: Path, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('{"title": "mine"}' if name.endswith("json") else "mine")
    before = everything(tmp_path / "out")
    with pytest.raises(DataError, match="choose a"):
        shard(images, tmp_path / "out", **SMALL)
    assert everything(tmp_path / "out") == before


def test_finishing_deletes_only_what_sharding_wrote(
    images: Path, unfinished: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [temporary(unfinished / "train-000000.tar"), temporary(unfinished / ".work" / "train-000000.json")]
    mine = [unfinished / name for name in (".work/thesis.txt", "draft.tmp", "x-000001.tar", ".work/more/a", "a.0.tmp")]
    for path in (*ours, *mine):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    shard(images, unfinished, **SMALL)
    assert all(path.read_text() == "mine" for path in mine) and not any(path.exists() for path in ours)
    assert {name: data for name, data in contents(unfinished).items() if name in whole} == whole
    assert sorted(path.name for path in (unfinished / ".work").iterdir()) == ["more", "thesis.txt"]
    assert ".work holds files of other origin and is kept: more, thesis.txt" in capsys.readouterr().out


def test_repair_deletes_only_what_it_wrote(images: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = shutil.copytree(images.parent / "whole", tmp_path / "out")
    (out / "train-000000.tar").write_bytes(b"")
    (out / ".repair").mkdir()
    (out / ".repair" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"\.repair holds other things"):
        shard(images, out, repair=True, **SMALL)
    assert (out / ".repair" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(out / ".repair")
    with pytest.raises(DataError, match="nothing was changed"):
        shard(images, out, repair=True, seed=1, **SMALL)
    shard(images, out, repair=True, **SMALL)
    assert contents(out) == whole and not (out / ".repair").exists()


@pytest.mark.parametrize("name", [".work", ".work/lock", ".work/plan.json", ".work/train-000000.json", "mean.npy"])
def test_symbolic_links_are_refused_and_what_they_lead_to_stays(images: Path, unfinished: Path, name: str) -> None:
    path, elsewhere = unfinished / name, unfinished.parent / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text("mine")
    path.symlink_to(elsewhere)
    before = everything(unfinished.parent)
    with pytest.raises(DataError, match=r"symbolic link|holds other things"):
        shard(images, unfinished, **SMALL)
    assert everything(unfinished.parent) == before and path.is_symlink()


@pytest.mark.parametrize("length", [0, 30])
@pytest.mark.parametrize(
    "name", [".work/train-000001.json", ".work/train-000001.npz", "train-000001.tar", "val-000000.idx"]
)
def test_a_shard_that_is_not_as_recorded_is_written_again(
    images: Path, unfinished: Path, whole: dict[str, bytes], name: str, length: int
) -> None:
    os.truncate(unfinished / name, length)
    shard(images, unfinished, **SMALL)
    assert contents(unfinished) == whole


def test_a_missing_shard_is_named_at_the_end(images: Path, unfinished: Path) -> None:
    """Check with a shard that vanishes while the others are written."""
    _, source, tasks = planned(images, unfinished)
    tasks[1].tar_path.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is not as it was written: run the same command again"):
        finish(unfinished, 0, source, tasks)
    assert not (unfinished / "manifest.json").exists()


@pytest.mark.parametrize("length", [0, 30])
def test_a_plan_that_is_cut_is_taken_anew_or_refused(
    images: Path, unfinished: Path, whole: dict[str, bytes], length: int
) -> None:
    os.truncate(unfinished / ".work/plan.json", length)
    with pytest.raises(DataError, match=r"plan\.json is missing or damaged"):
        shard(images, unfinished, **SMALL)
    for path in (*unfinished.glob("*.*"), *unfinished.glob(".work/*-*")):
        if path.is_file():
            path.unlink()
    temporary(unfinished / ".work/plan.json").touch()
    assert contents(shard(images, unfinished, **SMALL)) == whole
    assert not (unfinished / ".work").exists()


# Entries that a manifest lists twice


@pytest.mark.parametrize("case", ["a shard", "a shard in both splits", "a copy in both splits", "a copy", "a class"])
def test_what_a_manifest_lists_twice_is_refused(demo_shards: Path, tmp_path: Path, case: str) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    content = json.loads((copy / "manifest.json").read_text())
    train, val = content["splits"]["train"], content["splits"]["val"]
    words = "is listed twice"
    if case == "a shard":
        train["shards"].append(train["shards"][0])
    elif case == "a shard in both splits":
        val["shards"] = train["shards"]
    elif case == "a class":
        content["classes"][1]["wnid"] = content["classes"][0]["wnid"]
        words = "two classes are called 'n90000000'"
    else:
        words = "are the same file, with one sha256"
        target, name = (train, "train-000099") if case == "a copy" else (val, "val-000099")
        target["shards"].append(train["shards"][0] | {"path": f"{name}.tar"})
        for suffix in ("tar", "idx"):
            shutil.copy(copy / f"train-000000.{suffix}", copy / f"{name}.{suffix}")
    for split in (train, val):
        split["samples"] = sum(entry["samples"] for entry in split["shards"])
    edit_manifest(copy, **content)
    with pytest.raises(DataError, match=rf"manifest\.json is damaged \(.*{words}") as refused:
        load_manifest(copy)
    assert "\n" not in str(refused.value)


def test_splits_of_one_and_the_same_image_are_loaded(images: Path, tmp_path: Path) -> None:
    """Check that the same few images may be used for training and evaluation, as in a first trial."""
    for split in ("train", "val"):
        (tmp_path / "in" / split / "c").mkdir(parents=True)
        shutil.copy(images / "val" / "c0" / "24.jpg", tmp_path / "in" / split / "c" / "1.jpg")
    splits = load_manifest(shard(tmp_path / "in", tmp_path / "out", **SMALL)).splits
    assert splits["train"].shards[0].sha256 == splits["val"].shards[0].sha256


# Files that cannot be read


def failing(number: int, when: Callable[..., bool], real: Callable) -> Callable:
    """Wrap ``real``, a function of os, to raise this error for the arguments that ``when`` picks."""

    def fail(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return fail


def bad_sector(folder: Path, shard: str, key: str) -> Callable[..., bool]:
    """Return a predicate of os.pread's arguments that is true if the call reads this image's first byte."""
    line = next(line for line in (folder / f"{shard}.idx").read_text().splitlines() if f" {key}.jpg " in line)
    first = int(line.split()[1])
    tar = (folder / f"{shard}.tar").stat().st_ino
    return lambda file, size, offset: offset <= first < offset + size and os.fstat(file).st_ino == tar


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the compiled part, whose reads cannot be made to fail here. It leaves such samples to Python."""
    monkeypatch.setattr("pipelines.turbo.ordered.renders_natively", lambda *_: False)


def test_a_bad_sector_costs_one_sample(demo_shards: Path, monkeypatch: pytest.MonkeyPatch, in_python: None) -> None:
    key = (demo_shards / "val-000000.idx").read_text().splitlines()[8].split()[3].removesuffix(".jpg")
    monkeypatch.setattr(os, "pread", failing(errno.EIO, bad_sector(demo_shards, "val-000000", key), os.pread))
    with pytest.raises(SampleError, match=f"val-000000.tar: sample {key} cannot be read: Input/output error"):
        [*open_loader(demo_shards, "val", 64, backend="turbo")]
    loader = open_loader(demo_shards, "val", 64, backend="turbo", on_error="skip")
    assert sum(batch.valid for batch in loader) == 202


def test_other_failures_are_the_whole_shards(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(demo_shards)
    records = Records(manifest, "val")
    monkeypatch.setattr(os, "pread", failing(errno.ESTALE, lambda *_: True, os.pread))
    with pytest.raises(DataError, match=r"shard .*val-000000\.tar cannot be read: Stale file handle") as failed:
        records.read(0)
    assert not isinstance(failed.value, SampleError)
    monkeypatch.setattr(os, "open", failing(errno.EACCES, lambda path, *_: str(path).endswith(".tar"), os.open))
    for use in (Records(manifest, "val").read, Records(manifest, "val").locate):
        with pytest.raises(DataError, match=r"shard .*val-000000\.tar cannot be read: Permission denied"):
            use(0)


def test_reads_that_give_less_than_they_were_asked_for_are_repeated(
    demo_shards: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(load_manifest(demo_shards), "val")
    sample = find_images(images, ("val",), 0).splits["val"][0]
    wanted = bytes(records.read(3).data), sample.read(images)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 700), offset))
    assert (bytes(records.read(3).data), sample.read(images)) == wanted


def test_one_file_that_cannot_be_read_is_quarantined(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check dangling and circular links, and files that vanish, deny access, lie on a bad sector, or shrink."""
    source = shutil.copytree(images, tmp_path / "in")
    paths = sorted((source / "train").rglob("*.jpg"))
    dangling, loop, vanished, secret, bad, cut = paths[:6]
    for path, target in ((dangling, "nowhere"), (loop, loop.name)):
        path.unlink()
        path.symlink_to(target)
    _, found, tasks = planned(source, tmp_path / "out")
    vanished.unlink()
    inode, short, pread = bad.stat().st_ino, cut.stat().st_ino, os.pread

    def read(file: int, size: int, offset: int) -> bytes:
        if os.fstat(file).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return b"" if os.fstat(file).st_ino == short else pread(file, size, offset)

    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(os, "open", failing(errno.EACCES, lambda path, *_: str(path) == str(secret), os.open))
    with claim(tmp_path / "out", fingerprint(tasks, 0)):
        for task in tasks:
            write_shard(task)
        finish(tmp_path / "out", 0, found, tasks)
    monkeypatch.undo()
    reasons = {entry["source"]: entry["reason"] for entry in load_manifest(tmp_path / "out").quarantined}
    names = [str(path.relative_to(source)) for path in (dangling, loop, vanished, secret, bad, cut)]
    words = ["No such file", "Too many levels", "No such file", "Permission denied", "Input/output error", "cut off: 0"]
    assert reasons.keys() == set(names)
    assert all(word in reasons[name] for name, word in zip(names, words, strict=True)), reasons
    assert load_manifest(shard(source, tmp_path / "again", resize="none", **SMALL)).split("train").samples == 21


@pytest.mark.parametrize("what", ["source", "train", "empty", "files", "output"])
def test_a_source_or_a_disk_that_is_gone_ends_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source = shutil.copytree(images, tmp_path / "in")
    _, _, tasks = planned(source, tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir(parents=True)
    if what == "files":  # too many open files
        monkeypatch.setattr(os, "open", failing(errno.EMFILE, lambda *_: True, os.open))
    elif what == "output":
        monkeypatch.setattr(
            "pipelines.sharding.hashed_tar.HashedTar._write", failing(errno.EIO, lambda *_: True, print)
        )
    else:
        shutil.rmtree(source if what == "source" else source / "train")
    if what == "empty":  # as when a disk is unmounted
        (source / "train").mkdir()
    with pytest.raises(OSError):
        write_shard(tasks[0])


def test_verify_goes_on_after_a_shard_that_cannot_be_read(
    images: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(images.parent / "whole")
    monkeypatch.setattr("hashlib.file_digest", failing(errno.EIO, lambda *_: True, print))
    said = verify._problem(manifest.split("val").shards[0], manifest)
    assert said == "it cannot be read: Input/output error"


def test_an_archive_whose_headers_cannot_be_read_is_named(
    images: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images.parent / "whole" / "train-000000.tar"
    monkeypatch.setattr(os, "pread", failing(errno.EIO, lambda *_: True, os.pread))
    with (
        path.open("rb") as file,
        pytest.raises(DataError, match=r"train-000000\.tar cannot be read: Input/output error"),
    ):
        [*members(file, str(path))]


@pytest.mark.parametrize("name", ["bin", "npy"])
@pytest.mark.parametrize("length", [0, 10])
def test_a_spool_that_is_cut_is_made_again(images: Path, tmp_path: Path, name: str, length: int) -> None:
    from tests.test_sources import parquet_of

    rows = [(path.name, path.read_bytes(), number % 2) for number, path in enumerate(sorted(images.rglob("*.jpg")))]
    parquet_of(tmp_path / "train.parquet", rows, ["a", "b"])
    source = find_images(tmp_path, ("train",), 0)
    assert source.spool is not None
    placed = source.spool.copy(source.splits["train"], tmp_path / "spool")
    os.truncate(tmp_path / "spool" / f"train.parquet.{name}", length)
    assert source.spool.copy(source.splits["train"], tmp_path / "spool") == placed
    assert {sample.read(tmp_path / "spool") for sample in placed} == {data for _, data, _ in rows}
