"""Untrusted image files decoded to RGB pixels: the only place that opens files which were not checked before.

A healthy baseline JPEG is decoded by libjpeg-turbo directly, in a tenth less time and with the same pixels; Pillow
decodes the rest. Decoders disagree on these points, which are handled here as follows:

- Grey, palettes and single bits are expanded; transparent pixels are composed on white; 16 bits are scaled to 8.
- CMYK and YCCK are taken as inverted, as Adobe writes them and Pillow, TensorFlow and libvips read them.
- Colour profiles (ICC) are ignored, as torchvision, TensorFlow and DALI do: the numbers are taken as sRGB.
- The picture is turned as its EXIF block says; a damaged EXIF block is ignored.
- If a file holds several pictures (MPO, animations), the first is decoded.
"""

import io
import re
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipelines.errors import DataError
from pipelines.images.exif import orientation
from pipelines.images.jpeg import TURNED, YCCK, Jpeg, inspect
from pipelines.images.jpeg_header import BROKEN_EXIF, FIRST_PICTURE
from pipelines.images.limits import MAX_PIXELS, check_scans
from pipelines.untrusted import MAX_FILE_BYTES, read_limited

SUFFIXES = {
    **dict.fromkeys((".jpeg", ".jpg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **({".avif": "AVIF"} if find_spec("PIL._avif") else {}),  # Pillow 11.3 and later, if built with libavif
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))  # never EPS, which would start another program
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|svg)", re.IGNORECASE)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture: ``pixels`` H,W,3 uint8, the file's ``format``, and the ``repairs`` that were needed."""

    pixels: np.ndarray
    format: str
    repairs: tuple[str, ...]


def read_picture(data: bytes, suffix: str, max_pixels: int = MAX_PIXELS, jpeg: Jpeg | None = None) -> Picture:
    """Decode a whole image file to RGB, turned as its EXIF block says.

    ``suffix`` of the file's name (``.JPEG``) is compared with the format found. ``jpeg`` is what ``inspect`` returned
    for the data, if it was called already. ``repairs`` lists a wrong suffix and
    each step that changes how the picture looks. Raises DataError with the reason if it cannot be decoded, or if its
    header claims more than ``max_pixels``; then nothing is allocated for it.
    """
    if not data:
        raise DataError("it is empty")
    jpeg = jpeg or inspect(data)
    pixels = _decode_healthy(data, jpeg, max_pixels)
    if pixels is not None:
        return Picture(pixels, "JPEG", misnamed("JPEG", suffix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on broken EXIF and large images
        try:
            return _decode(data, suffix, max_pixels, jpeg)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise too_large(int(re.findall(r"\d+", str(error))[0]), max_pixels) from None
        except UnidentifiedImageError:
            raise DataError(_what_it_is(data)) from None
        except MemoryError:
            raise DataError("it takes more memory to decode than there is") from None
        except Exception as error:  # decoders raise anything on damaged files
            raise DataError(f"it cannot be decoded: {error}") from error


def read_file(path: Path) -> Picture:
    """Read and decode an image file. Raises DataError with the reason, OSError if it cannot be read."""
    try:
        data = read_limited(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise DataError(str(error)) from error
    return read_picture(data, path.suffix)


def misnamed(found: str, suffix: str) -> tuple[str, ...]:
    """Return a repair that says so if a file of the format ``found`` has another format's ``suffix``, else nothing."""
    return () if found == SUFFIXES.get(suffix.lower()) else (f"{found} named {suffix}",)


def too_large(pixels: int, max_pixels: int) -> DataError:
    return DataError(f"its {pixels} pixels are more than the {max_pixels} allowed")


def _decode_healthy(data: bytes, jpeg: Jpeg, max_pixels: int) -> np.ndarray | None:
    """Return H,W,3 uint8, or None if the file is not a healthy plain JPEG; Pillow must decode it then."""
    if jpeg.obstacles or jpeg.cuts or jpeg.width * jpeg.height > max_pixels:
        return None
    try:
        return simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)
    except ValueError:  # it warned of damaged data
        return None


def _decode(data: bytes, suffix: str, max_pixels: int, jpeg: Jpeg) -> Picture:
    if data[:2] == b"\xff\xd8":
        check_scans(data, jpeg.header)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise too_large(image.width * image.height, max_pixels)
    image.load()
    several = getattr(image, "is_animated", False)
    found = "JPEG" if image.format == "MPO" else str(image.format)
    repairs = [*misnamed(found, suffix), *([FIRST_PICTURE] if several else [])]
    upright = _turn(image, repairs)
    return Picture(np.array(_to_rgb(upright, repairs)), found, tuple(repairs))


def _turn(image: Image.Image, repairs: list[str]) -> Image.Image:
    if "exif" not in image.info:
        return image
    try:
        turn = orientation(image.info["exif"])
    except ValueError:
        repairs.append(BROKEN_EXIF)
        return image
    if turn == 1:
        return image
    repairs.append(TURNED)
    return image.transpose(TURNS[turn])


def _to_rgb(image: Image.Image, repairs: list[str]) -> Image.Image:
    if image.mode.startswith("I;16"):
        repairs.append("16 bits scaled to 8")
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"its pixels are of mode {image.mode}, in which no value is defined as white")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), repairs)
    if image.mode not in ("RGB", "L", "1", "P"):
        ycck = image.mode == "CMYK" and image.info.get("adobe_transform") == YCCK
        repairs.append(f"{'YCCK' if ycck else image.mode} to RGB")
    return image.convert("RGB")


def _on_white(image: Image.Image, repairs: list[str]) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    repairs.append("transparency laid on white")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _what_it_is(data: bytes) -> str:
    if WEB_PAGE.match(data[:1000]):
        return "it is a web page or XML, not an image"
    if data[:3] == b"\xff\xd8\xff":
        return "it cannot be decoded: its JPEG header is damaged or cut off"
    return "it is not an image"
