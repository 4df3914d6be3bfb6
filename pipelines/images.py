"""A picture from outside, as plain RGB pixels: the one place where image files that nobody checked are opened."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.shards import DataError

SUFFIXES = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
MAX_PIXELS = 150_000_000  # the largest image of ImageNet has 26 million
MAX_FILE_BYTES = 1 << 28


@dataclass(frozen=True)
class Picture:
    """An RGB image, and what had to be repaired to make it one."""

    image: Image.Image
    repairs: tuple[str, ...]


def read_picture(data: bytes, suffix: str) -> Picture:
    """Decode a whole image file to RGB, turned as its EXIF orientation says.

    ``suffix`` is the one of its name (``.JPEG``), to notice what is called otherwise than it is.
    Raises DataError with the reason when it cannot be decoded, or has more than MAX_PIXELS pixels.
    """
    if not data:
        raise DataError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on broken EXIF and large images
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"its {image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
            image.load()
            return _repair(image, suffix)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError("it is not an image") from None
        except Exception as error:  # decoders raise anything on damaged files
            raise DataError(f"it cannot be decoded: {error}") from error


def _repair(image: Image.Image, suffix: str) -> Picture:
    repairs = []
    if image.format and image.format != SUFFIXES.get(suffix.lower()):
        repairs.append(f"{image.format} named {suffix}")
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing of orientation
        upright = image
        repairs.append("broken EXIF ignored")
    if upright.size != image.size or image.getexif().get(0x0112, 1) not in (0, 1):
        repairs.append("turned as EXIF says")
    if image.mode not in ("RGB", "L", "1", "P"):
        repairs.append(f"{image.mode} to RGB")
    return Picture(upright.convert("RGB"), tuple(repairs))


def square(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side is ``size`` and keep the centre ``size`` x ``size``, as the paper's section 2.

    Pillow's antialiased bicubic filter, the crop and the resize in one pass.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def read_file(path: Path) -> Picture:
    """``read_picture`` of a file. Raises DataError with the reason, OSError where it cannot be read."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"its {path.stat().st_size} bytes are more than the {MAX_FILE_BYTES} allowed")
    return read_picture(path.read_bytes(), path.suffix)
