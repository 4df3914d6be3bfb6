"""Tests of the pictures of a real run, each at print size, and of the README's promises for the paper's net."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from alexnet import AlexNet
from alexnet.figures import confusion_matrix, conv1_filters
from pipelines import load_manifest
from pipelines.preprocess import Preparation
from pipelines.shards.gallery import Gallery
from tests.conftest import assert_refused, script

PICTURES = ("filters", "activations", "answers", "saliency", "patches", "features", "neighbours", "curves")


def test_visualize_draws_a_run(seen: Path) -> None:
    said = (seen / "visualize.txt").read_text()
    for name in PICTURES:
        path = seen / "pictures" / f"{name}.png"
        pixels = matplotlib.image.imread(path)
        assert str(path) in said
        assert pixels.shape[1] >= 1500 and pixels.std() > 0.05, f"{name} is small or blank"


def test_visualize_refuses_what_it_cannot_read(run_folder: Path, demo_shards: Path, numbered_shards: Path) -> None:
    line = ("tools/visualize.py", run_folder / "best.pt", "--data")
    assert_refused(script(*line, demo_shards), "was trained on 101 classes", "has 10")
    assert_refused(script(*line, numbered_shards, "--images", run_folder / "none.jpg"), "none.jpg")


@pytest.mark.parametrize(("variant", "panels"), [("paper", 2), ("bn", 1)])
def test_kernels_stand_by_group(variant: str, panels: int) -> None:
    assert len(conv1_filters(AlexNet(variant, 2)).axes) == panels


def test_many_classes_are_drawn_as_their_most_confused_pairs() -> None:
    cells = np.diag(np.full(1000, 50))
    cells[7, 9] = 12
    axes = confusion_matrix(cells, [f"class {i}" for i in range(1000)]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 7 → class 9"]


def test_a_gallery_shows_various_classes_and_the_pixels_of_the_loader(demo_shards: Path) -> None:
    manifest = load_manifest(demo_shards)
    gallery = Gallery(demo_shards, "val", Preparation("crop_flip", 256, vars(manifest.statistics), None))
    chosen = gallery.various(8)
    assert len({gallery[number][1] for number in chosen}) == 8 and chosen == gallery.various(8)
    assert gallery[0][0].shape == (224, 224, 3)


def test_small_copies_are_small(tmp_path: Path) -> None:
    source, folder = tmp_path / "large.png", tmp_path / "docs"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(1200, 2400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source)
    done = script("benchmarks/plots/small_copies.py", source, folder, "--width", 500)
    assert done.returncode == 0, done.stderr
    copy = Image.open(folder / "large.png")
    assert copy.size == (500, 250) and (folder / "large.png").stat().st_size < 500 * 250 * 1.2
    assert_refused(script("benchmarks/plots/small_copies.py", source, tmp_path / "none"), "last a folder", code=2)
