"""Tests of ImageNet's four layouts: the same shards from each, and clear errors for bad downloads."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.io
from PIL import Image

from pipelines import DataError, load_manifest
from pipelines.sharding.sources import Source, find_images, kaggle, official
from tests.conftest import ROOT, script, shard
from tools.shard_imagenet import Options

WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish", "n02084071": "dog", "n09999999": "zebra crossing"}
ILSVRC_ID = dict(zip(WORDS, (4, 1, 3, 2), strict=True))  # not in the order of wnids, as in the real devkit
TRAIN, VAL, DEVKIT = official.ARCHIVES["train"], official.ARCHIVES["val"], official.DEVKIT
CSV = kaggle.LABELS
SIZE = 32

Images = dict[str, dict[str, dict[str, bytes]]]  # split -> wnid -> name -> file


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((60, 45)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def few() -> Images:
    """Return four classes of five train and two val images each, named as in ImageNet."""
    images: Images = {"train": {wnid: {} for wnid in WORDS}, "val": {wnid: {} for wnid in WORDS}}
    for i, wnid in enumerate(WORDS):
        for n in range(5):
            images["train"][wnid][f"{wnid}_{n * 7}.JPEG"] = picture(100 * i + n)
        for n in range(2):
            images["val"][wnid][f"ILSVRC2012_val_{4 * n + (i + 2) % 4 + 1:08}.JPEG"] = picture(100 * i + 50 + n)
    return images


def val_labels(images: Images) -> dict[str, str]:
    """Return the wnid of each val image, sorted by the image's name."""
    return dict(sorted((name, wnid) for wnid, files in images["val"].items() for name in files))


def all_val(images: Images) -> dict[str, bytes]:
    return {name: images["val"][wnid][name] for name, wnid in val_labels(images).items()}


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def devkit_of(labels: list[str]) -> bytes:
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(ILSVRC_ID[wnid], wnid, words, 0) for wnid, words in WORDS.items()] + [(5, "n00001740", "entity", 2)]
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": np.array(sorted(rows), dtype=fields)[:, None]})
    truth = "".join(f"{ILSVRC_ID[wnid]}\n" for wnid in labels).encode()
    start = "ILSVRC2012_devkit_t12/data/"
    files = {f"{start}meta.mat": mat.getvalue(), f"{start}ILSVRC2012_validation_ground_truth.txt": truth}
    return tar_of({"ILSVRC2012_devkit_t12/readme.txt": b"hello", **files}, "w:gz")


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def lay_out_official(folder: Path, images: Images) -> None:
    tars = {f"{wnid}.tar": tar_of(images["train"][wnid]) for wnid in reversed(images["train"])}
    write(folder / TRAIN, tar_of(tars))
    write(folder / VAL, tar_of(dict(reversed(all_val(images).items()))))
    write(folder / DEVKIT, devkit_of(list(val_labels(images).values())))


def lay_out_folders(folder: Path, images: Images) -> None:
    for split, classes in images.items():
        for wnid, files in classes.items():
            for name, data in files.items():
                write(folder / split / wnid / name, data)
    write(folder / "synset_words.txt", words_file())


def words_file() -> bytes:
    return "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()).encode()


def lay_out_kaggle(folder: Path, images: Images) -> None:
    lay_out_folders(folder / kaggle.DATA, images)
    shutil.rmtree(folder / kaggle.DATA / "val")
    for name, data in all_val(images).items():
        write(folder / kaggle.DATA / "val" / name, data)
    with (folder / CSV).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for name, wnid in reversed(val_labels(images).items()):
            rows.writerow([name.removesuffix(".JPEG"), f"{wnid} 1 2 30 40 {wnid} 5 6 7 8 "])
    (folder / kaggle.DATA / "synset_words.txt").unlink()
    write(folder / kaggle.WORDS, words_file())


def parquet_of(path: Path, rows: list[tuple[str, bytes, int]], names: list[str] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": name} for name, data, _ in rows]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {"image": pyarrow.array(images, kind), "label": pyarrow.array([row[2] for row in rows], "int64")}
    )
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, path, row_group_size=3)


