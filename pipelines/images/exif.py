"""Which way up a picture is: the one entry of an EXIF block that changes what a person sees."""

import struct

ORIENTATION = 0x0112
SHORT, LONG = 3, 4


def orientation(block: bytes) -> int:
    """1 (upright, or not said) to 8, from a block as JPEG, PNG and WebP hold it, with or without ``Exif\\0\\0``.

    Only the first directory is read. Raises ValueError where it is broken up to and including that entry.
    Source: Exif 2.32, sections 4.5 and 4.6.4; TIFF 6.0, section 2.
    """
    tiff = block[6:] if block.startswith(b"Exif\0\0") else block
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise ValueError("it does not begin as TIFF does")
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, place)
            if tag == ORIENTATION:
                return _value(struct.unpack_from(order + ("L" if kind == LONG else "H"), tiff, place + 8)[0], kind)
    except struct.error:
        raise ValueError("it ends too early") from None
    return 1


def _value(found: int, kind: int) -> int:
    if kind not in (SHORT, LONG) or found > 8:
        raise ValueError(f"it has no orientation {found}")
    return found or 1  # 0 is how some cameras say that they do not know
