"""Predictions for pictures from outside."""

from pathlib import Path

import pytest

from pipelines import DataError, open_loader
from pipelines.images import read_file
from pipelines.preprocess import Preparation
from tests.conftest import assert_refused, script
from tools.sources import find_images
from train import mean_image


def test_predict_answers_for_good_pictures_and_names_bad_ones(trained: Path, demo_images: Path, tmp_path: Path) -> None:
    picture, broken = next((demo_images / "val").rglob("*.JPEG")), tmp_path / "broken.jpg"
    broken.write_text("not a picture")
    done = script("tools/predict.py", trained / "best.pt", picture, broken)
    assert_refused(done, f"{broken}: it is not an image", "1 of 2 pictures")
    lines = done.stdout.splitlines()
    assert lines[0] == str(picture) and len(lines) == 6, "the good one is answered all the same"
    probabilities = [float(line.split()[0]) for line in lines[1:]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 100.1


@pytest.mark.parametrize(("augment", "deviation"), [("crop_flip", 1), ("paper", 60)])
def test_predict_prepares_a_picture_as_the_loader_does(
    demo_shards: Path, demo_images: Path, augment: str, deviation: float
) -> None:
    loader = open_loader(demo_shards, "val", 8, augment)
    preparation = Preparation(augment, 256, vars(loader.manifest.statistics), mean_image(loader.manifest))
    images = next(iter(loader)).images
    for sample, image in zip(find_images(demo_images, ("val",), 0).splits["val"], images, strict=False):
        ours = preparation.tensor(preparation.view(read_file(demo_images / sample.source).pixels))
        assert (ours - image).abs().mean() < 0.1 * deviation, "what JPEG at quality 90 loses"
    with pytest.raises(DataError, match="lacks the mean image"):
        Preparation("paper", 256, vars(loader.manifest.statistics), None)