def parquet_rows(images: Images, split: str) -> list[tuple[str, bytes, int]]:
    """Return rows sorted by their bytes, an arbitrary order, with names as Hugging Face writes them."""
    rows = [
        (f"{name.removesuffix('.JPEG')}_{wnid}.JPEG", data, label)
        for label, wnid in enumerate(WORDS)
        for name, data in images[split].get(wnid, {}).items()
    ]
    return sorted(rows, key=lambda row: row[1])


def lay_out_parquet(folder: Path, images: Images, names: bool = True) -> None:
    for split, name, parts in (("train", "train", 3), ("val", "validation", 1)):
        rows = parquet_rows(images, split)
        for i in range(parts):
            path = folder / "data" / f"{name}-{i:05}-of-{parts:05}.parquet"
            parquet_of(path, rows[i::parts], list(WORDS.values()) if names else None)
    parquet_of(folder / "data" / "test-00000-of-00001.parquet", [("x.JPEG", b"", -1)], None)


LAY_OUT = {
    "official": lay_out_official,
    "folders": lay_out_folders,
    "kaggle": lay_out_kaggle,
    "parquet": lay_out_parquet,
}


@pytest.fixture
def laid_out(tmp_path: Path, few: Images):
    def lay_out(layout: str, images: Images = few) -> Path:
        LAY_OUT[layout](tmp_path / layout, images)
        return tmp_path / layout

    return lay_out


def found(folder: Path, splits: tuple[str, ...] = ("train", "val"), seed: int = 0, **options) -> Source:
    return find_images(folder, splits, seed, **options)


def keys_and_labels(source: Source) -> dict[str, list[tuple[str, int]]]:
    return {split: [(sample.key, sample.label) for sample in samples] for split, samples in source.splits.items()}


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".npy")}


@pytest.mark.parametrize("options", [{}, {"classes": "3", "per_class": 2, "seed": 5}, {"resize": "none"}])
def test_the_four_layouts_give_the_same_shards_byte_for_byte(laid_out, tmp_path: Path, options: dict) -> None:
    shards = {}
    for layout in LAY_OUT:
        out = shard(laid_out(layout), tmp_path / f"{layout}-out", size=SIZE, shard_mb=0.02, **options)
        manifest = load_manifest(out)
        shards[layout] = shard_bytes(out), manifest.classes, manifest.statistics
        assert not (out / ".work").exists(), "the spool is gone with the rest"
    assert len(shards["folders"][0]) > 4
    assert shards["folders"] == shards["official"] == shards["kaggle"] == shards["parquet"]
    names = [entry.name for entry in shards["official"][1]]
    assert names == list(WORDS.values())[: len(names)], "classes by the rank of the wnid, with their words"


def test_duplicate_and_odd_names_get_the_same_keys_in_each_layout(laid_out, few: Images) -> None:
    first, second, *_ = WORDS
    odd = {"same.JPEG": b"1", "a.b c.JPEG": b"2", "a_b_c.JPEG": b"3"}
    train = {**few["train"], first: odd, second: {"same.JPEG": b"4"}}
    layouts = {name: keys_and_labels(found(laid_out(name, {**few, "train": train}))) for name in LAY_OUT}
    keys = {key for key, _ in layouts["folders"]["train"]}
    assert {f"{first}_same", f"{second}_same"} < keys
    assert len([key for key in keys if key.startswith(f"{first}_a_b_c_")]) == 2
    assert layouts["official"] == layouts["folders"] == layouts["kaggle"] == layouts["parquet"]


def test_samples_say_where_they_come_from(laid_out) -> None:
    folders = {layout: laid_out(layout) for layout in LAY_OUT}
    sources = {layout: {s.key: s for s in found(folder).splits["train"]} for layout, folder in folders.items()}
    at = {layout: samples["n01443537_14"].source for layout, samples in sources.items()}
    assert at["official"] == f"{TRAIN}/n01443537.tar/n01443537_14.JPEG"
    assert at["folders"] == "train/n01443537/n01443537_14.JPEG"
    assert at["kaggle"] == "ILSVRC/Data/CLS-LOC/train/n01443537/n01443537_14.JPEG"
    assert at["parquet"].startswith("data/train-0000") and at["parquet"].endswith("/n01443537_14.JPEG")
    val = found(folders["official"]).splits["val"][0]
    assert val.source == f"{VAL}/ILSVRC2012_val_00000001.JPEG"


