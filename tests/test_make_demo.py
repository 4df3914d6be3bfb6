"""Tests of what training, sharding and the docs rely on in the drawn and the photographed demonstration folders."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from sklearn.ensemble import RandomForestClassifier

from pipelines import DataError
from tools.make_demo import CLASSES, lay_out_elpv, make_demo

FOUR_TWO_ZERO = 2  # Pillow's number for it


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def colours(split: Path) -> tuple[np.ndarray, list[str]]:
    """Return N,6 mean and standard deviation of RGB, and the wnids."""
    paths = sorted(split.rglob("*.JPEG"))
    images = [np.asarray(Image.open(path).convert("RGB"))[::4, ::4] for path in paths]
    features = [np.concatenate([image.mean((0, 1)), image.std((0, 1))]) for image in images]
    return np.stack(features), [path.parent.name for path in paths]


def test_the_same_seed_draws_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        make_demo(tmp_path / str(workers), train=20, val=10, seed=3, workers=workers)
    make_demo(tmp_path / "other", train=20, val=10, seed=4)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    assert files_of(tmp_path / "1") != files_of(tmp_path / "other")


def test_the_folder_has_the_shape_of_imagenet(demo_images: Path) -> None:
    for split, counts in (("train", {40}), ("val", {20, 21})):
        found = Counter(path.parent.name for path in (demo_images / split).rglob("*.JPEG"))
        assert set(found) == set(CLASSES) and set(found.values()) == counts
    assert (demo_images / "val/n90000001/demo_val_00000012.JPEG").is_file()
    assert (demo_images / "train/n90000001/n90000001_12.JPEG").is_file()
    lines = (demo_images / "synset_words.txt").read_text().splitlines()
    assert lines[0] == "n90000000 zebra stripes"
    assert [line.split(" ")[0] for line in lines] == list(CLASSES)


def test_no_validation_image_was_trained_on(demo_images: Path) -> None:
    contents = files_of(demo_images / "train") | files_of(demo_images / "val")
    assert len(set(contents.values())) == len(contents) == 603


def test_files_vary_as_photographs_do(demo_images: Path) -> None:
    """Check for grey, progressive, upright and small files, so that a pipeline fails here before it meets ImageNet."""
    images = [JpegImageFile(path) for path in sorted((demo_images / "train").rglob("*.JPEG"))]
    assert all(200 <= min(image.size) <= 500 for image in images)
    assert 0.5 < sum(image.width > image.height for image in images) / len(images) < 0.85
    assert any(image.width < image.height for image in images)
    # Of 400 files 3 % are grey and 5 % progressive: within four standard deviations.
    assert 0 < sum(image.mode == "L" for image in images) <= 26
    assert 2 <= sum("progressive" in image.info for image in images) <= 38
    assert {get_sampling(image) for image in images if image.mode == "RGB"} == {FOUR_TWO_ZERO}
    assert len({tuple(image.quantization[0]) for image in images}) > 5


def test_colour_does_not_tell_the_class(demo_images: Path) -> None:
    """Check that colours predict the class badly, or networks blind to shape would pass as accurate; chance is 0.1."""
    (train, train_wnids), (val, val_wnids) = colours(demo_images / "train"), colours(demo_images / "val")
    for seen, limit in ((slice(3), 0.3), (slice(6), 0.4)):  # the mean alone, then the contrast too
        forest = RandomForestClassifier(100, random_state=0).fit(train[:, seen], train_wnids)
        assert forest.score(val[:, seen], val_wnids) <= limit


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not empty: choose another folder"):
        make_demo(tmp_path)
    assert files_of(tmp_path) == {"mine.txt": b"keep me"}


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    left_over = tmp_path / "demo.partial/train/n90000000/torn.JPEG"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"half an image")
    make_demo(tmp_path / "demo", train=10, val=10)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert not list(tmp_path.rglob("torn.JPEG"))


@pytest.mark.parametrize(("option", "value"), [("--train", "9"), ("--val", "9"), ("--seed", "-1"), ("--workers", "0")])
def test_a_count_out_of_range_is_a_wrong_command_line(option: str, value: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.make_demo", str(tmp_path / "demo"), option, value]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{option} {value}: at least" in ended.stderr
    assert not (tmp_path / "demo").exists()


def test_every_solar_cell_is_in_one_split_and_classes_are_stratified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check with a package of the same form as the real one, whose photographs may not be kept here."""
    package = tmp_path / "elpv_dataset"
    (package / "data/images").mkdir(parents=True)
    (package / "__init__.py").touch()
    rows = [f"images/cell{i:04}.png  {i % 4 / 3}  {'mono' if i % 5 < 2 else 'poly'}" for i in range(200)]
    (package / "data/labels.csv").write_text("\n".join(rows) + "\n")
    for row in rows:
        Image.new("L", (300, 300)).save(package / "data" / row.split()[0])
    monkeypatch.syspath_prepend(tmp_path)
    lay_out_elpv(tmp_path / "solar")
    paths = list((tmp_path / "solar").rglob("*.png"))
    counts = Counter(str(path.parent.relative_to(tmp_path / "solar")) for path in paths)
    assert len({path.name for path in paths}) == 200
    assert counts == {"train/mono": 60, "val/mono": 20, "train/poly": 90, "val/poly": 30}
    words = (tmp_path / "solar/synset_words.txt").read_text()
    assert words == "mono monocrystalline solar cell\npoly polycrystalline solar cell\n"
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out


def test_missing_photographs_name_the_command_that_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"run pip install elpv-dataset==1\.0\.0\.post1"):
        lay_out_elpv(tmp_path / "solar")
