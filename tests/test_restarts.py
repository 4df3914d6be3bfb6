"""Tests that restart markers in shards keep the pixels, and that turbo reads only the parts that a crop shows."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pipelines import Augment, DataError, load_manifest, open_loader
from pipelines.images.jpeg import inspect
from pipelines.sharding.members import make_member
from pipelines.shards.records import Records
from pipelines.turbo.native import has_native
from pipelines.turbo.restart_markers import INTERVAL, with_restarts
from tests import jpegs
from tests.conftest import assert_refused, script, shard, without_checksums
from tests.test_images import MAX_PIXELS, NONE, SQUARE, exif, picture, saved

pytestmark = pytest.mark.skipif(not has_native(), reason="needs pipelines/turbo/restarts.c built")

JPEGS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "tables of its own": {"optimize": True},
    "other restarts": {"restart_marker_rows": 1},
    "metadata": {"comment": b"a word", "exif": exif(1)},
}


def pixels(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, fastdct=False, fastupsample=False)


def markers(jpeg: bytes) -> int:
    return sum(jpeg.count(bytes([0xFF, 0xD0 + number])) for number in range(8))


@pytest.mark.parametrize("name", [*JPEGS, "grey"])
def test_the_pixels_stay(name: str) -> None:
    image = picture().convert("L") if name == "grey" else picture()
    plain = saved(image, **JPEGS.get(name, {}))
    written = with_restarts(plain)
    np.testing.assert_array_equal(pixels(written), pixels(plain))
    assert inspect(written).obstacles == (), "its markers are all there, and in order"
    assert b"\xff\xdd\0\4" + INTERVAL.to_bytes(2, "big") in written and markers(written) > 5
    assert b"Exif" not in written and b"a word" not in written


def test_flat_pictures_have_room_for_their_markers() -> None:
    flat = saved(Image.new("RGB", (4000, 3000)), optimize=True)
    assert (pixels(with_restarts(flat)) == 0).all()


@pytest.mark.parametrize("image", [SQUARE, NONE], ids=lambda image: image.resize)
def test_members_have_the_pixels_that_they_have_without(image) -> None:
    data = saved(picture())
    plain, marked = (
        make_member(data, ".jpg", replace(image, restarts=on), max_pixels=MAX_PIXELS, want_pixels=False)
        for on in (False, True)
    )
    np.testing.assert_array_equal(pixels(marked.data), pixels(plain.data))
    assert not markers(plain.data) and markers(marked.data) and plain.repairs == marked.repairs == ()


def test_coefficients_without_a_code_are_refused() -> None:
    """Check coefficients that annex K's tables cannot encode, as in a damaged file: libjpeg would write others."""
    rng, refused = random.Random(0), 0
    for factors in jpegs.COMMON.values():
        data = jpegs.generate(rng, jpegs.Kind(factors, most_dc=3000))
        try:
            np.testing.assert_array_equal(pixels(with_restarts(data)), pixels(data))
        except ValueError:
            refused += 1
    assert refused
    member = make_member(data, ".png", replace(NONE, restarts=True), max_pixels=MAX_PIXELS, want_pixels=False)
    assert member.repairs == ("JPEG named .png", "damaged, written anew: its data is damaged")


def test_a_damaged_file_is_written_anew_and_named() -> None:
    data = bytearray(saved(picture()))
    scan = data.index(b"\xff\xda")
    data[scan + 100 : scan + 120] = b"\xff\0" * 10  # no Huffman code is all ones
    member = make_member(bytes(data), ".jpg", replace(NONE, restarts=True), max_pixels=MAX_PIXELS, want_pixels=False)
    assert member.repairs == ("damaged, written anew: Corrupt JPEG data: bad Huffman code",) and markers(member.data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return shards of images of photographs' sizes: original files, and the same with restart markers."""
    source = tmp_path_factory.mktemp("marked")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(375, 500), (500, 333), (256, 256), (257, 641), (300, 17)] * 2):
        rough = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
        path = source / "images" / "train" / f"c{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough.resize((width, height)).save(path, quality=90)
    plain, marked = (
        shard(source / "images", source / name, resize="none", splits=("train",), restarts=name == "marked", size=64)
        for name in ("plain", "marked")
    )
    return plain, marked