def test_archives_are_read_in_place(laid_out, few: Images) -> None:
    folder = laid_out("official")
    for sample in found(folder).splits["train"]:
        assert sample.read(folder) == few["train"][sample.source.split("/")[1][:9]][f"{sample.key}.JPEG"]
    assert {path.name for path in folder.iterdir()} == {TRAIN, VAL, DEVKIT}


def test_long_member_names_are_found(laid_out, few: Images) -> None:
    long = "n01440764_" + "x" * 150
    train = {**few["train"], "n01440764": {f"{long}.JPEG": b"long", "._hidden.JPEG": b"mac", "readme.txt": b"?"}}
    folder = laid_out("official", {**few, "train": train})
    (sample,) = (sample for sample in found(folder).splits["train"] if sample.label == 0)
    assert sample.read(folder) == b"long" and sample.key == long[:80]


def test_md5_names_the_wrong_archive(laid_out, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = laid_out("official")
    with pytest.raises(DataError, match=f"{TRAIN} has the md5"):
        found(folder, md5=True)
    right = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in official.MD5}
    monkeypatch.setattr(official, "MD5", right)
    found(folder, md5=True)
    monkeypatch.setitem(right, DEVKIT, "0" * 32)
    with pytest.raises(DataError, match=f"{DEVKIT} has the md5 .* instead of 0000"):
        found(folder, md5=True)
    with pytest.raises(DataError, match="--md5 checks the archives of image-net"):
        found(laid_out("folders"), md5=True)


def test_subsets_are_drawn_by_the_seed_and_ranked_anew(laid_out, tmp_path: Path) -> None:
    folder = laid_out("folders")
    (tmp_path / "wnids.txt").write_text("n09999999 zebra crossing\n\nn01443537\n")
    source = found(folder, classes=str(tmp_path / "wnids.txt"), per_class=3)
    assert [entry.wnid for entry in source.classes] == ["n01443537", "n09999999"]
    assert sorted(sample.label for sample in source.splits["train"]) == [0, 0, 0, 1, 1, 1]
    assert sorted(sample.label for sample in source.splits["val"]) == [0, 0, 1, 1]
    everything = [sample.key for sample in found(folder).splits["train"]]
    taken = [sample.key for sample in source.splits["train"]]
    assert taken == [key for key in everything if key in set(taken)], "in the order of the whole permutation"
    wider = {sample.key for sample in found(folder, per_class=4).splits["train"]}
    assert set(taken) < wider, "a larger subset holds the smaller one"
    assert {s.key for s in found(folder, seed=1, per_class=3).splits["train"]} != {
        s.key for s in found(folder, per_class=3).splits["train"]
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": "5"}, "there are only 4 classes"),
        ({"classes": "none.txt"}, "no such file"),
        ({"classes": "README.md"}, "is none of the 4 classes"),
        ({"per_class": 6}, "n01440764 has only 5 train images"),
    ],
)
def test_impossible_subsets_are_refused(laid_out, monkeypatch, options: dict, words: str) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(DataError, match=words):
        found(laid_out("folders"), **options)


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"classes": "0"}, {"classes": "-3"}])
def test_subsets_of_nothing_are_no_options(wrong: dict) -> None:
    with pytest.raises(ValueError, match="starts at 1"):
        Options(Path("in"), Path("out"), **wrong)


def test_two_layouts_in_one_folder_are_refused_until_one_is_named(laid_out, few: Images) -> None:
    folder = laid_out("official")
    lay_out_folders(folder, few)
    with pytest.raises(DataError, match=r"2 layouts, official and folders: say which with --layout official"):
        found(folder)
    assert found(folder, layout="folders").splits["train"][0].file.startswith("train/")
    assert found(folder, layout="official").splits["train"][0].file == TRAIN


def test_nothing_recognised_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"looked for: {TRAIN}.*train/<class>/.*LOC_val_solution.*parquet"):
        found(tmp_path)


