"""Tests that each source image is kept, repaired or quarantined, with the right message and the right pixels."""

import io
import json
import re
import struct
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_image

from pipelines import DataError
from pipelines.images.exif import orientation
from pipelines.images.jpeg import inspect
from pipelines.images.picture import read_picture
from pipelines.images.resize import resize, shorter, square
from pipelines.sharding.members import Member, make_member
from pipelines.sharding.statistics import PixelSums, measured_samples, summarise
from pipelines.shards.manifest import ImageFormat
from pipelines.turbo.native import has_native

SQUARE, SHORTER, NONE = (ImageFormat("jpeg", resize, 64, 90) for resize in ("square", "shorter", "none"))
MAX_PIXELS = 1_000_000


def picture() -> Image.Image:
    """Return 96 x 80 pixels: red, green, blue and grey quarters with some texture, to tell colours and rotations."""
    pixels = np.zeros((80, 96, 3), np.uint8)
    pixels[:40, :48], pixels[:40, 48:] = (200, 40, 40), (40, 180, 40)
    pixels[40:, :48], pixels[40:, 48:] = (40, 40, 200), (128, 128, 128)
    return Image.fromarray(pixels + (np.indices((80, 96)).sum(axis=0) % 16 // 8 * 12)[..., None].astype(np.uint8))


def saved(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 92} if form in ("JPEG", "MPO") else {}) | options)
    return buffer.getvalue()


def exif(turn: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = turn
    return block.tobytes()


def ycck() -> bytes:
    """Return a YCCK file: Pillow writes CMYK only, so C, M, Y hold YCbCr, and Adobe's flag is changed to say so.

    T.872, 6.5.3: C = 255 - R of the YCbCr; Adobe stores 255 - C, so the YCbCr is that of the negative.
    """
    ycc = np.asarray(Image.fromarray(255 - np.asarray(picture())).convert("YCbCr"))
    channels = [Image.fromarray(255 - ycc[..., i]) for i in range(3)] + [Image.new("L", (96, 80), 0)]
    data = saved(Image.merge("CMYK", channels))
    flag = data.index(b"Adobe") + 11
    return data[:flag] + b"\2" + data[flag + 1 :]


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def resized_header(data: bytes, width: int, height: int) -> bytes:
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def sixteen_bits() -> bytes:
    return saved(Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257), "PNG")


def translucent_palette() -> bytes:
    palette = picture().quantize(16)
    return saved(palette, "PNG", transparency=palette.getpixel((0, 0)))


def member(data: bytes, image: ImageFormat, suffix: str = ".JPEG") -> Member:
    return make_member(data, suffix, image, max_pixels=MAX_PIXELS, want_pixels=False)


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG" and image.mode in ("RGB", "L")
    return np.asarray(image.convert("RGB"), np.int16)


PLAIN = saved(picture())
WHITE_CORNER = np.asarray(picture()).copy()
WHITE_CORNER[:40, :48] = 255
GREY = np.asarray(picture().convert("L").convert("RGB"))
TURNED = np.asarray(picture().transpose(Image.Transpose.ROTATE_270))
HALF_SEEN = Image.merge("RGBA", (*picture().split(), Image.new("L", (96, 80), 128)))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"

