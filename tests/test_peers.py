"""Tests that each peer of the loader benchmark reads all the images, one epoch per request."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torchvision.transforms import v2

from benchmarks.peers.ramps import check_epochs, write_ramps
from benchmarks.peers.serve import PeerSettings
from tests.conftest import PATIENCE, ROOT

BATCH_SIZE = 16
NOISY = """
import os
from benchmarks.peers.serve import serve

def prepare(settings):
    os.system("echo from a child")
    print("from Python")
    return [(None, range(settings.batch_size)), (None, range(3))], f"{settings.crop} {settings.size}"

serve(prepare)
"""


@pytest.fixture(scope="module")
def images(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's train images as CLASS/KEY.jpg."""
    folder = tmp_path_factory.mktemp("peers") / "images"
    tars = sorted(str(path) for path in demo_shards.glob("train-*.tar"))
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        path = folder / sample["cls"].decode() / f"{sample['__key__']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["jpg"])
    return folder


def epochs(script: Path, settings: dict, count: int) -> tuple[dict, list[dict]]:
    """Return what the peer prints when it is ready, and after each epoch."""
    done = subprocess.run(
        [sys.executable, script, json.dumps(settings)],
        input="epoch\n" * count,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ready, *answers = map(json.loads, done.stdout.splitlines())
    return ready, answers


def given(images: Path, shards: Path, work: Path, crop: str = "random") -> dict:
    folders = {"images": str(images), "shards": str(shards), "work": str(work)}
    return folders | {"crop": crop, "size": 224, "batch_size": BATCH_SIZE, "threads": 2}


def test_what_a_library_prints_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(NOISY)
    ready, answers = epochs(script, given(tmp_path, tmp_path, tmp_path), 2)
    assert ready == {"batch": "random 224", "pixels": None}
    assert [answer["images"] for answer in answers] == [BATCH_SIZE + 3] * 2
    assert all(answer["seconds"] > 0 for answer in answers)


def test_a_half_written_format_is_written_again(tmp_path: Path) -> None:
    settings = PeerSettings(
        tmp_path, tmp_path, tmp_path / "work", crop="random", size=224, batch_size=BATCH_SIZE, threads=2
    )

    def stopped(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        folder.mkdir()
        (folder / "all").touch()

    with pytest.raises(KeyboardInterrupt):
        settings.once("chunks", stopped)
    assert (settings.once("chunks", whole) / "all").exists()
    assert (settings.once("chunks", stopped) / "all").exists()  # not written again


def crops(files: list[tuple[str, int]], seed: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yield an epoch of random resized crops as a loader does that gives the right ones: N,3,224,224 and N numbers."""
    draws = random.Random(seed)
    transform = v2.RandomResizedCrop(224, antialias=False)
    draws.shuffle(files := [*files])
    for start in range(0, len(files), BATCH_SIZE):
        part = files[start : start + BATCH_SIZE]
        images = [transform(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)) for path, _ in part]
        yield torch.stack(images).numpy() / np.float32(255), [number for _, number in part]


def test_ramps_tell_right_batches_from_wrong_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = write_ramps(tmp_path)
    first, second = ([*crops(files, seed)] for seed in (0, 1))
    whole = [(Image.open(path), number) for path, number in files]

    def check(*epochs: list) -> dict:
        following = iter(epochs)

        class Loader:
            def __iter__(self) -> Iterator:
                return iter(next(following))

        return check_epochs(Loader(), BATCH_SIZE, len(epochs))

    found = check(first, second)
    assert found["compared"] == 64 and found["wrong"] == 0 and found["mean_difference"] < 1
    with pytest.raises(ValueError, match="the same order"):
        check(first, first)
    with pytest.raises(ValueError, match="has the pixels of image"):
        check([(images, numbers[1:] + numbers[:1]) for images, numbers in first])
    with pytest.raises(ValueError, match="an epoch of 32 images in batches of 16 has"):
        check([first[0], first[0]])
    tiny = np.stack([np.asarray(image.resize((8, 8)).crop((3, 3, 4, 4)).resize((9, 9))) for image, _ in whole])
    tiny = tiny.transpose(0, 3, 1, 2) / np.float32(255)
    with pytest.raises(ValueError, match="a crop of image"):
        check([(tiny[:16], [*range(16)]), (tiny[16:], [*range(16, 32)])])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "crop"),
    [
        ("imagefolder", "torchvision", "random"),
        ("tensor_v2", "torchvision", "resized"),
        ("webdataset", "webdataset", "random"),
        ("litdata", "litdata", "random"),
        ("mosaicml", "streaming", "random"),
        ("timm", "timm", "random"),
        ("timm", "timm", "resized"),
        ("spdl", "spdl", "random"),
        ("spdl", "spdl", "resized"),
        ("dali_example", "nvidia.dali", "random"),
        ("dali_example", "nvidia.dali", "resized"),
        ("ffcv", "ffcv", "random"),
        ("ffcv", "ffcv", "resized"),
        ("turboloader", "turboloader", "resized"),
    ],
)
def test_a_peer_loads_every_image_each_epoch(
    name: str, package: str, crop: str, images: Path, demo_shards: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package) is None or (name == "spdl" and find_library("avdevice") is None):
        pytest.skip(f"{package} or what it needs is not installed: benchmarks/peers/README.md")
    settings = given(images, demo_shards, tmp_path / "work", crop)
    ready, answers = epochs(ROOT / f"benchmarks/peers/loader_{name}.py", settings, 2)
    assert ready["batch"].startswith(("uint8", "float32"))
    total = sum(1 for _ in images.glob("*/*.jpg"))
    for answer in answers:  # each of two workers may drop or fill its last batch
        assert total - 2 * BATCH_SIZE < answer["images"] < total + 2 * BATCH_SIZE
        assert answer["seconds"] > 0