def test_a_bad_download_is_one_message_and_ends_with_1(laid_out, tmp_path: Path) -> None:
    folder = laid_out("official")
    (folder / DEVKIT).unlink()
    done = script("tools/shard_imagenet.py", folder, tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no file" in done.stderr and DEVKIT in done.stderr


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size if size > 0 else path.stat().st_size + size)


def outer(folder: Path, files: dict[str, bytes]) -> None:
    (folder / TRAIN).write_bytes(tar_of(files))


def inner(folder: Path, files: dict[str, bytes]) -> None:
    outer(folder, {"n01440764.tar": tar_of(files)})


def link(folder: Path) -> None:
    member = tarfile.TarInfo("n01440764_1.JPEG")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    (folder / VAL).write_bytes(member.tobuf() + bytes(1024))


def negative(folder: Path) -> None:
    member = tarfile.TarInfo("n01440764.tar")
    member.size = -512
    (folder / TRAIN).write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: truncate(f / TRAIN, 30000), rf"{TRAIN} is truncated: n\d+\.tar ends after it"),
        (lambda f: truncate(f / VAL, 700), rf"{VAL} is truncated: ILSVRC"),
        (lambda f: (f / VAL).write_bytes((f / VAL).read_bytes().rstrip(b"\0")[:-1] + b"\0"), f"{VAL} is"),
        (lambda f: (f / TRAIN).write_bytes(b""), f"{TRAIN} is not a tar"),
        (lambda f: (f / TRAIN).write_bytes(b"<html>sign in</html>" * 99), f"{TRAIN} is not a tar"),
        (lambda f: outer(f, {"n01440764.tar": b"no tar" * 200}), rf"{TRAIN}/n01440764\.tar is not a tar"),
        (lambda f: outer(f, {"n01440764.tar": tar_of({"a.JPEG": b"x"})[:1024]}), "is truncated.* without the end mark"),
        (lambda f: outer(f, {"n12345678.tar": tar_of({})}), "n12345678.tar, which is not a tar of a class"),
        (lambda f: outer(f, {f"{wnid}.tar": tar_of({}) for wnid in WORDS}), f"{TRAIN} has no images"),
        (lambda f: outer(f, {"n01440764.tar": tar_of({}), "x/n01440764.tar": tar_of({})}), "n01440764.tar twice"),
        (lambda f: inner(f, {"../../../etc/cron.d/x.JPEG": b"x"}), r"\.\./.* leads out of it"),
        (lambda f: inner(f, {"/etc/x.JPEG": b"x"}), r"/etc/x\.JPEG.* leads out of it"),
        (lambda f: inner(f, {"a.JPEG": b"1", "b/a.JPEG": b"2"}), "n01443537, a class that train does not have"),
        (link, "is not a plain file"),
        (negative, "is truncated"),
        (lambda f: (f / TRAIN).unlink(), rf"no file .*{TRAIN}: .*--splits"),
        (lambda f: (f / DEVKIT).unlink(), rf"no file .*{DEVKIT}"),
        (lambda f: truncate(f / DEVKIT, -200), f"{DEVKIT} is not a tar.gz, or is damaged"),
        (
            lambda f: (f / DEVKIT).write_bytes(tar_of({"data/meta.mat": b""}, "w:gz")),
            "does not hold data/ILSVRC2012_val",
        ),
        (lambda f: (f / DEVKIT).write_bytes(devkit_of(list(WORDS))), f"{VAL} has 8 images, but .* the labels of 4"),
        (lambda f: bad_meta(f), "meta.mat is damaged"),
        (lambda f: bad_truth(f), "line 2: '9' is not a class id"),
    ],
)
def test_damaged_archives_are_refused(laid_out, damage, words: str) -> None:
    folder = laid_out("official")
    damage(folder)
    with pytest.raises(DataError, match=words):
        found(folder)


def rewrite_devkit(folder: Path, name: str, data: bytes) -> None:
    with tarfile.open(folder / DEVKIT) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    changed = {key: data if key.endswith(name) else value for key, value in files.items()}
    (folder / DEVKIT).write_bytes(tar_of(changed, "w:gz"))


def bad_meta(folder: Path) -> None:
    rewrite_devkit(folder, "meta.mat", b"MATLAB 5.0 MAT-file" + bytes(range(256)))


