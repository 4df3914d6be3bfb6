"""Tests of shards of each --resize and --encoding: their contents, and that loaders read them alike."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from pipelines import Augment, DataError, load_manifest, open_loader
from pipelines.images.jpeg_header import Header
from pipelines.images.picture import read_file
from pipelines.preprocess import Preparation
from pipelines.sharding.sources import find_images
from pipelines.sharding.verify import verify
from pipelines.shards.gallery import Gallery
from tests import jpegs
from tests.conftest import NUMBERED_IMAGES, assert_refused, script, shard
from tests.test_images import PLAIN, USABLE

TOOL = "tools/shard_imagenet.py"
MODES = {
    "square": {},
    "raw": {"encoding": "raw"},
    "shorter": {"resize": "shorter"},
    "none": {"resize": "none"},
}
PLAIN_VIEW = Augment(crop="center", flip=False, normalise="mean")


@pytest.fixture(scope="session")
def modes(demo_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return shards of the same images in each mode, and their source."""
    folder = tmp_path_factory.mktemp("modes")
    source = folder / "images"
    for split, count in (("train", 8), ("val", 3)):
        for of_class in sorted((demo_images / split).iterdir()):
            (source / split / of_class.name).mkdir(parents=True)
            for path in sorted(of_class.iterdir())[:count]:
                shutil.copy(path, source / split / of_class.name)
    made = {name: shard(source, folder / name, shard_mb=1, **options) for name, options in MODES.items()}
    return made | {"source": source}


def views(folder: Path) -> torch.Tensor:
    """Return the centres of the val images on the 0..255 scale, each image once."""
    mean = torch.tensor(load_manifest(folder).statistics.mean_rgb)[:, None, None]
    batches = list(open_loader(folder, "val", 8, PLAIN_VIEW))
    return torch.cat([batch.images[: batch.valid] for batch in batches]) + mean


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_verified_shown_and_loaded(modes: dict[str, Path], name: str) -> None:
    verify(modes[name], workers=1)
    manifest = load_manifest(modes[name])
    view, _ = Gallery(modes[name], "val", Preparation("crop_flip", 256, vars(manifest.statistics), None))[0]
    assert view.dtype == np.uint8 and view.shape == (224, 224, 3)
    assert len(views(modes[name])) == 30
    has_mean_image = manifest.image.resize == "square"
    batch = next(iter(open_loader(modes[name], "train", 32, "paper" if has_mean_image else "crop_flip")))
    assert batch.images.shape == (32, 3, 224, 224)


@pytest.mark.parametrize("name", ["raw", "none"])
def test_every_mode_gives_the_same_bytes_whatever_the_number_of_workers(
    modes: dict[str, Path], tmp_path: Path, name: str
) -> None:
    again = shard(modes["source"], tmp_path / "again", shard_mb=1, workers=1, **MODES[name])
    for path in modes[name].iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.fixture(scope="module")
