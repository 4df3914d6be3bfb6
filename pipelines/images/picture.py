"""Untrusted image files decoded to RGB pixels: the only place that opens files which were not checked before.

A JPEG that gives no warning is decoded by libjpeg-turbo directly, in a tenth less time and with the same pixels;
Pillow decodes the rest, and a warning is listed as a repair. Decoders disagree on these points, which are handled here
as follows:

- Grey, palettes and single bits are expanded; transparent pixels are composed on white; 16 bits are scaled to 8.
- CMYK and YCCK are taken as inverted, as Adobe writes them and Pillow, TensorFlow and libvips read them.
- Colour profiles (ICC) are ignored, as torchvision, TensorFlow and DALI do: the numbers are taken as sRGB.
- The picture is turned as its EXIF block says; a damaged EXIF block is ignored.
- If a file holds several pictures (MPO, animations, pages), the first is decoded.
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
from pipelines.images.foreign import raw_file, what_it_is
from pipelines.images.jpeg import DAMAGED, TURNED, Jpeg, inspect
from pipelines.images.jpeg_header import BROKEN_EXIF, FIRST_PICTURE
from pipelines.images.limits import MAX_PIXELS, check_ppm, check_scans
from pipelines.images.png import check_png
from pipelines.images.rgb import depth_repair, to_rgb, turned
from pipelines.images.tiff import check_tiff, other_pages
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
ORIENTATION = 0x0112
ZEROS = bytes(512)  # at the end of a file of which only a part was written; these decoders take them for data


@dataclass(frozen=True)
class Picture:
    """A decoded picture: ``pixels`` H,W,3 uint8, the file's ``format``, and the ``repairs`` that were needed."""

    pixels: np.ndarray
    format: str
    repairs: tuple[str, ...]


def read_picture(data: bytes, suffix: str, max_pixels: int = MAX_PIXELS, jpeg: Jpeg | None = None) -> Picture:
    """Decode a whole image file to RGB, turned as its EXIF block says.

    ``suffix`` of the file's name (``.JPEG``) is compared with the format found. ``jpeg`` is what ``inspect`` returned
    for the data, if it was called already. ``repairs`` lists a wrong suffix, damage, and each step that changes how
    the picture looks. Raises DataError with the reason if it cannot be decoded, or if its header claims more than
    ``max_pixels``; then nothing is allocated for it.
    """
    if not data:
        raise DataError("it is empty")
    jpeg = jpeg or inspect(data)
    pixels, damage = _decode_strictly(data, jpeg, max_pixels)
    if pixels is not None:
        upright = turned(pixels, jpeg.header.orientation)
        return Picture(upright, "JPEG", (*misnamed("JPEG", suffix), *jpeg.repairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on broken EXIF and large images
        try:
            return _decode(data, suffix, max_pixels, jpeg, damage)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise too_large(int(re.findall(r"\d+", str(error))[0]), max_pixels) from None
        except UnidentifiedImageError:
            raise DataError(what_it_is(data)) from None
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


def _decode_strictly(data: bytes, jpeg: Jpeg, max_pixels: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the H,W,3 uint8 of a JPEG that libjpeg decodes without a warning. Return None if Pillow must decode the
    file, and what libjpeg warned of: Pillow hides that."""
    header = jpeg.header
    if jpeg.damage or not header.usual or header.width * header.height > max_pixels:
        return None, ()
    colours = "CMYK" if len(header.components) == 4 else "RGB"
    try:
        check_scans(data, header)
        pixels = simplejpeg.decode_jpeg(data, colours, fastdct=False, fastupsample=False)
    except ValueError as error:
        return None, (f"{DAMAGED}{error}",)
    return (pixels if colours == "RGB" else None), ()


def _decode(data: bytes, suffix: str, max_pixels: int, jpeg: Jpeg, damage: tuple[str, ...]) -> Picture:
    if raw := raw_file(data):
        raise DataError(raw)
    if data[:2] == b"\xff\xd8":
        check_scans(data, jpeg.header)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise too_large(image.width * image.height, max_pixels)
    is_jpeg = image.format in ("JPEG", "MPO")
    if data.endswith(ZEROS) and (jpeg.damage if is_jpeg else image.format in ("WEBP", "AVIF")):
        raise DataError(f"its last {len(ZEROS)} bytes or more are zeros: copy or download it again")
    if is_jpeg:
        upright = turned(np.array(to_rgb(image, [])), jpeg.header.orientation)
        return Picture(upright, "JPEG", (*misnamed("JPEG", suffix), *jpeg.repairs, *damage))
    return _decode_other(data, image, suffix, max_pixels)


def _decode_other(data: bytes, image: Image.Image, suffix: str, max_pixels: int) -> Picture:
    """Decode what is no JPEG. ``image`` was opened by Pillow, and is not loaded yet."""
    repairs = list(misnamed(str(image.format), suffix))
    turn = 0
    if image.format == "TIFF":
        check_tiff(data, image, max_pixels)
        repairs += other_pages(data)
        repairs += [TURNED] if image.getexif().get(ORIENTATION, 1) in range(2, 9) else []  # Pillow turns these itself
    elif image.format == "PNG":
        check_png(data)
    elif image.format == "PPM":
        check_ppm(data)
    repairs += depth_repair(image)
    image.load()
    if image.format != "TIFF":
        repairs += [FIRST_PICTURE] if getattr(image, "is_animated", False) else []
        turn = _orientation(image, repairs)
    rgb = to_rgb(image, repairs)
    return Picture(turned(np.array(rgb), turn), str(image.format), tuple(dict.fromkeys(repairs)))


def _orientation(image: Image.Image, repairs: list[str]) -> int:
    """Return the orientation that the EXIF block says, 1 to 8. Append to ``repairs`` if it turns, or is broken."""
    if "exif" not in image.info:
        return 1
    try:
        turn = orientation(image.info["exif"])
    except ValueError:
        repairs.append(BROKEN_EXIF)
        return 1
    repairs += [TURNED] if turn > 1 else []
    return turn