def bad_truth(folder: Path) -> None:
    rewrite_devkit(folder, "ground_truth.txt", b"1\n9\n")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / CSV).unlink(), f"no file .*{CSV}"),
        (lambda f: edit(f / CSV, "ILSVRC2012_val_00000003,", "other,"), f"{CSV} has no row for .*val_00000003.JPEG"),
        (
            lambda f: (f / kaggle.DATA / "val/ILSVRC2012_val_00000003.JPEG").unlink(),
            "a row for ILSVRC2012_val_00000003",
        ),
        (lambda f: edit(f / CSV, "val_00000003,", "val_00000002,"), "a second row for ILSVRC2012_val_0000000"),
        (lambda f: edit(f / CSV, "ImageId", "id"), "line 2: expected columns ImageId"),
        (lambda f: (f / CSV).write_text(""), "has no rows"),
        (lambda f: edit(f / CSV, "n02084071", "n55555555"), "n55555555, a class that train does not have"),
        (lambda f: shutil.rmtree(f / kaggle.DATA / "train"), "no folder .*train.*--splits"),
    ],
)
def test_damaged_kaggle_downloads_are_refused(laid_out, damage, words: str) -> None:
    folder = laid_out("kaggle")
    damage(folder)
    with pytest.raises(DataError, match=words):
        found(folder)


VALIDATION = "data/validation-00000-of-00001.parquet"
ONE = [("n01440764_1.JPEG", b"x", 0)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: truncate(f / VALIDATION, -20), "validation.* is not a parquet file, or is damaged"),
        (lambda f: (f / VALIDATION).write_bytes(b""), "is not a parquet file"),
        (lambda f: (f / VALIDATION).unlink(), "no parquet files of val"),
        (lambda f: (f / "data/train-00001-of-00003.parquet").unlink(), "2 parquet files of train.* not one whole set"),
        (lambda f: parquet_of(f / "data/valid.parquet", ONE, None), "2 parquet files of val.* not one whole set"),
        (lambda f: parquet_of(f / "validation.parquet", ONE, None), "both there and in data/"),
        (lambda f: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), f / VALIDATION), "has the columns x int64"),
        (lambda f: parquet_of(f / VALIDATION, [("a_n01440764.JPEG", b"x", -1)], None), "row 0, has the label -1"),
        (lambda f: parquet_of(f / VALIDATION, [("a.JPEG", b"x", 4)], None), "label 4, but only 4 classes have names"),
        (lambda f: parquet_of(f / VALIDATION, [("a_n01440764.JPEG", b"x", 2)], None), "other images contradict"),
        (lambda f: parquet_of(f / VALIDATION, [], None), "have no rows"),
    ],
)
def test_damaged_parquet_downloads_are_refused(laid_out, damage, words: str) -> None:
    folder = laid_out("parquet")
    damage(folder)
    with pytest.raises(DataError, match=words):
        found(folder)


def test_labels_stand_as_they_are_where_names_tell_no_wnids(tmp_path: Path) -> None:
    rows = [("a.png", b"1", 2), ("b.png", b"2", 0), ("", b"3", 2)]
    parquet_of(tmp_path / "train.parquet", rows, ["cat", "dog", "emu"])
    source = found(tmp_path, ("train",))
    assert [(entry.wnid, entry.name) for entry in source.classes] == [
        ("class0", "cat"),
        ("class1", "dog"),
        ("class2", "emu"),
    ]
    assert {(s.key, s.label) for s in source.splits["train"]} == {("a", 2), ("b", 0), ("train_000002", 2)}
    parquet_of(tmp_path / "train.parquet", rows, None)
    assert [entry.name for entry in found(tmp_path, ("train",)).classes] == ["class0", "class1", "class2"]


def test_labels_in_another_order_than_the_wnids_are_ranked_anew(tmp_path: Path) -> None:
    parquet_of(tmp_path / "train.parquet", [("n02000000_1.JPEG", b"1", 0), ("n01000000_1.JPEG", b"2", 1)], ["b", "a"])
    source = found(tmp_path, ("train",))
    assert [(entry.wnid, entry.name) for entry in source.classes] == [("n01000000", "a"), ("n02000000", "b")]
    assert {(s.key, s.label) for s in source.splits["train"]} == {("n02000000_1", 1), ("n01000000_1", 0)}