def samplings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a JPEG of each sampling, all of one class, each named after its sampling."""
    folder, rng = tmp_path_factory.mktemp("samplings") / "images", random.Random(0)
    for name, factors in {**jpegs.COMMON, **jpegs.RARE}.items():
        for split in ("train", "val"):
            path = folder / split / "c" / f"{key(name)}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpegs.generate(rng, jpegs.Kind(factors)))
    return folder


def key(name: str) -> str:
    return re.sub("[ :]", "_", name)


def test_samplings_that_decoders_disagree_on_are_written_anew(samplings: Path, tmp_path: Path) -> None:
    folder = shard(samplings, tmp_path / "shards", resize="none", size=64)
    manifest = load_manifest(folder)
    repaired = {(entry["split"], Path(entry["source"]).stem): entry["action"] for entry in manifest.repaired}
    assert {name for _, name in repaired} == {key(name) for name in jpegs.RARE}
    assert repaired["val", "4_4_1"] == "sampling 1x4, 1x1, 1x1 to 4:2:0"
    verify(folder, workers=1)
    for split, crop in (("train", "random"), ("train", "resized"), ("val", "center"), ("val", "ten")):
        loader = open_loader(folder, split, 1, Augment(crop=crop, size=48, normalise="none"), training=split == "train")
        assert len(list(loader)) == len(jpegs.COMMON) + len(jpegs.RARE)


def test_rare_samplings_in_shards_of_an_earlier_version_are_named(
    samplings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Header, "common_sampling", True)
        patch.setattr("pipelines.sharding.members.check_data", lambda _: None)
        folder = shard(samplings, tmp_path / "shards", resize="none", size=64)
    rare, found = {key(name) for name in jpegs.RARE}, {}
    for split, crop in (("train", "random"), ("train", "resized"), ("val", "center"), ("val", "ten")):
        augment = Augment(crop=crop, size=48, normalise="none")
        loader = open_loader(folder, split, 1, augment, training=split == "train", on_error="skip")
        shown = sum(batch.valid for batch in loader)
        found[crop] = {skipped for _, skipped, _ in loader.skipped}
        assert shown == (len(jpegs.COMMON) if split == "val" else len(jpegs.COMMON) + len(jpegs.RARE))
        assert all("chroma sampling" in reason for _, _, reason in loader.skipped)
    assert found == dict.fromkeys(found, rare)
    with pytest.raises(DataError, match="chroma sampling"):
        verify(folder, workers=1)


def test_a_scan_that_is_damaged_is_written_anew(samplings: Path, tmp_path: Path) -> None:
    """Check that shards of damaged files pass --verify, so that loaders accept them."""
    for split in ("train", "val"):
        path = tmp_path / "images" / split / "c" / "0.jpg"
        path.parent.mkdir(parents=True)
        data = (samplings / split / "c" / "4_2_0.jpg").read_bytes()
        middle = len(data) * 3 // 4
        path.write_bytes(data[:middle] + data[middle + 40 :])
    folder = shard(tmp_path / "images", tmp_path / "shards", resize="none", size=64)
    assert [entry["action"][:23] for entry in load_manifest(folder).repaired] == ["damaged, written anew: "] * 2
    verify(folder, workers=1)


@pytest.mark.parametrize(("name", "mean_error", "median_error"), [("raw", 3, 2), ("shorter", 4, 3), ("none", 4, 3)])
def test_every_mode_shows_the_network_the_same_picture(
    modes: dict[str, Path], name: str, mean_error: float, median_error: float
) -> None:
    """Check within known differences: raw has no loss of quality 90; shorter and none may shift the centre by half a
    pixel; none is decoded once, and resized by DALI's bicubic filter instead of Pillow's."""
    error = (views(modes[name]) - views(modes["square"])).abs()
    assert error.mean() < mean_error and error.median() <= median_error


def test_raw_pixels_are_those_that_were_measured(modes: dict[str, Path]) -> None:
    """Check that the mean image of raw shards is that of their train images, and that raw and JPEG statistics agree."""
    shards = sorted(str(path) for path in modes["raw"].glob("train-*.tar"))
    total = np.zeros((256, 256, 3))
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        total += sample["npy"]
    np.testing.assert_allclose(np.load(modes["raw"] / "mean.npy"), total / 80, rtol=1e-6)
    assert load_manifest(modes["raw"]).statistics == load_manifest(modes["square"]).statistics


def test_statistics_without_a_mean_image(modes: dict[str, Path]) -> None:
    for name in ("shorter", "none"):
        statistics = load_manifest(modes[name]).statistics
        assert statistics.mean_image is None and not (modes[name] / "mean.npy").exists()
        assert statistics.images == 80
        wanted = load_manifest(modes["square"]).statistics.mean_rgb
        np.testing.assert_allclose(statistics.mean_rgb, wanted, atol=12)  # these include the sides that square cuts off


def test_none_keeps_the_bytes_of_healthy_files(modes: dict[str, Path]) -> None:
    """Check that only progressive files, of which the demo has some, change."""
    samples = {s.key: s.source for s in find_images(modes["source"], ("train",), 0).splits["train"]}
    repaired = {e["source"]: e["action"] for e in load_manifest(modes["none"]).repaired if e["split"] == "train"}
    assert 0 < len(repaired) < 20 and set(repaired.values()) == {"progressive to baseline"}
    for tar in sorted(modes["none"].glob("train-*.tar")):
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
            source = samples[sample["__key__"]]
            assert (sample["jpg"] == (modes["source"] / source).read_bytes()) == (source not in repaired)


def test_none_measures_as_many_images_as_it_is_told(modes: dict[str, Path], tmp_path: Path) -> None:
    few = load_manifest(shard(modes["source"], tmp_path / "few", resize="none", statistics_images=20)).statistics
    again = load_manifest(
        shard(modes["source"], tmp_path / "again", resize="none", statistics_images=20, shard_mb=0.3, workers=2)
    ).statistics
    assert few == again and few.images == 20, "whatever the shards"


@pytest.mark.parametrize("resize", ["square", "shorter", "none"])
def test_damaged_files_are_listed_and_the_rest_is_loaded(tmp_path: Path, resize: str) -> None:
    source = tmp_path / "in"
    for split in ("train", "val"):
        (source / split / "a").mkdir(parents=True)
        for number, (data, *_) in enumerate(USABLE.values()):
            (source / split / "a" / f"{number}.JPEG").write_bytes(data)
        (source / split / "a" / "bad.JPEG").write_bytes(PLAIN[:-40])
    manifest = load_manifest(shard(source, tmp_path / "out", resize=resize, max_pixels=1_000_000, max_bad=1))
    assert [Path(entry["source"]).name for entry in manifest.quarantined] == ["bad.JPEG"] * 2
    listed = {(Path(e["source"]).stem, e["action"]) for e in manifest.repaired if e["split"] == "val"}
    wanted = {
        (str(number), action)
        for number, (_, when_resized, when_not, _) in enumerate(USABLE.values())
        for action in ((when_not or []) if resize == "none" else when_resized)
    }
    assert listed == wanted
    verify(tmp_path / "out", workers=1)
    assert len(views(tmp_path / "out")) == len(USABLE)


@pytest.mark.parametrize("name", ["raw", "shorter", "none"])
def test_every_mode_evaluates_each_image_once(numbered_images: Path, tmp_path: Path, name: str) -> None:
    """Check with PNGs of 48 x 40: under none they become JPEGs, which the loader enlarges."""
    out = shard(numbered_images, tmp_path / "out", shard_mb=1, **MODES[name])
    batches = [batch for rank in range(2) for batch in open_loader(out, "val", 8, rank=rank, world_size=2)]
    labels = [label for batch in batches for label in batch.labels[: batch.valid].tolist()]
    assert sorted(labels) == list(range(NUMBERED_IMAGES))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--encoding", "raw", "--resize", "none"], "one shape for all"),
        (["--encoding", "raw", "--resize", "shorter"], "one shape for all"),
        (["--resize", "stretch"], "stretch"),
        (["--max-pixels", "999999999999"], "--max-pixels"),
        (["--statistics-images", "0"], "--statistics-images"),
    ],
)
def test_modes_that_make_no_sense_end_with_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert_refused(script(TOOL, tmp_path, tmp_path / "out", *arguments), words, code=2)


def test_a_manifest_of_an_unknown_mode_is_refused(modes: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(modes["raw"], tmp_path / "copy")
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    content["image"]["encoding"] = "qoi"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="qoi images"):
        load_manifest(copy)


def test_the_bound_of_pixels_is_an_option(tmp_path: Path, modes: dict[str, Path]) -> None:
    sizes = [read_file(path).pixels.shape[1::-1] for path in (modes["source"] / "train").rglob("*.JPEG")]
    bound = sorted(width * height for width, height in sizes)[40]
    manifest = load_manifest(shard(modes["source"], tmp_path / "out", max_pixels=bound, max_bad=1))
    small = sum(width * height <= bound for width, height in sizes)
    assert manifest.split("train").samples == small < 80
    assert all(f"more than the {bound} allowed" in entry["reason"] for entry in manifest.quarantined)