# name: (file, repairs if it is resized, repairs if it is not (None: its bytes are kept), expected picture)
USABLE = {
    "plain": (PLAIN, [], None, picture()),
    "restart markers": (saved(picture(), restart_marker_blocks=3), [], None, picture()),
    "grey": (saved(picture().convert("L")), [], None, GREY),
    "ICC profile": (saved(picture(), icc_profile=PROFILE), [], None, picture()),
    "upright EXIF": (saved(picture(), exif=exif(1)), [], None, picture()),
    "no subsampling": (saved(picture(), subsampling=0, optimize=True), [], None, picture()),
    "progressive": (saved(picture(), progressive=True), [], ["progressive to baseline"], picture()),
    "stored as RGB": (saved(picture(), keep_rgb=True), [], ["stored RGB to YCbCr"], picture()),
    "trailing junk": (PLAIN + b"\xff\xd8junk", [], ["6 bytes after its end cut off"], picture()),
    "EXIF orientation 6": (saved(picture(), exif=exif(6)), ["turned as EXIF says"], ["turned as EXIF says"], TURNED),
    "broken EXIF": (saved(picture(), exif=BROKEN_EXIF), ["broken EXIF ignored"], ["broken EXIF ignored"], picture()),
    "CMYK": (saved(picture().convert("CMYK")), ["CMYK to RGB"], ["CMYK to RGB"], picture()),
    "YCCK": (ycck(), ["YCCK to RGB"], ["YCCK to RGB"], picture()),
    "MPO": (
        saved(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)]),
        ["the first of its pictures kept"],
        ["the first of its pictures kept"],
        picture(),
    ),
    "PNG named .JPEG": (saved(picture(), "PNG"), ["PNG named .JPEG"], ["PNG named .JPEG"], picture()),
    "palette": (
        translucent_palette(),
        ["PNG named .JPEG", "transparency laid on white"],
        ["PNG named .JPEG", "transparency laid on white"],
        None,
    ),
    "alpha": (
        saved(HALF_SEEN, "PNG"),
        ["PNG named .JPEG", "transparency laid on white"],
        ["PNG named .JPEG", "transparency laid on white"],
        (np.asarray(picture(), np.int32) * 128 + 255 * 127) // 255,
    ),
    "opaque alpha": (saved(picture().convert("RGBA"), "PNG"), ["PNG named .JPEG"], ["PNG named .JPEG"], picture()),
    "16 bits": (
        sixteen_bits(),
        ["PNG named .JPEG", "16 bits scaled to 8"],
        ["PNG named .JPEG", "16 bits scaled to 8"],
        GREY,
    ),
    "less data than pixels": (
        resized_header(saved(Image.new("RGB", (16, 16))), 900, 900),
        ["damaged, written anew: its 6 bytes of data are too few for 900 x 900 pixels"],
        ["damaged, written anew: its 6 bytes of data are too few for 900 x 900 pixels"],
        None,
    ),
}


@pytest.mark.parametrize("name", USABLE)
def test_a_usable_file_is_kept_or_repaired_and_shows_what_it_showed(name: str) -> None:
    data, when_resized, when_not, shown = USABLE[name]
    found = member(data, NONE)
    assert list(found.repairs) == (when_not or [])
    assert (found.data == data) == (when_not is None)
    assert inspect(found.data).obstacles == () and inspect(found.data).cuts == (), "plain, upright and baseline"
    for image in (SQUARE, SHORTER):
        assert list(member(data, image).repairs) == when_resized
    if shown is not None:
        # encoded twice as JPEG, at quality 90 or more with halved chroma: colour edges blur, flat areas do not
        error = np.abs(pixels(found.data) - np.asarray(shown, np.int16))
        assert error.mean() < 6 and np.median(error) <= 3, name


def test_transparent_pixels_of_a_palette_become_white() -> None:
    found = pixels(member(USABLE["palette"][0], NONE).data)
    assert (found[:32, :40].max(axis=(0, 1)) > 250).all(), "the corner of the transparent colour"
    assert np.abs(found[50:, 60:] - np.asarray(picture(), np.int16)[50:, 60:]).mean() < 12  # a palette of 16 colours


def test_16_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    found = read_picture(saved(Image.fromarray(ramp), "PNG"), ".png").pixels
    assert np.abs(found[..., 0] - ramp / 257).max() <= 0.5