@pytest.mark.parametrize("crop", ["random", "resized", "center"])
def test_batches_are_those_of_the_files_without(folders: tuple[Path, Path], crop) -> None:
    augment = Augment(crop=crop, size=48, normalise="none")
    plain, marked = (
        [batch.images for batch in open_loader(folder, "train", 5, augment, backend="turbo", seed=3)]
        for folder in folders
    )
    assert load_manifest(folders[1]).image.restarts and not load_manifest(folders[0]).image.restarts
    assert all(torch.equal(one, other) for one, other in zip(plain, marked, strict=True))


def test_what_a_crop_does_not_show_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that damage around the centre, which stops any decoder that reads it, is not noticed."""
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = with_restarts(saved(Image.fromarray(rough).resize((256, 256))))
    jpeg = bytearray(whole)
    pieces = [0, *(i for i in range(len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7), len(jpeg) - 2]
    for row in range(16):
        for column in range(4):  # 64 pixels each
            if row not in range(6, 10) or column not in (1, 2):
                start, stop = pieces[row * 4 + column] + 2, pieces[row * 4 + column + 1]
                if row + column:
                    jpeg[start:stop] = b"\xfe" * (stop - start)
    with pytest.raises(ValueError, match=r".*"):
        pixels(bytes(jpeg))
    path = tmp_path / "images" / "train" / "c" / "0.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole)
    folder = shard(tmp_path / "images", tmp_path / "shards", resize="none", size=256, splits=("train",))
    tar = without_checksums(folder) / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(whole, jpeg))

    def read(*_):
        raise AssertionError("left to Python")

    monkeypatch.setattr(Records, "read", read)
    augment = Augment(crop="center", size=60, flip=False, normalise="none")
    (batch,) = open_loader(folder, "train", 1, augment, backend="turbo")
    expected = pixels(saved(Image.fromarray(rough).resize((256, 256))))[98:158, 98:158]
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)


def test_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = "tools/shard_imagenet.py"
    assert_refused(script(tool, tmp_path, tmp_path / "out", "--restarts", "--encoding", "raw"), "--restarts", code=2)
    (tmp_path / "images" / "train" / "c").mkdir(parents=True)
    (tmp_path / "images" / "train" / "c" / "0.jpg").write_bytes(saved(picture()))
    monkeypatch.setattr("tools.shard_imagenet.has_native", lambda: False)
    with pytest.raises(DataError, match="compiled part"):
        shard(tmp_path / "images", tmp_path / "shards", splits=("train",), restarts=True)
    with pytest.raises(DataError, match=r"compiler and libjpeg-turbo's headers, .* or add --no-restarts"):
        shard(tmp_path / "images", tmp_path / "shards", splits=("train",))
    shard(tmp_path / "images", tmp_path / "shards", splits=("train",), no_restarts=True)


def made(tmp_path: Path, name: str, **options) -> bool:
    """Shard a picture, and return whether the manifest says that there are restart markers."""
    path = tmp_path / "images" / "train" / "c" / "0.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(picture()))
    folder = shard(tmp_path / "images", tmp_path / name, splits=("train",), size=64, **options)
    record = Records(load_manifest(folder), "train").read(0)
    marked = load_manifest(folder).image.restarts
    assert marked == (markers(bytes(record.data)) > 0)
    return marked


def test_square_jpegs_have_restart_markers_unless_refused(tmp_path: Path) -> None:
    assert made(tmp_path, "square") and made(tmp_path, "asked", restarts=True, resize="none")
    assert not made(tmp_path, "refused", no_restarts=True) and not made(tmp_path, "shorter", resize="shorter")
    assert not made(tmp_path, "none", resize="none")


def test_a_folder_of_an_earlier_version_is_finished_and_repaired_as_it_was_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Check a finished folder without markers, also without its plan, then a damaged one and an unfinished one."""
    made(tmp_path, "old", no_restarts=True)
    tar = tmp_path / "old" / "train-000000.tar"
    before = tar.read_bytes()
    assert not made(tmp_path, "old") and "finished already" in capsys.readouterr().out
    tar.write_bytes(before[:-512])
    (tmp_path / "old" / "plan.json").unlink()
    shard(tmp_path / "images", tmp_path / "old", splits=("train",), size=64, repair=True, workers=1)
    assert tar.read_bytes() == before
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("tools.shard_imagenet.finish", lambda *_: 1 / 0)
        made(tmp_path, "begun", no_restarts=True)
    assert not made(tmp_path, "begun")
