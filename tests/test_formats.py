"""Tests that each format of image files has the right pixels, and that what is not read is named for what it is."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pipelines import DataError
from pipelines.images.picture import SUFFIXES, read_picture
from tests.test_images import NONE, SQUARE, exif, member, picture, saved


def tiff(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def directory(*tags: tuple[int, int, int], data: bytes = b"") -> bytes:
    """Return a little-endian TIFF of one directory of (tag, type, value)s. The value None is the offset of ``data``."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHLL", tag, kind, 1, start if value is None else value) for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + data


RAMP = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
DEEP = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
SHALLOW = (DEEP >> 8).astype(np.uint8)
RGB = {"photometric": "rgb"}
SCALED = ("16 bits scaled to 8",)
TWELVE = (RAMP >> 4).astype(int).ravel()
PACKED = np.stack([TWELVE[::2] >> 4, (TWELVE[::2] & 15) << 4 | TWELVE[1::2] >> 8, TWELVE[1::2] & 255], -1)
WIDTH, HEIGHT, ONE_SAMPLE, AT_DATA = (256, 4, 64), (257, 4, 48), (277, 3, 1), (273, 4, None)
# name: (file, repairs, the right pixels)
TIFFS = {
    "8 bits": (tiff(SHALLOW, **RGB), (), SHALLOW),
    "big-endian": (tiff(SHALLOW, byteorder=">", **RGB), (), SHALLOW),
    "BigTIFF": (tiff(SHALLOW, bigtiff=True, **RGB), (), SHALLOW),
    "tiles": (tiff(SHALLOW, tile=(16, 32), **RGB), (), SHALLOW),
    "compressed tiles": (tiff(SHALLOW, tile=(16, 32), compression="zlib", **RGB), (), SHALLOW),
    "separate planes": (tiff(SHALLOW.transpose(2, 0, 1), planarconfig="separate", **RGB), (), SHALLOW),
    "grey": (tiff(RAMP), SCALED, RAMP / 257),
    "big-endian grey": (tiff(RAMP, byteorder=">", compression="zlib"), SCALED, RAMP / 257),
    "white is zero": (tiff(RAMP, photometric="miniswhite"), SCALED, 255 - RAMP / 257),
    "8 bits, white is zero": (tiff(SHALLOW[..., 0], photometric="miniswhite"), (), 255 - SHALLOW[..., 0]),
    "colour": (tiff(DEEP, **RGB), SCALED, DEEP / 257),
    "12 bits": (
        directory(
            *(WIDTH, HEIGHT, (258, 3, 12), (259, 3, 1), (262, 3, 1), AT_DATA, ONE_SAMPLE, (279, 4, 64 * 48 * 3 // 2)),
            data=PACKED.astype(np.uint8).tobytes(),
        ),
        ("12 bits scaled to 8",),
        RAMP / 257,
    ),
    "palette": (
        tiff(SHALLOW[..., 0], photometric="palette", colormap=np.stack([RAMP.ravel()[:256] * 12] * 3)),
        (),
        (RAMP.ravel()[:256] * 12 >> 8)[SHALLOW[..., 0]],
    ),
    "CMYK": (
        tiff(255 - np.concatenate([SHALLOW, np.full((48, 64, 1), 255, np.uint8)], -1), photometric="separated"),
        ("CMYK to RGB",),
        SHALLOW,
    ),
    "half transparent": (
        tiff(np.concatenate([DEEP, np.full((48, 64, 1), 32768, np.uint16)], -1), extrasamples=["unassalpha"], **RGB),
        (*SCALED, "transparency laid on white"),
        (DEEP / 257 + 255) / 2,
    ),
    "three pages": (
        tiff(np.stack([SHALLOW, 255 - SHALLOW, SHALLOW]), metadata=None, **RGB),
        ("1 of 3 pages kept",),
        SHALLOW,
    ),
}


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_of_any_kind_has_the_right_pixels(name: str) -> None:
    data, repairs, right = TIFFS[name]
    found = read_picture(data, ".tif")
    assert found.repairs == repairs
    right = right if right.ndim == 3 else right[..., None]
    assert np.abs(found.pixels - right).max() < 1.51, "Pillow takes the higher byte of 16 bits of colour, and rounds"


def test_a_thumbnail_behind_a_tiff_is_no_page() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(SHALLOW, metadata=None, **RGB)
        writer.write(SHALLOW[::4, ::4], subfiletype=1, metadata=None, **RGB)
    assert read_picture(buffer.getvalue(), ".tiff").repairs == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(DEEP.transpose(2, 0, 1), planarconfig="separate", **RGB), "its 16 bits a sample lie in separate planes"),
        (tiff(SHALLOW[..., 0].astype(np.int8)), "its pixels are signed"),
        (tiff(RAMP.astype(np.float32)), "its pixels are of mode F, in which no value is defined as white"),
        (tiff(RAMP, photometric="miniswhite", byteorder=">"), "it is a TIFF that is damaged, or of a kind that is not"),
        (tiff(SHALLOW, subfiletype=1, **RGB), "it is a TIFF that begins with a preview, as raw files of cameras do"),
        (
            tiff(SHALLOW, extratags=[(50706, 1, 4, b"\1\4\0\0")], **RGB),
            "it is a raw file of a camera (DNG), which is not",
        ),
        (tiff(SHALLOW)[:8] + b"CR\2\0" + bytes(500), "it is a TIFF that is damaged"),
        (directory(WIDTH, HEIGHT, (262, 3, 32803), data=bytes(500)), "it is a raw file of a camera, which is not read"),
    ],
)
def test_a_tiff_that_would_be_shown_wrong_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(DataError) as refused:
        read_picture(data, ".tif")
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "AVIF", "JPEG"])
def test_a_picture_of_any_format_is_turned_and_listed_as_turned(form: str) -> None:
    for turn in range(1, 9):
        data = saved(picture(), form, exif=exif(turn))
        found, upright = read_picture(data, f".{form}"), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.abs(found.pixels - np.asarray(upright.convert("RGB"), np.int16)).max() <= 1
        assert ("turned as EXIF says" in found.repairs) == (turn > 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_every_suffix_is_read(suffix: str) -> None:
    """Check lossless formats to the bit, palettes of 256 colours and lossy formats roughly."""
    form = SUFFIXES[suffix]
    found = read_picture(saved(picture(), form, **({"lossless": True} if form == "WEBP" else {})), suffix.upper())
    assert found.repairs == () and found.format == form
    error = np.abs(found.pixels - np.asarray(picture(), np.int16))
    assert error.max() == 0 if form in ("PNG", "BMP", "TIFF", "PPM", "WEBP") else error.mean() < 4


@pytest.mark.parametrize(
    ("header", "pixels"),
    [
        (b"P5 64 48 65535\n", RAMP.astype(">u2").tobytes()),
        (b"P2 64 48 65535\n", b" ".join(b"%d" % value for value in RAMP.ravel())),
        (b"P6 64 48 65535\n", np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes()),
        (b"P5 # 12 bits\n64 48 4095\n", (RAMP >> 4).astype(">u2").tobytes()),
    ],
)
def test_a_ppm_of_16_bits_is_scaled(header: bytes, pixels: bytes) -> None:
    found = read_picture(header + pixels, ".pnm")
    assert found.repairs == SCALED and np.abs(found.pixels - RAMP[..., None] / 257).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_picture_of_an_animation_is_kept(form: str) -> None:
    still = saved(picture(), form)
    moving = saved(picture(), form, save_all=True, append_images=[picture().rotate(180), picture().rotate(90)])
    found = read_picture(moving, f".{form}")
    assert found.repairs == ("the first of its pictures kept",)
    assert np.abs(found.pixels - read_picture(still, f".{form}").pixels.astype(int)).mean() < 2


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).resize((64, 48))
WHOLE = {
    "PNG": saved(NOISE, "PNG"),
    "palette PNG": saved(NOISE.quantize(16), "PNG"),
    "GIF": saved(NOISE, "GIF"),
    "WEBP": saved(NOISE, "WEBP"),
    "lossless WEBP": saved(NOISE, "WEBP", lossless=True),
    "AVIF": saved(NOISE, "AVIF"),
    "TIFF": saved(NOISE, "TIFF"),
    "LZW TIFF": saved(NOISE, "TIFF", compression="tiff_lzw"),
    "deflate TIFF": saved(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "JPEG TIFF": saved(NOISE, "TIFF", compression="jpeg"),
    "BMP": saved(NOISE, "BMP"),
    "PPM": saved(NOISE, "PPM"),
    "JPEG": saved(NOISE),
    "progressive JPEG": saved(NOISE, progressive=True),
}
NOTHING_CHECKS = ("TIFF", "BMP", "PPM")  # plain pixels: a black lower half is a picture too


@pytest.mark.parametrize("name", WHOLE)
def test_half_a_file_is_no_picture_with_and_without_zeros_behind(name: str) -> None:
    data = WHOLE[name]
    whole = read_picture(data, ".x").pixels
    for length in range(0, len(data), max(1, len(data) // 40)):
        for part in (data[:length], data[:length] + bytes(len(data) - length)):
            if len(part) == len(data) and (name in NOTHING_CHECKS or length > len(data) - 600):
                continue
            try:
                found = read_picture(part, ".x")
            except DataError:
                continue
            assert (found.pixels == whole).all(), (length, found.repairs)


def png(rows: int, interlaced: int = 0, height: int = 8) -> bytes:
    """Return a grey PNG of 8 x ``height`` pixels whose data is whole, but may have fewer or more rows."""
    header = struct.pack(">LLBBBBB", 8, height, 8, 0, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress((b"\0" + b"\x64" * 8) * rows)), (b"IEND", b"")]
    written = (struct.pack(">L", len(c)) + k + c + struct.pack(">L", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_a_png_lacks_no_rows_and_no_checksum() -> None:
    assert (read_picture(png(8), ".png").pixels == 100).all() and (read_picture(png(9), ".png").pixels == 100).all()
    for data, missing in ((png(4), 36), (png(0), 72), (png(4, interlaced=1), 43)):
        with pytest.raises(DataError, match=f"cannot be decoded: {missing} bytes of its pixels are missing"):
            read_picture(data, ".png")
    data = bytearray(png(8))
    data[data.index(b"IDAT") + 9] ^= 4
    with pytest.raises(DataError, match="cannot be decoded: its chunk IDAT at byte 33 is damaged or cut off"):
        read_picture(bytes(data), ".png")
    for form in ({}, {"bits": 2}):
        small = saved(picture().resize((5, 3)).quantize(4), "PNG", **form)
        assert read_picture(small, ".png").pixels.shape == (3, 5, 3)


FOREIGN = {
    "HEIC, which is not read here: convert it, e.g. with heif-convert": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC, which is not read here: ": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50),
    "JPEG XL, which is not read here: convert it, e.g. with djxl": b"\xff\x0a" + bytes(50),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000, which is not read here: convert it, e.g. with opj_decompress": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a Photoshop file (PSD), which is not read here: convert it, e.g. with magick": b"8BPS\0\1" + bytes(50),
    "a PDF, which is not read here: convert its pages, e.g. with pdftoppm": b"%PDF-1.7\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "SVG, which is not read here: convert it": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="9" height="9"/>',
    "a git-lfs pointer, not the picture: run git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:",
    "a web page or XML, not an image: download it again": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "a web page or XML, not an image": b"\xef\xbb\xbf<html>",
    "a raw file of a camera (CR3), which is not read here: develop it": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "a raw file of a camera, which is": b"FUJIFILMCCD-RAW 0201",
    "a raw file of a camera (CR2), which is": b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + b"\1\0" + bytes(64),
    "a video, which is not read here: extract its frames, e.g. with ffmpeg": b"\0\0\0\x18ftypisom\0\0\2\0isommp41",
    "an archive, which is not read here: unpack it": b"PK\3\4" + bytes(50),
    "an icon (ICO)": b"\0\0\1\0\1\0\x10\x10" + bytes(50),
    "not an image": b"\0\0\1\0\0\0",
}


@pytest.mark.parametrize("words", FOREIGN)
def test_what_is_not_read_is_named_in_every_mode(words: str) -> None:
    for image in (SQUARE, NONE):
        with pytest.raises(DataError) as refused:
            member(FOREIGN[words], image, ".jpg")
        assert str(refused.value).startswith(f"it is {words}")


def test_an_avif_named_jpg_is_read() -> None:
    found = read_picture(saved(picture(), "AVIF", quality=90), ".jpg")
    assert found.repairs == ("AVIF named .jpg",) and found.format == "AVIF"
    assert np.abs(found.pixels - np.asarray(picture(), np.int16)).mean() < 4
