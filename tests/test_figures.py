"""Tests of the pictures of a real run, each at print size, and of the README's promises for the paper's net."""

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from alexnet import AlexNet
from alexnet.figures import (
    Shown,
    compared_curves,
    confusion_matrix,
    conv1_filters,
    exciting_patches,
    reliability_diagram,
    saliency,
    training_curves,
)
from alexnet.metrics import BINS
from alexnet.mistakes import COLUMNS, SIDE, read_mistakes
from alexnet.report.png import description
from alexnet.series import of_epochs, of_steps
from pipelines import load_manifest
from pipelines.preprocess import Preparation
from pipelines.shards.gallery import Gallery
from tests.conftest import assert_refused, script

PICTURES = ("filters", "activations", "answers", "saliency", "patches", "features", "neighbours", "mistakes", "curves")


def test_visualize_draws_a_run(seen: Path) -> None:
    said = (seen / "visualize.txt").read_text()
    for name in PICTURES:
        path = seen / "pictures" / f"{name}.png"
        pixels = matplotlib.image.imread(path)
        assert str(path) in said
        assert pixels.shape[1] >= 1500 and pixels.std() > 0.05, f"{name} is small or blank"
        assert name == "curves" or description(path).endswith("."), f"{name} says nothing worth noticing"
    mistakes = read_mistakes(seen)
    assert mistakes and all(one.true != one.predicted for one in mistakes)
    assert [one.probability for one in mistakes] == sorted((one.probability for one in mistakes), reverse=True)
    sheet = matplotlib.image.imread(seen / "pictures" / "thumbnails.png")
    assert sheet.shape[:2] == (-(-len(mistakes) // COLUMNS) * SIDE, COLUMNS * SIDE)


def test_visualize_refuses_what_it_cannot_read(run_folder: Path, demo_shards: Path, numbered_shards: Path) -> None:
    line = ("tools/visualize.py", run_folder / "best.pt", "--data")
    assert_refused(script(*line, demo_shards), "was trained on 101 classes", "has 10")
    assert_refused(script(*line, numbered_shards, "--images", run_folder / "none.jpg"), "none.jpg")


def step_line(step: int, loss: float, speed: float = 100.0, wait: float = 0.0) -> dict[str, Any]:
    rest = {"rate": 0.1, "memory_gib": 1.0, "images_per_second": speed, "data_wait": wait}
    return {"kind": "step", "step": step, "epoch": step / 31, "loss": loss, **rest}


def test_a_point_of_a_curve_is_a_mean_over_as_many_steps_as_the_others() -> None:
    """Check that an interval of one batch, at the end of an epoch, is no point of its own."""
    lines = [step_line(10, 0.3), step_line(20, 0.2), step_line(30, 0.2), step_line(31, 0.9)]
    lines += [step_line(41, 0.1), step_line(51, 0.1), step_line(61, 0.1), step_line(62, 0.5)]
    curve = of_steps(lines, "loss")
    assert len(curve.values) == 6 and curve.values.max() < 0.31
    assert curve.values.mean() == pytest.approx((30 * 0.7 / 3 + 0.9 + 30 * 0.1 + 0.5) / 62), "nothing is lost"
    assert (np.diff(curve.epochs) == pytest.approx(2 / 6)) and curve.epochs[0] == pytest.approx(1 / 6)

    equal = of_steps([step_line(10, 3.0), step_line(20, 2.0), step_line(30, 1.0)], "loss")
    assert equal.values.tolist() == pytest.approx([3, 2, 1]) and equal.smoothed() is None


def test_rates_and_shares_are_means_over_time() -> None:
    lines = [step_line(10, 1.0, speed=100, wait=0.0), step_line(12, 1.0, speed=10, wait=0.9)]
    assert of_steps(lines, "images_per_second").values == pytest.approx([12 / (10 / 100 + 2 / 10)])
    assert of_steps(lines, "data_wait").values == pytest.approx([0.9 * (2 / 10) / (10 / 100 + 2 / 10)])


def test_a_smooth_line_lies_over_the_measured_one_and_keeps_its_mean() -> None:
    noise = np.random.default_rng(0).normal(2, 0.5, 200)
    curve = of_steps([step_line(10 * i + 10, float(loss)) for i, loss in enumerate(noise)], "loss")
    smooth = curve.smoothed()
    assert smooth is not None and smooth.values.std() < 0.5 * curve.values.std()
    assert smooth.values.mean() == pytest.approx(curve.values.mean(), rel=0.02)
    pale, strong = training_curves([step_line(10 * i + 10, float(loss)) for i, loss in enumerate(noise)]).axes[0].lines
    assert pale.get_alpha() == 0.3 and strong.get_alpha() is None


def test_a_run_of_one_epoch_draws_something() -> None:
    """Check that a single point is marked: a line of one point would not be seen."""
    epoch = {"kind": "epoch", "epoch": 1, "top1": 0.5, "top5": 0.9, "f1": 0.4, "loss": 1.2, "train_top1": 0.6}
    figure = training_curves([step_line(8, 1.0, wait=0.01), epoch])
    for axes in figure.axes:
        assert all(line.get_marker() not in (None, "None") for line in axes.lines) and axes.lines, axes.get_title()
    labels = [[line.get_label() for line in axes.lines] for axes in figure.axes]
    assert labels[0] == ["training", "validation"] and "top1 of train images" in labels[1]
    assert figure.axes[4].get_ylim()[1] < 0.05, "a wait of a hundredth is seen, on its own scale"


def test_curves_do_without_what_a_log_lacks() -> None:
    """Check logs of earlier versions, of few classes and of no steps."""
    assert not len(of_steps([], "loss").values) and not len(of_epochs([{"kind": "epoch", "epoch": 1}], "top5").values)
    figure = compared_curves({"a": [], "b": [step_line(5, 1.0), {"kind": "epoch", "epoch": 1, "top1": 0.5}]})
    assert [line.get_label() for line in figure.axes[1].lines] == ["b top1"]


def test_saliency_has_one_scale_in_a_row_and_does_not_colour_noise() -> None:
    picture, noise = np.full((24, 24, 3), 128, np.uint8), np.random.default_rng(0).random((24, 24))
    images = [Shown(picture, name) for name in ("much", "nothing")]
    figure = saliency(images, [3 * noise, 0.01 * noise], [noise, 0.001 * noise])
    scales = [axes.images[-1].get_clim() for axes in figure.axes[2:6]]
    assert scales[0] == scales[1] == pytest.approx((0, 3 * noise.max())) and scales[2] == scales[3] == (0, 100)
    assert figure.axes[5].images[-1].get_array().max() < 0.2, "of 100, so it is dark"
    bars = [axes.get_ylabel() for axes in figure.axes[6:]]
    assert bars[0] == "fall of the logit" and bars[1].startswith("% of the row's highest")
    assert "'much'" in figure.get_label() and "least for 'nothing'" in figure.get_label()
    alone = saliency(images[1:], [0.01 * noise], [noise])
    assert alone.axes[1].images[-1].get_clim() == (0, 1), "a logit that changes by a hundredth is noise"


def test_blank_patches_are_marked() -> None:
    rng = np.random.default_rng(0)
    seen = [rng.integers(256, size=(11, 11, 3), dtype=np.uint8) for _ in range(3)]
    white = np.full((11, 11, 3), 255, np.uint8)
    figure = exciting_patches({"conv1": [(7, [*seen, white]), (9, seen[:2])], "conv2": []}, 50)
    assert [text.get_text() for text in figure.axes[0].texts] == ["plain", "–", "–"]
    note = figure.axes[-1].texts[0].get_text()
    assert "plain: a patch of a single colour" in note and "is zero\nin all other images" in note
    assert figure.axes[1].get_title() == "conv2: no channel is above zero"
    assert "empty areas: 1." in figure.get_label()


def test_bins_of_few_images_are_pale_and_have_wide_intervals() -> None:
    images = np.zeros(BINS, int)
    images[[3, 14]] = 2, 500
    accuracy = np.where(images > 0, 0.5, 0.0)
    curve = reliability_diagram({"images": images, "confidence": accuracy, "accuracy": accuracy}, 0.1).axes[0]
    assert sorted(bar.get_facecolor()[3] for bar in curve.patches) == [0.2, 0.75]
    assert "of fewer than 10 images" in [text.get_text() for text in curve.get_legend().get_texts()]


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
    copy = Image.open(folder / "large.webp")
    assert copy.size == (500, 250) and copy.mode == "RGB" and (folder / "large.webp").stat().st_size < 500 * 250 * 1.2
    assert len(np.unique(np.asarray(copy).reshape(-1, 3), axis=0)) > 1000  # no palette
    assert_refused(script("benchmarks/plots/small_copies.py", source, tmp_path / "none"), "last a folder", code=2)
