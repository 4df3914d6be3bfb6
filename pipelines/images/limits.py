"""How much an image from outside may ask for, before memory and time are given to it."""

import struct
from contextlib import suppress

from pipelines.images.jpeg_header import BASELINE, EXTENDED, Damaged, Header, read_header
from pipelines.shards.manifest import ImageFormat

MAX_PIXELS = 150_000_000  # the largest image of ImageNet has 26 million
PILLOW_MAX_PIXELS = 178_956_970  # beyond it Pillow refuses, whatever we allow
JPEG_MAX_SIDE = 65_500  # of libjpeg
MAX_SCANS = 100  # of a JPEG; cameras and the web know about ten
SCAN = b"\xff\xda"
# Bytes times pixels up to which nobody counts scans: 20 bytes make one, which took 0.6 ns a pixel, so 3 s at most.
QUICK_WORK = 100_000_000_000


def check_shape(height: int, width: int, image: ImageFormat, max_pixels: int = PILLOW_MAX_PIXELS) -> None:
    """Raises ValueError for too many pixels, as they come or once the shorter side has ``image.size``."""
    if height * width > max_pixels:
        raise ValueError(f"its {height * width} pixels are more than the {max_pixels} allowed")
    if max(height, width) > most_elongated(image, max_pixels) * min(height, width):
        raise ValueError(f"its {width} x {height} pixels are too elongated for a shorter side of {image.size}")


def most_elongated(image: ImageFormat, max_pixels: int = PILLOW_MAX_PIXELS) -> float:
    """The longer side divided by the shorter one: any, where the middle square is cut out."""
    if image.resize == "square":
        return float("inf")
    return min(JPEG_MAX_SIDE / image.size, max_pixels / image.size**2)


def check_jpeg(data: bytes | memoryview, height: int, width: int, image: ImageFormat) -> None:
    """``check_shape``, and that decoding takes no more scans than ``MAX_SCANS``. Raises ValueError."""
    check_shape(height, width, image)
    if len(data) * height * width > QUICK_WORK:
        check_scans(bytes(data))


def check_scans(data: bytes) -> None:
    """Each scan of a JPEG may take as long as the whole image, and needs a few bytes. Raises ValueError."""
    header = Header()
    with suppress(Damaged, IndexError, struct.error):  # decoders may still read it, so its scans count
        read_header(data, header)
        if header.frame in (BASELINE, EXTENDED) and data[header.scan] == len(header.components):
            return  # all components in one scan: decoders stop after it
    scans = data.count(SCAN, header.scan)
    if scans > MAX_SCANS:
        raise ValueError(f"its {scans} scans are more than the {MAX_SCANS} allowed")
