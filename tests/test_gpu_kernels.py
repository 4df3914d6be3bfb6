"""Tests of the GPU's decoder, emulated on a CPU: pixels are libjpeg-turbo's, batches turbo's, and damage is named."""

import io
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Augment, Manifest
from pipelines.augment import Jitter
from pipelines.crops import shrink_to
from pipelines.gpu.decoder import PROBLEMS, PieceDecoder, unavailable
from pipelines.gpu.emulated import emulated_library
from pipelines.gpu.layout import JpegLayout, read_layout
from pipelines.shards.manifest import ImageClass, ImageFormat, Statistics
from pipelines.shards.record import Record
from pipelines.turbo.native import has_native
from pipelines.turbo.normalise import Normalise, OnDevice
from pipelines.turbo.randomness import Draws, draw
from pipelines.turbo.renderer import Renderer, prepare_opencv
from pipelines.turbo.restart_markers import with_restarts
from tests import jpegs
from tests.pieces import CPU, SAMPLINGS, Pieces, Rows

needs_emulated = pytest.mark.skipif(
    emulated_library() is None or not has_native(), reason="needs the compiled parts of pipelines/gpu and turbo"
)
SIDE = 96  # of the pictures, square
ZEROS = (0.0, 0.0, 0.0)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
STATISTICS = Statistics(MEAN, STD, (0.2, 0.1, 0.05), eigenvectors=(MEAN, STD, MEAN), mean_image="mean.npy")


def picture(rng: np.random.Generator, **options) -> bytes:
    """Return a noisy picture as sharding writes it, SIDE x SIDE."""
    rough = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", **{"quality": 90, **options})
    return with_restarts(file.getvalue())


class Batch:
    """Rows of a batch, as turbo renders them and as the decoder takes them."""

    def __init__(self, augment: Augment, rows: int, **options) -> None:
        rng = np.random.default_rng(rows)
        self.augment, self.files = augment, [picture(rng, **options) for _ in range(rows)]
        self.layout = read_layout(self.files[0])
        image = ImageFormat("jpeg", "square", SIDE, 90)
        self.manifest = Manifest(Path(), 0, image, (ImageClass("a", ""),), splits={}, statistics=STATISTICS)
        self.draws: Draws = draw(0, 0, augment, first=0, count=rows)
        self.pixels = np.zeros((rows, augment.size, augment.size, 3), np.uint8)  # turbo's
        renderer, boxes, crops = Renderer(self.manifest, augment), [], []
        for row, file in enumerate(self.files):
            record, one = Record(Path(), "", "", memoryview(file), 0), self.draws.at(row)
            crops += renderer.render(record, one, self.pixels[row : row + 1])
            boxes.append((renderer._choose(SIDE, SIDE, one) or pytest.fail("a box is all that it needs"))[0])
        exact = (augment.size, augment.size)
        self.shrunk = np.array([box[2:] != exact and shrink_to(box, augment.size) > 1 for box in boxes])
        self.boxes, self.crops = torch.tensor(boxes, dtype=torch.int32), torch.tensor([[*crop] for crop in crops])

    def decode(self, dtype: torch.dtype = torch.uint8, others: bool = False, **options) -> torch.Tensor:
        """Return the decoder's images. With ``others``, shrunk rows are given to it as turbo's pixels."""
        rows, left_out = len(self.files), self.shrunk if others else np.zeros(len(self.files), bool)
        sizes = np.array([len(file) for file in self.files], np.int32)
        starts = np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)])
        order = np.random.default_rng(0).permutation(rows)  # files lie anywhere in the data
        data = np.frombuffer(b"".join(self.files), np.uint8).copy()
        colours = options.pop("colours", torch.zeros(rows, 3))
        decoder = PieceDecoder(
            self.layout,
            CPU,
            rows=rows,
            size=self.augment.size,
            dtype=dtype,
            **{"mean_image": None, "scale": None, **options},
        )
        jitter = self.draws.colours
        given = (
            torch.from_numpy(starts[order]),
            torch.from_numpy(np.where(left_out, 0, sizes).astype(np.int32)[order]),
            self.boxes[order],
            self.crops[order],
            colours[order],
            None if jitter is None else torch.from_numpy(jitter.astype(np.float32))[order],
            torch.from_numpy(self.pixels)[order] if others else None,
        )
        images, status = decoder(torch.from_numpy(data), *given)
        assert not status.any()
        return images[np.argsort(order)]