def test_what_is_cut_off_leaves_pixels_alone() -> None:
    for name in ("trailing junk", "broken EXIF", "MPO"):
        data = USABLE[name][0]
        assert (pixels(member(data, NONE).data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all(), name


QUARANTINED = {
    "empty": (b"", "it is empty"),
    "a page": (b"<!DOCTYPE html><html>404</html>", "it is a web page or XML, not an image"),
    "text": (b"not an image", "it is not an image"),
    "junk header": (b"\xff\xd8\xff\xe0" + b"junk" * 50, "it cannot be decoded: "),
    "60,000 x 60,000 JPEG": (resized_header(PLAIN, 60_000, 60_000), "its 3600000000 pixels are more than the 1000000"),
    "60,000 x 60,000 PNG": (png_header(60_000, 60_000), "its 3600000000 pixels are more than the 1000000 allowed"),
    "12,000 x 12,000 JPEG": (resized_header(PLAIN, 12_000, 12_000), "its 144000000 pixels are more than the 1000000"),
    "no height": (resized_header(PLAIN, 96, 0), "it cannot be decoded"),
    "no width": (resized_header(PLAIN, 0, 80), "it cannot be decoded"),
    "zero-size PNG": (png_header(0, 0), "it"),
    "zeros": (bytes(5000), "it is not an image"),
}


@pytest.mark.parametrize("name", QUARANTINED)
@pytest.mark.parametrize("image", [SQUARE, SHORTER, NONE], ids=lambda image: image.resize)
def test_what_is_no_image_is_refused_with_the_reason(name: str, image: ImageFormat) -> None:
    data, words = QUARANTINED[name]
    with pytest.raises(DataError) as refused:
        member(data, image)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("image", [SQUARE, NONE], ids=lambda image: image.resize)
def test_a_file_cut_off_anywhere_is_refused(image: ImageFormat) -> None:
    for data in (PLAIN, saved(picture(), restart_marker_blocks=3), saved(picture(), progressive=True)):
        for length in [*range(1, len(data) - 1, 61), len(data) - 2, len(data) - 1]:
            with pytest.raises(DataError, match=r"truncated|cut off|not an image|cannot be decoded"):
                member(data[:length], image)


def test_structure_finds_what_a_decoder_finds() -> None:
    """Check with flipped bits of the headers: Pillow decodes each file in which no obstacle was found."""
    data = saved(picture().resize((24, 16)))
    scan = data.index(b"\xff\xda")
    flips = [(place, 1 << bit) for place in range(scan + 14) for bit in range(8)]
    accepted = 0
    for place, flip in flips[::3]:
        damaged = bytearray(data)
        damaged[place] ^= flip
        found = inspect(bytes(damaged))
        if not found.obstacles and found.width * found.height <= MAX_PIXELS:
            accepted += 1
            read_picture(bytes(damaged), ".jpg")
    assert accepted > 500, "most flips change a table's value, which is nobody's error"


def test_healthy_jpegs_have_the_pixels_that_pillow_sees() -> None:
    """Check JPEGs that are decoded without Pillow, and one with trailing bytes, which Pillow decodes."""
    for name in ("plain", "restart markers", "grey", "ICC profile", "no subsampling", "trailing junk"):
        data = USABLE[name][0]
        assert (read_picture(data, ".jpg").pixels == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_missing_restart_markers_and_markers_in_the_data_are_noticed() -> None:
    data = saved(picture(), restart_marker_blocks=3)
    second = data.index(b"\xff\xd1")
    assert "restart markers" in inspect(data[:second] + data[second + 2 :]).obstacles[0]
    assert "within the data" in inspect(PLAIN[:-300] + b"\xff\xc4" + PLAIN[-298:]).obstacles[0]


def test_exif_orientations_are_those_that_pillow_reads() -> None:
    for turn in range(1, 9):
        block = exif(turn)
        assert orientation(block) == turn
        assert orientation(b"MM\0*" + struct.pack(">LHHHLHHL", 8, 1, 0x0112, 3, 1, turn, 0, 0)) == turn
        upright = read_picture(saved(picture(), exif=block), ".jpg").pixels
        assert upright.shape == ((80, 96, 3) if turn < 5 else (96, 80, 3))
    assert orientation(Image.Exif().tobytes()) == 1
    for broken in (b"", b"Exif\0\0junkjunk", exif(6)[:-12], exif(9)):
        with pytest.raises(ValueError):
            orientation(broken)


def test_pixels_are_resized_as_pillow_resizes_them() -> None:
    """Check to 60 dB and more: torch's bicubic filter equals Pillow's, except for the rounding of its weights."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    photograph = load_sample_image("china.jpg")
    for source in (noise, photograph[:240, :320].copy(), photograph):
        for height, width in ((256, 256), (256, 341), (640, 800), (64, 48)):
            oracle = np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC), float)
            ours = resize(source, height, width)
            assert ours.flags.c_contiguous, "H,W,3 in memory, as encoders want it"
            assert 10 * np.log10(255**2 / np.square(ours - oracle).mean()) > 60


def test_square_keeps_the_centre_and_shorter_the_ratio() -> None:
    x = np.arange(640) * np.ones((384, 1))
    ramp = np.stack([x / 4, x / 8, 255 - x / 4], -1).astype(np.uint8)
    centre = shorter(ramp, 256)[:, 85:341].astype(int)  # of 427 columns: half a column left of the centre
    assert np.abs(square(ramp, 256) - centre).max() <= 1
    for size, wanted in (((500, 375), (256, 341)), ((375, 500), (341, 256)), ((1000, 999), (256, 256))):
        assert shorter(np.zeros((size[1], size[0], 3), np.uint8), 256).shape[:2] == wanted
    for image in (SHORTER, NONE):
        with pytest.raises(DataError, match="30000 x 2 pixels are too elongated for a shorter side of 64"):
            member(saved(Image.new("RGB", (30_000, 2))), image)


def test_raw_members_are_what_numpy_writes() -> None:
    raw = make_member(PLAIN, ".JPEG", ImageFormat("raw", "square", 64, 0), max_pixels=MAX_PIXELS, want_pixels=False)
    buffer = io.BytesIO()
    np.save(buffer, raw.pixels)
    assert raw.data == buffer.getvalue() and len(raw.data) == 128 + 64 * 64 * 3


def test_statistics_are_exact_whatever_the_sizes_and_the_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((300, 500), (31, 7), (256, 256))]
    for parts in ([images], [[image] for image in images]):
        for i, part in enumerate(parts):
            sums = PixelSums(None)
            for image in part:
                sums.add(image)
            sums.save(tmp_path / f"{len(parts)}-{i}.npz")
    one, three = (summarise(sorted(tmp_path.glob(f"{n}-*.npz")), None) for n in (1, 3))
    assert json.dumps(vars(one[0])) == json.dumps(vars(three[0])) and one[1] is None and one[0].images == 3
    flat = np.concatenate([image.reshape(-1, 3) for image in images]).astype(float)
    np.testing.assert_allclose(one[0].mean_rgb, flat.mean(0), rtol=1e-12)
    vectors = np.array(one[0].eigenvectors)
    np.testing.assert_allclose(
        vectors @ np.diag(one[0].eigenvalues) @ vectors.T, np.cov(flat.T, bias=True), rtol=1e-6, atol=1e-6
    )


def test_statistics_are_exact_at_the_ends_of_the_scale() -> None:
    white_and_red = np.full((2000, 3000, 3), 255, np.uint8)
    white_and_red[:1000, :, 1:] = 0
    sums = PixelSums(None)
    sums.add(white_and_red)
    assert sums.totals.tolist() == [255 * 6_000_000, 255 * 3_000_000, 255 * 3_000_000]
    assert (np.triu(sums.products) // 255**2).tolist() == [[6e6, 3e6, 3e6], [0, 3e6, 3e6], [0, 0, 3e6]]
    assert not (sums.products % 255**2).any()


def test_the_images_measured_do_not_depend_on_the_shards() -> None:
    for total, wanted in ((1000, 64), (1000, None), (5, 64), (1000, 1000)):
        cuts = [0, 1, 300, 650, total] if total > 650 else [0, total]
        chosen = [a + i for a, b in pairwise(cuts) for i in measured_samples(a, b, total, wanted)]
        assert chosen == list(measured_samples(0, total, total, wanted))
        assert (wanted or total) / 2 <= len(chosen) <= min(total, wanted or total) or len(chosen) == total


def holed(data: bytes, share: float, length: int = 200) -> bytes:
    scan = data.index(b"\xff\xda") + 14
    place = scan + int((len(data) - scan) * share)
    return data[:place] + data[place + length :]


HALF = len(PLAIN) // 2
PHOTOGRAPH = saved(Image.fromarray(load_sample_image("china.jpg")).resize((320, 213)))
DAMAGES = {
    "half, then zeros": PHOTOGRAPH[: len(PHOTOGRAPH) // 2] + bytes(len(PHOTOGRAPH) // 2),
    "all but the end, then a few zeros": PHOTOGRAPH[:-400] + bytes(400),
    "half, then a few zeros": PLAIN[:-80] + bytes(80),
    "a hole": holed(PLAIN, 0.5),
    "a hole in a progressive file": holed(saved(picture(), progressive=True), 0.7),
    "a hole in a CMYK file": holed(saved(picture().convert("CMYK")), 0.5),
    "a hole in a turned file": holed(saved(picture(), exif=exif(6)), 0.5),
    "a hole in a grey file": holed(saved(picture().convert("L")), 0.5),
    "a hole before junk": holed(PLAIN, 0.5) + b"junk",
    "extraneous bytes": PLAIN[:-2] + b"\x55" * 30 + b"\xff\xd9",
    "cut off": PLAIN[:HALF],
    "a lost restart marker": saved(picture(), restart_marker_blocks=3).replace(b"\xff\xd1", b"", 1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_that_libjpeg_sees_has_one_verdict_in_every_mode(name: str) -> None:
    def verdict(image: ImageFormat) -> str:
        try:
            return next(why for why in member(DAMAGES[name], image).repairs if why.startswith("damaged"))
        except DataError as error:
            return str(error)

    kinds = [SQUARE, SHORTER, NONE, *([replace(NONE, restarts=True)] if has_native() else [])]
    (found,) = {verdict(image) for image in kinds}
    assert re.match(r"damaged, written anew: .|it cannot be decoded: image file is truncated|its last 512 bytes", found)


def second_exif(first: bytes, second: bytes) -> bytes:
    """Return a JPEG with two EXIF blocks."""
    segments = (b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in (first, second))
    return PLAIN[:2] + b"".join(segments) + PLAIN[2:]


@pytest.mark.parametrize("image", [SQUARE, SHORTER, NONE], ids=lambda image: image.resize)
def test_of_two_exif_blocks_the_first_that_can_be_read_turns(image: ImageFormat) -> None:
    ignored, turned = "a second EXIF block ignored", "turned as EXIF says"
    for first, second, shape, repairs in (
        (exif(1), exif(6), (80, 96, 3), {ignored}),
        (exif(6), exif(1), (96, 80, 3), {ignored, turned}),
        (exif(6), exif(6), (96, 80, 3), {ignored, turned}),
        (BROKEN_EXIF, exif(6), (96, 80, 3), {"broken EXIF ignored", turned}),
        (exif(6), BROKEN_EXIF, (96, 80, 3), {"broken EXIF ignored", turned}),
    ):
        data = second_exif(first, second)
        assert read_picture(data, ".jpg").pixels.shape == shape
        found = member(data, image)
        assert set(found.repairs) == repairs
        assert found.data.count(b"Exif\0\0") == (image is NONE and turned not in repairs), "no decoder can differ"
