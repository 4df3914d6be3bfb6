"""Tests of sharding: the right samples, the same bytes every time, and clear errors for bad input."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import wds2idx
import webdataset
from datasets import load_dataset
from PIL import Image

from pipelines import DataError, load_manifest
from pipelines.images.picture import read_file
from pipelines.images.resize import square
from pipelines.sharding.folder import claim
from pipelines.sharding.sources import find_images
from pipelines.sharding.verify import verify
from tests.conftest import ROOT, assert_refused, command, script, shard, wait_until
from tools.shard_imagenet import Options

TOOL = "tools/shard_imagenet.py"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def few_images(demo_images: Path, tmp_path: Path) -> Path:
    """Return a folder of two classes with six train and two val images each."""
    source = tmp_path / "images"
    for split, count in (("train", 6), ("val", 2)):
        for folder in sorted((demo_images / split).iterdir())[:2]:
            (source / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, source / split / folder.name)
    return source


@pytest.mark.parametrize("workers", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_number_of_workers(
    demo_images: Path, demo_shards: Path, tmp_path: Path, workers: int
) -> None:
    assert digests(shard(demo_images, tmp_path / "again", shard_mb=2, workers=workers)) == digests(demo_shards)


KILLED = """
import os, runpy, sys
from pipelines.sharding import runners, writer
def write(tasks, workers, progress):
    for number, task in enumerate(tasks):
        writer.write_shard(task, lambda *_: os.kill(os.getpid(), 9) if number == 2 else None)