def test_a_spool_goes_on_where_it_was_and_holds_only_what_is_asked_for(laid_out, few: Images, tmp_path: Path) -> None:
    folder, work = laid_out("parquet"), tmp_path / "spool"
    samples = found(folder, per_class=2).splits["train"]
    source = found(folder)
    assert source.spool is not None
    images = {name: data for files in few["train"].values() for name, data in files.items()}
    placed = source.spool.copy(samples, work)
    assert [sample.read(work) for sample in placed] == [images[f"{sample.key}.JPEG"] for sample in samples]
    total = sum(path.stat().st_size for path in work.glob("*.bin"))
    assert total == sum(len(images[f"{sample.key}.JPEG"]) for sample in samples)
    before = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    victim = sorted(work.glob("*.npy"))[1]
    victim.unlink()
    assert source.spool.copy(samples, work) == placed
    again = {path.name for path in work.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert again == {victim.name, victim.with_suffix(".bin").name}
    everything = source.spool.copy(source.splits["train"], work)
    assert {sample.read(work) for sample in everything} == set(images.values())


def test_a_shard_is_repaired_from_parquet(laid_out, tmp_path: Path) -> None:
    folder, out = laid_out("parquet"), tmp_path / "out"
    options = {"size": SIZE, "shard_mb": 0.02, "workers": 1}
    shards = shard_bytes(shard(folder, out, **options))
    victim = out / "train-000001.tar"
    victim.write_bytes(victim.read_bytes().replace(b"JFIF", b"JUNK"))
    shard(folder, out, repair=True, **options)
    assert shard_bytes(out) == shards
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_spool_says_when_the_disk_is_too_small(laid_out, tmp_path: Path, monkeypatch) -> None:
    source = found(laid_out("parquet"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert source.spool is not None
    with pytest.raises(DataError, match="make room"):
        source.spool.copy(source.splits["train"], tmp_path / "spool")


def test_damage_inside_a_parquet_file_is_found_while_spooling(laid_out, tmp_path: Path) -> None:
    folder = laid_out("parquet")
    path = folder / "data/train-00000-of-00003.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    source = found(folder)
    assert source.spool is not None
    with pytest.raises(DataError, match=r"train-00000-of-00003\.parquet is not a parquet file, or is damaged"):
        source.spool.copy(source.splits["train"], tmp_path / "spool")


@pytest.mark.parametrize(("layout", "wheel"), [("official", "scipy"), ("parquet", "pyarrow")])
def test_a_missing_wheel_is_named(laid_out, monkeypatch, layout: str, wheel: str) -> None:
    for module in (wheel, f"{wheel}.io", f"{wheel}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs {wheel}: pip install 'alexnet-pipelines\[{layout}\]'"):
        found(laid_out(layout))


PLAN = """
from pathlib import Path
from pipelines.shards.manifest import ImageClass, ImageFormat
from pipelines.sharding.folder import fingerprint
from pipelines.sharding.plan import plan
from pipelines.sharding.sources import Source, sample, selection

archive = "ILSVRC2012_img_train.tar"
wnids = [f"n{i:08d}" for i in range(1000)]
samples = []
for label, wnid in enumerate(wnids):
    for n in range(1281):
        name, offset = f"{wnid}_{n}.JPEG", 110_000 * (1281 * label + n)
        key = sample.key_of(sample.stem_of(name))
        samples.append(sample.Sample(key, f"{archive}/{wnid}.tar/{name}", label, archive, offset, 109_000 + n))
samples = selection.ordered(selection.distinct(samples, wnids), "train", 0)
source = Source(Path(), tuple(ImageClass(wnid, wnid) for wnid in wnids), {"train": tuple(samples)})
tasks = plan(source, Path("out"), ImageFormat("jpeg", "square", 256, 90))
assert sum(len(task.samples) for task in tasks) == 1_281_000
fingerprint(tasks, 0)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)  # ru_maxrss would be that of the process that started this one
"""


@pytest.mark.slow
def test_a_plan_for_all_of_imagenet_fits_into_a_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", PLAN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, f"{done.stdout} MB"