@pytest.fixture(autouse=True, scope="module")
def linear_filter() -> None:
    prepare_opencv()


def test_it_is_built_where_it_can_be() -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    assert unavailable(CPU) == "", "pip install --editable . builds it"


@needs_emulated
@pytest.mark.parametrize(("crops", "seed"), [(1000, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_pixels_of_whole_files_are_those_of_libjpeg(crops: int, seed: int) -> None:
    """Check crops of all samplings, tables, qualities from 3 to 100 and sizes from one pixel up."""
    pieces = Pieces(seed)
    pieces.run(crops, damages=False)
    assert pieces.counts == {"whole, shown": crops}


@needs_emulated
@pytest.mark.parametrize(("files", "seed"), [(1000, 2), pytest.param(10_000, 3, marks=pytest.mark.slow)])
def test_damaged_files_are_named_or_have_the_pixels_of_libjpeg(files: int, seed: int) -> None:
    pieces = Pieces(seed)
    pieces.run(files)
    found = {int(name[-1]) for name in pieces.counts if "status" in name}
    assert found == {2, 3, 4, 5, 6} and pieces.counts["damaged, shown"] > files // 10


@needs_emulated
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("most_dc", [100, 2000])
def test_extreme_coefficients_overflow_as_in_libjpeg(sampling: str, most_dc: int) -> None:
    """Check values that no picture has, up to 2000 times the largest step, with any sampling."""
    rng = random.Random(most_dc)
    for size in (8, 17, 40):
        kind = jpegs.Kind(jpegs.COMMON[sampling], size, size, 3, "shuffled", quality=1, most_dc=most_dc)
        file = jpegs.generate(rng, kind)
        found, status = Rows(read_layout(file), size).decode(file, 0, 0)
        with Image.open(io.BytesIO(file)) as image:
            np.testing.assert_array_equal(found, image.convert("RGB"))
        assert status == 0


@needs_emulated
@pytest.mark.parametrize("crop", ["random", "center"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_crops_are_those_of_turbo(crop, subsampling: int) -> None:
    batch = Batch(Augment(crop=crop, size=80, normalise="none"), 24, subsampling=subsampling)
    np.testing.assert_array_equal(batch.decode(), batch.pixels)


@needs_emulated
def test_jittered_crops_are_those_of_turbo() -> None:
    """Check all but the last pixels of an image, which OpenCV jitters in float32 and may round otherwise."""
    batch = Batch(Augment(size=80, normalise="none", jitter=Jitter(0.4, 0.4, 0.4, 0.1)), 24)
    found, expected = batch.decode().numpy().reshape(24, -1), batch.pixels.reshape(24, -1)
    np.testing.assert_array_equal(found[:, :-400], expected[:, :-400])
    np.testing.assert_allclose(found[:, -400:], expected[:, -400:], atol=1, rtol=0)


@needs_emulated
@pytest.mark.parametrize("subsampling", [0, 2])
def test_resized_crops_are_those_of_turbo_within_a_level(subsampling: int) -> None:
    """Check crops larger and smaller than the result; those that turbo shrinks while decoding come as others."""
    for size, low in ((80, 0.08), (30, 0.05)):
        augment = Augment(crop="resized", size=size, scale=(low, 1), normalise="none")
        batch = Batch(augment, 40, subsampling=subsampling)
        assert batch.shrunk.any() == (size == 30) and not batch.shrunk.all()
        found = batch.decode(others=True).numpy().astype(int)
        assert np.abs(found - batch.pixels).max() == 1
        np.testing.assert_array_equal(found[batch.shrunk], batch.pixels[batch.shrunk])
        assert (found == batch.pixels).mean() > 0.99


@needs_emulated
@pytest.mark.parametrize("normalise", ["mean_image", "mean", "mean_std"])
@pytest.mark.parametrize("lighting", [0.0, 0.1])
def test_batches_are_normalised_as_by_turbo(normalise, lighting: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check float32 against turbo on a CPU, float16 against turbo on a GPU, to the bit."""
    mean_image = np.random.default_rng(1).uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)
    monkeypatch.setattr("pipelines.turbo.normalise.load_mean_image", lambda manifest: mean_image)
    batch = Batch(Augment(size=80, normalise=normalise, lighting=lighting), 24)
    turbo = Normalise(batch.manifest, batch.augment, CPU)
    colours = turbo.colours(batch.draws.lights)
    subtracted = mean_image if normalise == "mean_image" else None
    options = {
        "mean_image": None if subtracted is None else torch.from_numpy(subtracted),
        "scale": torch.from_numpy(turbo._scale),
        "colours": torch.from_numpy(colours),
    }
    expected = np.empty(batch.pixels.shape, np.float32)
    for row, crop in enumerate(batch.crops.tolist()):
        turbo.one(batch.pixels[row], tuple(crop), colours[row], expected[row])
    np.testing.assert_array_equal(batch.decode(torch.float32, **options), expected)
    on_device = OnDevice(
        subtracted and (subtracted,) if subtracted is None else (subtracted,), turbo._scale, CPU, torch.float16
    )
    halves = on_device(torch.from_numpy(batch.pixels), batch.crops, torch.from_numpy(colours))
    assert torch.equal(batch.decode(torch.float16, **options), halves)


@needs_emulated
def test_float16_rounds_as_torch() -> None:
    """Check values of each size: below the smallest normal number, half way between two, beyond the largest."""
    batch = Batch(Augment(size=8, flip=False, normalise="none"), 1)
    exact = batch.decode(torch.float32).flatten()
    for scale in (*(2.0**power for power in range(-34, 12, 3)), 1 + 2**-11, 3e-8, 257.1, -1.0):
        scales = torch.tensor([scale, scale * 1.0001, -scale])
        expected = (exact.view(-1, 3) * scales).half().flatten()
        assert torch.equal(batch.decode(torch.float16, scale=scales).flatten(), expected)


def edited(file: bytes, layout: JpegLayout, kind: str) -> bytes:
    """Return the file with one kind of damage, in its first piece or behind it."""
    begin = len(layout.header)
    end = next(place for place in range(begin, len(file)) if file[place] == 0xFF and file[place + 1])
    match kind:
        case "another header":
            return file[:20] + bytes([file[20] ^ 1]) + file[21:]
        case "no header":
            return file[: begin - 1]
        case "no marker":
            return file[:end] + file[end + 2 :]
        case "another marker":
            return file[: end + 1] + b"\xd3" + file[end + 2 :]
        case "ends":
            return file[: end + 40]
        case "short":
            return file[: end - 8] + file[end:]
        case "long":
            return file[:end] + b"\x55" + file[end:]
    raise AssertionError(kind)


@needs_emulated
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *(("another header", 2), ("no header", 2), ("no marker", 3), ("another marker", 3)),
        *(("ends", 3), ("short", 5), ("long", 6)),
    ],
)
def test_each_damage_has_its_status(kind: str, status: int) -> None:
    file = picture(np.random.default_rng(0))
    layout = read_layout(file)
    found, code = Rows(layout, SIDE).decode(edited(file, layout, kind), 0, 0)
    assert code == status and status in PROBLEMS
    assert not found.any()


@needs_emulated
def test_a_code_that_no_table_has_is_named() -> None:
    kind = jpegs.Kind(jpegs.COMMON["grey"], 64, 64, 4)
    file = jpegs.generate(random.Random(0), kind)
    layout = read_layout(file)
    begin = len(layout.header)
    ones = file[:begin] + b"\xff\0" * 4 + file[begin + 8 :]  # annex K has no code of ones alone
    assert Rows(layout, 64).decode(ones, 0, 0)[1] == 4


@needs_emulated
def test_damage_beside_the_crop_does_not_matter() -> None:
    file = picture(np.random.default_rng(0))
    layout = read_layout(file)
    below = file[:-30] + b"\0\0" + file[-28:]
    assert Rows(layout, SIDE).decode(below, 0, 0)[1] != 0
    found, status = Rows(layout, 40).decode(below, 0, 0)
    assert status == 0
    np.testing.assert_array_equal(found, Rows(layout, 40).decode(file, 0, 0)[0])


@needs_emulated
@pytest.mark.parametrize(
    "change",
    [
        {"offsets": -1},
        {"offsets": 1 << 60},
        {"sizes": -1},
        {"sizes": 1 << 30},
        {"sizes": 0},
        *({"boxes": [(*box,)]} for box in ((-1, 0, 8, 8), (0, 90, 8, 8), (0, 0, 0, 8), (0, 0, 8, 1 << 30))),
        *({"crops": [[*crop]]} for crop in ((-1, 0, 0), (0, SIDE - 7, 0), (1 << 60, 0, 0))),
    ],
    ids=str,
)
def test_arguments_beyond_their_arrays_are_named(change: dict) -> None:
    file = picture(np.random.default_rng(0))
    mean_image = torch.zeros(SIDE, SIDE, 3)
    decoder = PieceDecoder(
        read_layout(file), CPU, rows=2, size=8, dtype=torch.float32, mean_image=mean_image, scale=None
    )
    given = {
        "offsets": torch.tensor([0, 0]),
        "sizes": torch.tensor([len(file)] * 2, dtype=torch.int32),
        "boxes": torch.tensor([[0, 0, 8, 8]] * 2, dtype=torch.int32),
        "crops": torch.zeros(2, 3, dtype=torch.int64),
    }
    for name, value in change.items():
        given[name][1] = torch.tensor(value)
    data = torch.from_numpy(np.frombuffer(file, np.uint8).copy())
    images, status = decoder(data, **given, colours=torch.zeros(2, 3), matrices=None, others=None)
    assert status.tolist() == [0, 1]
    assert images[0].any() and not images[1].any()


@needs_emulated
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sizes", torch.zeros(2, dtype=torch.int64)),
        ("boxes", torch.zeros(4, 2, dtype=torch.int32).T),
        ("crops", torch.zeros(1, 3, dtype=torch.int64)),
        ("others", torch.zeros(2, 8, 8, 4, dtype=torch.uint8)),
    ],
)
def test_tensors_of_another_type_or_shape_are_refused(name: str, wrong: torch.Tensor) -> None:
    file = picture(np.random.default_rng(0))
    decoder = PieceDecoder(read_layout(file), CPU, rows=2, size=8, dtype=torch.uint8, mean_image=None, scale=None)
    given = {
        "data": torch.zeros(9, dtype=torch.uint8),
        "offsets": torch.zeros(2, dtype=torch.int64),
        "sizes": torch.zeros(2, dtype=torch.int32),
        "boxes": torch.zeros(2, 4, dtype=torch.int32),
        "crops": torch.zeros(2, 3, dtype=torch.int64),
        "colours": torch.zeros(2, 3),
        "matrices": None,
        "others": None,
    }
    with pytest.raises(ValueError, match=f"{name} is not a contiguous"):
        decoder(**{**given, name: wrong})


@needs_emulated
def test_memory_is_as_foretold() -> None:
    file = picture(np.random.default_rng(0))
    layout = read_layout(file)
    decoder = PieceDecoder(layout, CPU, rows=7, size=8, dtype=torch.uint8, mean_image=None, scale=None)
    scratch = ("ends", "coefficients", "planes")
    assert sum(decoder._fixed[name].nbytes for name in scratch) == PieceDecoder.scratch_bytes(layout, 7)
    assert layout.blocks == 6 * 6 * 6 and layout.pieces == 9
