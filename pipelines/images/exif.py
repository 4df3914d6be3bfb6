"""The orientation of a picture: the one entry of an EXIF block that changes what a person sees."""

import struct

ORIENTATION = 0x0112
SHORT, LONG = 3, 4


def orientation(block: bytes) -> int:
    """Return the orientation, 1 (upright, or none given) to 8, from an EXIF block of a JPEG, PNG or WebP file.

    The block may begin with ``Exif\\0\\0``. Only the first directory is read, up to the orientation. Raises ValueError
    if that part is damaged. Source: Exif 2.32, sections 4.5 and 4.6.4; TIFF 6.0, section 2.
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
    return found or 1  # some cameras write 0 if they do not know
