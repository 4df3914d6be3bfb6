"""Tests that turbo's compiled part gives the same bytes as its Python code, and nothing that Python would refuse."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Augment, load_manifest, open_loader
from pipelines.augment import Jitter
from pipelines.shards.records import Records
from pipelines.turbo.decode import Decoder
from pipelines.turbo.native import Worker, has_native
from pipelines.turbo.randomness import draw
from pipelines.turbo.renderer import Renderer
from tests import jpegs, sequences
from tests.conftest import shard

needs_native = pytest.mark.skipif(not has_native(), reason="needs pipelines/turbo/native.c built")

KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "whole chroma": {"subsampling": 0},
    "half chroma": {"subsampling": 1},
    "restarts": {"restart_marker_blocks": 7},
    "a restart a block": {"restart_marker_blocks": 1},
    "a restart a row": {"restart_marker_rows": 1},
    "tables of its own": {"optimize": True},
    "all there is": {"quality": 100},
    "little": {"quality": 3},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of original files, in the sizes and kinds of JPEG that photographs have."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(375, 500), (500, 333), (256, 256), (257, 641), (1200, 900)]):
        rough = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        smooth = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (height, width, 3)) * np.linspace(0, 1, width)[:, None]
        picture = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        for kind, (name, options) in enumerate(KINDS.items()):
            path = folder / "images" / "train" / f"c{kind}" / f"{number}_{name}.jpg".replace(" ", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **{"quality": 90, **options})
        picture.convert("L").save(path.with_name(f"{number}_grey.jpg"))
    return shard(folder / "images", folder / "shards", resize="none", splits=("train",))


@pytest.fixture(scope="module")
def raw(demo_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(demo_images, tmp_path_factory.mktemp("raw") / "shards", encoding="raw", per_class=5)


def batches(folder: Path, augment: Augment, **options) -> list:
    loader = open_loader(folder, "train", 7, augment, backend="turbo", seed=3, **options)
    return [(batch.images, batch.labels) for _ in range(2) for batch in loader]


def test_it_is_built_where_it_can_be() -> None:
    """Catch a missing build, which would halve turbo's speed without a notice."""
    if not shutil.which("cc") or not Path("/usr/include/jpeglib.h").is_file():
        pytest.skip("no C compiler, or no libjpeg to build with")
    assert has_native(), "pip install --editable . builds it"


@needs_native
@pytest.mark.parametrize("crop", ["random", "resized", "center"])
@pytest.mark.parametrize("kind", ["odd", "demo", "raw"])
def test_batches_are_those_of_the_python_code(
    odd: Path, demo_shards: Path, raw: Path, crop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"odd": odd, "demo": demo_shards, "raw": raw}[kind]
    augment = Augment(crop=crop, normalise="none", size=223 if kind == "raw" else 224)
    if kind == "demo":
        normalise: Any = "mean_std" if crop == "resized" else "mean_image"
        augment = replace(augment, jitter=Jitter(0.4, 0.4, 0.4, 0.1), lighting=0.1, normalise=normalise)
    natively = batches(folder, augment)
    monkeypatch.setattr("pipelines.turbo.native.has_native", lambda: False)
    for (images, labels), (expected, others) in zip(natively, batches(folder, augment), strict=True):
        assert torch.equal(labels, others)
        assert torch.equal(images, expected)


@needs_native
@pytest.mark.parametrize(
    ("kind", "crop"), [("odd", "random"), ("odd", "resized"), ("raw", "random"), ("raw", "center")]
)
def test_healthy_samples_do_without_python(
    odd: Path, raw: Path, kind: str, crop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_):
        raise AssertionError("left to Python")

    monkeypatch.setattr(Records, "read", read)
    assert len(batches({"odd": odd, "raw": raw}[kind], Augment(crop=crop, normalise="none"))) == 14


@needs_native
@pytest.mark.parametrize("size", [20, 60, 224])
def test_any_part_has_the_pixels_of_a_whole_decode(odd: Path, size: int) -> None:
    """Check each decodable size, and the edges of a part too, whose chroma is interpolated from pixels beyond it."""
    manifest, augment = load_manifest(odd), Augment(crop="resized", size=size, scale=(0.0001, 1), ratio=(0.1, 10))
    records, decoder, views = Records(manifest, "train"), Decoder(), Renderer(manifest, augment)
    worker = Worker(records, manifest, augment, 1)
    for number in range(len(records)):
        data, draws = records.read(number).data, draw(number, 0, augment, first=0, count=12)
        height, width = decoder.size(data, manifest.image)
        for row in range(12):
            one = slice(row, row + 1)
            out = np.zeros((1, size, size, 3), np.uint8)
            (sample,) = samples = worker.render([number], draws.crop_draws[one], draws.flips[one], out)
            assert sample["done"] and sample["label"] == records.read(number).label
            box, _ = views._choose(height, width, draws.at(row)) or pytest.fail("one part is all that is needed")
            expected = decoder.part(data, (height, width), box, size)[..., :3]
            found = next((pixels for _, pixels in worker.parts(samples)), out[0])[..., :3]
            np.testing.assert_array_equal(found, expected[:, ::-1] if draws.flips[row] else expected)


@needs_native
def test_no_table_comes_from_the_file_before(odd: Path) -> None:
    """Check that a file that lacks a table is refused, although libjpeg keeps the tables of the previous file."""
    manifest, rng = load_manifest(odd), random.Random(0)
    augment = Augment(crop="center", size=64, flip=False, normalise="none")
    whole = jpegs.generate(rng, jpegs.Kind(tables="shuffled", quality=50))
    file = os.memfd_create("samples")
    for lacking in (b"\xff\xdb", b"\xff\xc4"):
        place = whole.index(lacking)
        comment = whole[: place + 1] + b"\xfe" + whole[place + 2 :]
        renumbered = whole[: place + 4] + bytes([whole[place + 4] ^ 2]) + whole[place + 5 :]
        for bad in (comment, renumbered):
            manifest = replace(manifest, image=replace(manifest.image, size=64))
            worker = Worker(sequences.Records([whole, bad, whole], file), manifest, augment, 3)
            out = np.zeros((3, 64, 64, 3), np.uint8)
            draws = draw(0, 0, augment, first=0, count=3)
            assert worker.render(range(3), draws.crop_draws, draws.flips, out)["done"].tolist() == [1, 0, 1]
            np.testing.assert_array_equal(out[0], out[2])
            with pytest.raises(ValueError, match=r"lacks a table|was not defined"):
                Decoder.size(bad, manifest.image)
