"""The directories of a TIFF file, looked at before it is decoded: raw files of cameras, huge tiles, pages.

Source: TIFF 6.0, sections 2, 8 and 15; BigTIFF; DNG 1.7, chapter 4.
"""

import struct
from collections.abc import Iterator
from itertools import islice

from PIL.Image import Image

from pipelines.errors import DataError

SUBFILE, BITS, PHOTOMETRIC, PLANES, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 254, 258, 262, 284, 322, 323, 339
DNG_VERSION = 50706
MOSAIC = (32803, 34892)  # photometric interpretations: a sensor's colours, and what DNG makes of them
SHORT, SIGNED, REDUCED = 3, 2, 1
MAX_PAGES = 1000  # that are counted
MAX_ENTRIES = 1000  # of a directory; cameras write about 100

# by version: formats of the first offset, of a count and of an entry's tag, type and value; lengths of the last two
CLASSIC, BIG = ("L", "H", "HH4xL", 2, 12), ("Q", "Q", "HH8xQ", 8, 20)


def directories(data: bytes) -> Iterator[list[tuple[int, int]]]:
    """Yield the (tag, value) pairs of each directory, until one is damaged or was yielded before.

    A value that does not fit into its entry is its offset. Entries behind the first ``MAX_ENTRIES`` are left out.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    layout = {b"*": CLASSIC, b"+": BIG}.get(data[2:4].strip(b"\0"))
    if order is None or layout is None:
        return
    offset, count, entry, count_bytes, entry_bytes = layout
    seen = set()
    try:
        (start,) = struct.unpack_from(order + offset, data, 4 if layout is CLASSIC else 8)
        while start and start not in seen:
            seen.add(start)
            (entries,) = struct.unpack_from(order + count, data, start)
            places = range(start + count_bytes, start + count_bytes + entries * entry_bytes, entry_bytes)
            yield [_pair(data, order, entry, place) for place in places[:MAX_ENTRIES]]
            (start,) = struct.unpack_from(order + offset, data, places.stop)
    except struct.error:
        return


def _pair(data: bytes, order: str, entry: str, place: int) -> tuple[int, int]:
    tag, kind, value = struct.unpack_from(order + entry, data, place)
    if kind == SHORT:  # in the first two bytes of the value
        (value,) = struct.unpack_from(order + "H", data, place + struct.calcsize(order + entry[:-1]))
    return tag, value


def raw_of_a_camera(data: bytes) -> str:
    """Return what raw file this is, in words, or "". Decoders of TIFF would find a small preview in it."""
    first = dict(next(directories(data), []))
    if data[8:10] == b"CR" and first:
        return "a raw file of a camera (CR2)"
    if DNG_VERSION in first:
        return "a raw file of a camera (DNG)"
    if first.get(PHOTOMETRIC) in MOSAIC:
        return "a raw file of a camera"
    if first.get(SUBFILE, 0) & REDUCED:
        return "a TIFF that begins with a preview, as raw files of cameras do (NEF, ARW)"
    return ""


def other_pages(data: bytes) -> tuple[str, ...]:
    """Return a repair that says so if there are other pages than the first, else nothing. Thumbnails are no pages."""
    pages = sum(not dict(found).get(SUBFILE, 0) & REDUCED for found in islice(directories(data), MAX_PAGES))
    return (f"1 of {pages}{' or more' * (pages == MAX_PAGES)} pages kept",) if pages > 1 else ()


def check_tiff(data: bytes, image: Image, max_pixels: int) -> None:
    """Raise DataError if Pillow would allocate more than ``max_pixels`` for a tile, or show wrong pixels."""
    first = next(directories(data), [])
    if len(first) == MAX_ENTRIES:
        raise DataError(f"its directory has {MAX_ENTRIES} entries or more: convert it to PNG")
    width, height = (
        max((value for tag, value in first if tag == side), default=0) for side in (TILE_WIDTH, TILE_HEIGHT)
    )
    if width * height > max_pixels:
        raise DataError(f"its tiles of {width * height} pixels are more than the {max_pixels} allowed")
    tags = image.tag_v2  # type: ignore[attr-defined]  # Pillow's own view decides on the pixels
    bits, signs = (max(tags.get(tag, (1,))) for tag in (BITS, SAMPLE_FORMAT))
    if tags.get(PLANES) == 2 and bits > 8:
        raise DataError(f"its {bits} bits a sample lie in separate planes, which is not read here: convert it to PNG")
    if signs == SIGNED:
        raise DataError("its pixels are signed, so that no value is defined as white: convert it to PNG")
