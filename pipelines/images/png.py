"""A PNG's checksums and the amount of its data, which Pillow does not check: it shows what is missing as black.

Source: Portable Network Graphics (Third Edition), sections 5.3, 7.2 and 8.1.
"""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x, y, steps
PIECE = 1 << 20


def check_png(data: bytes) -> None:
    """Raise ValueError unless the chunks that make the pixels have their checksums, and data for all pixels."""
    missing, inflate = 0, zlib.decompressobj()
    for kind, content in _critical_chunks(data):
        if kind == b"IHDR":
            missing = _bytes_of_pixels(content)
        while kind == b"IDAT" and content and missing > 0:
            missing -= len(inflate.decompress(content, PIECE))
            content = inflate.unconsumed_tail
    if missing > 0:
        raise ValueError(f"{missing} bytes of its pixels are missing")


def _critical_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, place)
        if kind in CRITICAL:
            content = data[place + 8 : place + 8 + length]
            checksum = data[place + 8 + length : place + 12 + length]
            if zlib.crc32(content, zlib.crc32(kind)).to_bytes(4) != checksum:
                raise ValueError(f"its chunk {kind.decode()} at byte {place} is damaged or cut off")
            yield kind, content
        place += 12 + length


def _bytes_of_pixels(header: bytes) -> int:
    """Return the bytes of all rows, each with the byte that names its filter, from the content of IHDR."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">LLBBBBB", header)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits * CHANNELS[colour] // 8))
    return total
