"""The compiled part of turbo: the same bytes as the Python it stands for, and nothing that Python would refuse."""

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
from pipelines.crops import Box
from pipelines.decode import Decoder
from pipelines.native import Worker, has_native
from pipelines.records import Records
from tests.conftest import shard

needs_native = pytest.mark.skipif(not has_native(), reason="needs pipelines/native.c built")

KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "whole chroma": {"subsampling": 0},
    "half chroma": {"subsampling": 1},
    "restarts": {"restart_marker_blocks": 7},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of photographs' sizes and kinds of JPEG, as they came."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(375, 500), (500, 333), (256, 256), (257, 641), (1200, 900)]):
        rough = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        for kind, (name, options) in enumerate(KINDS.items()):
            path = folder / "images" / "train" / f"c{kind}" / f"{number}_{name}.jpg".replace(" ", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90, **options)
        picture.convert("L").save(path.with_name(f"{number}_grey.jpg"))
    return shard(folder / "images", folder / "shards", resize="none", splits=("train",))


def batches(folder: Path, augment: Augment, **options) -> list:
    loader = open_loader(folder, "train", 7, augment, backend="turbo", seed=3, **options)
    return [(batch.images, batch.labels) for _ in range(2) for batch in loader]


def test_it_is_built_where_it_can_be() -> None:
    """Or nobody would notice that turbo has lost half of its speed."""
    if not shutil.which("cc") or not Path("/usr/include/jpeglib.h").is_file():
        pytest.skip("no C compiler, or no libjpeg to build with")
    assert has_native(), "pip install --editable . builds it"


@needs_native
@pytest.mark.parametrize("crop", ["random", "resized", "center"])
@pytest.mark.parametrize("kind", ["odd", "demo"])
def test_batches_are_those_of_the_python_code(
    odd: Path, demo_shards: Path, crop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, augment = {"odd": odd, "demo": demo_shards}[kind], Augment(crop=crop, normalise="none")
    if kind == "demo":
        normalise: Any = "mean_std" if crop == "resized" else "mean_image"
        augment = replace(augment, jitter=Jitter(0.4, 0.4, 0.4, 0.1), lighting=0.1, normalise=normalise)
    natively = batches(folder, augment)
    monkeypatch.setattr("pipelines.turbo.has_native", lambda: False)
    for (images, labels), (expected, others) in zip(natively, batches(folder, augment), strict=True):
        assert torch.equal(labels, others)
        assert torch.equal(images, expected)


@needs_native
@pytest.mark.parametrize("crop", ["random", "resized"])
def test_healthy_samples_do_without_python(odd: Path, crop, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_):
        raise AssertionError("left to Python")

    monkeypatch.setattr(Records, "read", read)
    assert len(batches(odd, Augment(crop=crop, normalise="none"))) == 8


@needs_native
def test_any_part_has_the_pixels_of_a_whole_decode(odd: Path) -> None:
    """Its edges too, where chroma is interpolated from beyond them; at every size that a JPEG can be decoded at."""
    records, decoder, rng = Records(load_manifest(odd), "train"), Decoder(), np.random.default_rng(1)
    worker = Worker(records, 1)
    for number in range(len(records)):
        height, width = decoder.size(records.read(number).data)
        for _ in range(12):
            h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
            box = Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
            flip, least = bool(rng.integers(2)), int(rng.choice([20, 60, 224]))
            expected = decoder.part(records.read(number).data, height, width, box, least)
            (sample,) = worker.read([number])
            assert (sample.height, sample.width, sample.label) == (height, width, records.read(number).label)
            out = np.zeros((1, least, least, 3), np.uint8)
            (found,) = worker.decode([box], [flip], out)
            assert found is not None
            np.testing.assert_array_equal(found[..., :3], (expected[:, ::-1] if flip else expected)[..., :3])