runners.write_on_this_machine = write
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    demo_images: Path, demo_shards: Path, tmp_path: Path
) -> None:
    """Check with a kill within the third shard."""
    done = command("-c", KILLED, TOOL, demo_images, tmp_path / "out", "--shard-mb", "2")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [len(list((tmp_path / "out").glob(pattern))) for pattern in ("*.tar", "*.tmp")] == [2, 1]
    with pytest.raises(DataError, match="unfinished"):
        load_manifest(tmp_path / "out")
    with pytest.raises(DataError, match=r"another plan .*seed was 0, is 1"):
        shard(demo_images, tmp_path / "out", shard_mb=2, seed=1)
    assert digests(shard(demo_images, tmp_path / "out", shard_mb=2)) == digests(demo_shards)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_byte(demo_images: Path, demo_shards: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    line = [sys.executable, TOOL, demo_images, tmp_path / "out", "--shard-mb", "2", "--workers", "2"]
    kills = 0
    while kills < 20:
        process = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE)
        try:
            process.wait(rng.uniform(0.2, 2.5))
            shutil.rmtree(tmp_path / "out")  # it ended before it could be killed: try again
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    if not (tmp_path / "out" / "manifest.json").exists():
        assert command(*line[1:]).returncode == 0
    assert digests(tmp_path / "out") == digests(demo_shards)


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_though_a_worker_is_killed(
    demo_images: Path, demo_shards: Path, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    environment = {"PYTHONPATH": str(ROOT), "DISTRIBUTED__WORKER__DAEMON": "False"}
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    # Dask leaves OMP_NUM_THREADS=1 behind, which would change the rounding of training in later tests
    with patch.dict(os.environ), distributed.LocalCluster(**options, env=environment) as cluster:
        arguments = (TOOL, demo_images, tmp_path / "out", "--shard-mb", "2", "--cluster", cluster.scheduler_address)
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(command, *arguments)
            wait_until(lambda: any((tmp_path / "out").glob("*.tmp")) or run.done(), "no shard is begun")
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
            done = run.result()
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == digests(demo_shards)


def test_no_scheduler_and_no_dask_are_said(few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, **more: client(address, **more | {"timeout": "0.1s"}))
    with pytest.raises(DataError, match="no Dask scheduler answers at tcp"):
        shard(few_images, tmp_path / "out", cluster="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DataError, match=r"pip install 'alexnet-pipelines\[cluster\]'"):
        shard(few_images, tmp_path / "out", cluster="tcp://127.0.0.1:9")


def test_too_many_bad_images_end_the_run_which_a_larger_allowance_continues(few_images: Path, tmp_path: Path) -> None:
    victims = sorted((few_images / "train").rglob("*.JPEG"))[:6]
    for path in victims:
        path.write_text("<html>")
    assert_refused(command(TOOL, few_images, tmp_path / "out"), "more than 5 of 16", victims[0].name, "--max-bad 1.")
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = command(TOOL, few_images, tmp_path / "out", "--max-bad", "0.5")
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "out").split("train").samples == 6


def test_repair_writes_only_the_wrong_shards_again(demo_images: Path, demo_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    flip_byte_in_image(copy)
    (copy / "train-000000.tar").unlink()
    kept = (copy / "train-000002.tar").stat().st_ino
    wrong_seed = script(TOOL, demo_images, copy, "--shard-mb", "2", "--seed", "1", "--repair")
    assert_refused(wrong_seed, "the source or the options differ", "nothing was changed")
    done = script(TOOL, demo_images, copy, "--shard-mb", "2", "--repair")
    assert done.returncode == 0, done.stderr
    assert "2 shards written again" in done.stdout
    assert digests(copy) == digests(demo_shards)
    assert (copy / "train-000002.tar").stat().st_ino == kept


def test_train_is_a_global_permutation_drawn_from_the_seed(demo_images: Path) -> None:
    orders = [find_images(demo_images, ("train",), seed).splits["train"] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert set(orders[0]) == set(orders[2])
    labels = np.array([sample.label for sample in orders[0]])
    assert all(len(set(labels[i : i + 100])) == 10 for i in range(0, 400, 100)), "a hundred in a row show each class"


def test_the_index_is_what_dali_writes(demo_shards: Path, tmp_path: Path) -> None:
    for tar in sorted(demo_shards.glob("*.tar")):
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "theirs.idx").read_text() == tar.with_suffix(".idx").read_text()


def test_tars_are_plain_ustar_without_traces_of_this_machine(demo_shards: Path) -> None:
    with tarfile.open(demo_shards / "train-000000.tar", "r:") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isreg()
    assert (demo_shards / "train-000000.tar").read_bytes()[257:263] == b"ustar\0"


def test_hugging_face_datasets_reads_the_shards(demo_images: Path, demo_shards: Path, tmp_path: Path) -> None:
    source = find_images(demo_images, ("val",), 0).splits["val"]
    shards = sorted(str(path) for path in demo_shards.glob("val-*.tar"))
    samples = list(load_dataset("webdataset", data_files=shards, split="train", streaming=True, cache_dir=tmp_path))
    assert [(sample["__key__"], sample["cls"]) for sample in samples] == [(s.key, s.label) for s in source]
    assert {sample["jpg"].size for sample in samples} == {(256, 256)}


def test_images_are_resized_as_the_paper_did(demo_images: Path, demo_shards: Path) -> None:
    manifest = load_manifest(demo_shards)
    samples = {sample.key: sample for sample in find_images(demo_images, ("val",), 0).splits["val"]}
    for entry in list(webdataset.WebDataset(str(demo_shards / "val-000000.tar"), shardshuffle=False))[:20]:
        assert b"\xff\xc0" in entry["jpg"] and b"\xff\xc2" not in entry["jpg"], "baseline, for hardware decoders"
        (demo_shards.parent / "one.jpg").write_bytes(entry["jpg"])
        written = Image.open(demo_shards.parent / "one.jpg")
        assert (written.size, written.mode) == ((256, 256), "RGB")
        wanted = square(read_file(demo_images / samples[entry["__key__"]].source).pixels, 256)
        error = np.abs(np.asarray(written, np.int16) - np.asarray(wanted, np.int16)).mean()
        assert error < 6, "quality 90 with halved chroma stays close to the pixels"
    assert manifest.quarantined == ()


def test_statistics_are_those_of_the_pixels(demo_shards: Path, demo_images: Path) -> None:
    manifest = load_manifest(demo_shards)
    source = find_images(demo_images, ("train",), 0)
    images = [square(read_file(demo_images / s.source).pixels, 256) for s in source.splits["train"]]
    total = np.zeros((256, 256, 3))
    for image in images:
        total += image
    np.testing.assert_allclose(np.load(demo_shards / "mean.npy"), total / len(images), rtol=1e-6)
    pixels = np.concatenate([image[::8, ::8].reshape(-1, 3) for image in images])  # an estimate from every 64th pixel
    covariance = np.cov(pixels.T)
    np.testing.assert_allclose(manifest.statistics.mean_rgb, (total / len(images)).mean((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(manifest.statistics.std_rgb, np.sqrt(np.diag(covariance)), rtol=0.02)
    vectors, values = np.array(manifest.statistics.eigenvectors), np.array(manifest.statistics.eigenvalues)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=0.02 * values[0])
    assert values[0] > values[1] > values[2] > 0


def test_classes_are_ranked_by_folder_and_have_names(demo_shards: Path) -> None:
    classes = load_manifest(demo_shards).classes
    assert [entry.wnid for entry in classes] == [f"n9000000{i}" for i in range(10)]
    assert all(entry.name != entry.wnid for entry in classes)


def test_images_that_cannot_be_decoded_are_quarantined_and_the_run_goes_on(few_images: Path, tmp_path: Path) -> None:
    folder = next((few_images / "train").iterdir())
    victims = sorted(folder.iterdir())[:3]
    whole = victims[0].read_bytes()
    victims[0].write_bytes(whole[: len(whole) // 2])
    victims[1].write_bytes(b"")
    victims[2].write_text("<html>404</html>")
    done = script(TOOL, few_images, tmp_path / "out", "--max-bad", "0.2")
    assert done.returncode == 0, done.stderr
    assert "quarantined: 3" in done.stdout
    manifest = load_manifest(tmp_path / "out")
    assert manifest.split("train").samples == 9
    reasons = {Path(entry["source"]).name: entry["reason"] for entry in manifest.quarantined}
    assert set(reasons) == {path.name for path in victims}
    assert "truncated" in reasons[victims[0].name]
    verify(tmp_path / "out", workers=1)


def test_what_is_not_a_plain_image_is_repaired_and_listed(few_images: Path, tmp_path: Path) -> None:
    folder = next((few_images / "train").iterdir())
    png, turned, cmyk = sorted(folder.iterdir())[:3]
    image = Image.open(png).convert("RGBA")
    image.save(png, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(turned, "JPEG", exif=exif)
    image.convert("CMYK").save(cmyk, "JPEG")
    manifest = load_manifest(shard(few_images, tmp_path / "out"))
    actions = {(Path(entry["source"]).name, entry["action"]) for entry in manifest.repaired}
    assert (png.name, "PNG named .JPEG") in actions
    assert (turned.name, "turned as EXIF says") in actions
    assert (cmyk.name, "CMYK to RGB") in actions
    assert manifest.split("train").samples == 12


def test_stems_that_occur_twice_or_hold_dots_become_distinct_keys(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "val/a"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in ("1.jpg", "x.y z.jpg"):
            Image.new("RGB", (300, 280), "red").save(tmp_path / "in" / folder / name)
    source = find_images(tmp_path / "in", ("train", "val"), 0)
    assert {sample.key for sample in source.splits["train"]} == {"a_1", "b_1", "a_x_y_z", "b_x_y_z"}
    assert {sample.key for sample in source.splits["val"]} == {"1", "x_y_z"}


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda source, out: shutil.rmtree(source), ["no folder", "train/ and val/"]),
        (lambda source, out: shutil.rmtree(source / "train"), ["no folder", "train", "--splits"]),
        (lambda source, out: (shutil.rmtree(source / "train"), (source / "train").mkdir()), ["no class folders"]),
        (lambda source, out: [path.unlink() for path in source.rglob("*.JPEG")], ["has no images"]),
        (lambda source, out: next((source / "val").iterdir()).rename(source / "val" / "n99"), ["n99", "does not have"]),
        (lambda source, out: (out.mkdir(), (out / "thesis.txt").touch()), ["holds other things"]),
        (lambda source, out: (out.mkdir(), (out / "manifest.json").touch()), ["holds finished shards already"]),
        (lambda source, out: out.touch(), ["is not a folder"]),
        (lambda source, out: [path.write_text("no") for path in source.rglob("train/*/*")], ["no image of train"]),
    ],
)
def test_bad_sources_and_targets_are_refused(few_images: Path, tmp_path: Path, prepare, words: list[str]) -> None:
    prepare(few_images, tmp_path / "out")
    assert_refused(script(TOOL, few_images, tmp_path / "out", "--max-bad", "1"), *words)
    assert not (tmp_path / "out" / "train-000000.tar").exists() or not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--quality", "0"],
        ["--size", "8"],
        ["--shard-mb", "-1"],
        ["--workers", "0"],
        ["--splits", "../etc"],
        ["--sizes", "9"],
    ],
)
def test_values_out_of_range_end_with_2(few_images: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = script(TOOL, few_images, tmp_path / "out", *arguments)
    assert_refused(done, arguments[0], code=2)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_run_and_leaves_nothing_that_looks_whole(demo_images: Path, small_disk: Path) -> None:
    done = command(TOOL, demo_images, small_disk / "out", "--shard-mb", "2")
    assert_refused(done, "No space left", "free some space")
    assert not (small_disk / "out" / "manifest.json").exists()


def test_two_runs_into_one_folder_exclude_each_other(few_images: Path, tmp_path: Path) -> None:
    with claim(tmp_path / "out", {}):
        assert_refused(script(TOOL, few_images, tmp_path / "out"), "another run is writing")


def flip_byte_in_image(folder: Path) -> None:
    path = folder / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.write_bytes(data)


def test_verify_says_which_shard_was_altered(demo_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    assert script(TOOL, "--verify", copy).returncode == 0
    flip_byte_in_image(copy)
    assert_refused(script(TOOL, "--verify", copy), "1 of", "train-000001.tar", "sha256")


def test_verify_compares_the_index_with_the_tar(demo_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    index = copy / "train-000000.idx"
    index.write_text(index.read_text().replace("jpg 512 ", "jpg 513 ", 1))
    with pytest.raises(DataError, match=r"train-000000\.tar: its index does not describe it"):
        verify(copy, workers=1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "train-000000.tar").unlink(), "train-000000.tar is missing"),
        (lambda folder: os.truncate(folder / "val-000000.tar", 5000), "val-000000.tar has 5000 bytes instead of"),
        (lambda folder: (folder / "val-000000.idx").unlink(), "val-000000.idx is missing"),
        (lambda folder: (folder / "val-000000.idx").write_text("v1.2 1\n"), "does not list the 67 samples"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: edit_manifest(folder, format=2), "format is 2"),
        (lambda folder: edit_manifest(folder, classes=[]), "no classes"),
        (lambda folder: edit_manifest(folder, splits=[]), "is damaged"),
        (lambda folder: edit_manifest(folder, splits=one_shard("../../etc/passwd")), "not a shard's name"),
        (lambda folder: edit_manifest(folder, splits=one_shard("/etc/x-000000.tar")), "not a shard's name"),
        (lambda folder: edit_manifest(folder, splits=one_shard("train-000000.tar", total=9)), "9 samples it claims"),
        (lambda folder: (folder / "manifest.json").unlink(), "tools/shard_imagenet.py SOURCE"),
    ],
)
def test_a_damaged_shard_folder_is_refused_at_once(demo_shards: Path, tmp_path: Path, damage, words: str) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    damage(copy)
    with pytest.raises(DataError, match=words.replace(".", r"\.")):
        load_manifest(copy)


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_shard(path: str, total: int = 1) -> dict:
    return {"train": {"samples": total, "shards": [{"path": path, "samples": 1, "bytes": 1, "sha256": ""}]}}


def test_options_need_source_and_target() -> None:
    with pytest.raises(ValueError, match="SOURCE and OUT"):
        Options(Path("in"))
