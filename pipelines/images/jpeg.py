"""The structure of a JPEG file, checked without decoding it, so that a healthy file can be copied unchanged.

``inspect`` follows the markers from start to end, at about the cost of a copy. It finds a file that was cut off
anywhere, damaged headers and tables, misplaced markers, missing restart markers and a scan too short for its pixels.
It does not find a flipped bit within the scan; nor does libjpeg through Pillow, which decodes what it can silently.

A 120 KB file took 30 us on a core that decodes it in 1,400 us (two shared cores, Python 3.11, numpy 2.4).
Source: ITU-T T.81, annex B; the colour spaces as in libjpeg's jdapimin.c.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipelines.images.jpeg_header import (
    BASELINE,
    BROKEN_EXIF,
    EOI,
    EXTENDED,
    FIRST_PICTURE,
    PROGRESSIVE,
    SECOND_EXIF,
    Damaged,
    Header,
    read_header,
)

YCCK = 2  # Adobe's numbers for colour transforms; 0 is none
TURNED = "turned as EXIF says"
CMYK_TO_RGB, YCCK_TO_RGB = "CMYK to RGB", "YCCK to RGB"
DAMAGED = "damaged, written anew: "
# Repairs that change how the picture looks to some decoder; the others only make the file a plain baseline JPEG.
VISIBLE = frozenset({TURNED, CMYK_TO_RGB, YCCK_TO_RGB, BROKEN_EXIF, SECOND_EXIF, FIRST_PICTURE})


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG's structure. ``obstacles``, if any, say why it must be encoded again to be a plain upright baseline JPEG.

    ``cuts`` are (start, stop, why): bytes that can be removed without changing a pixel. Width and height are 0 if no
    frame was found.
    """

    header: Header
    obstacles: tuple[str, ...] = ()
    cuts: tuple[tuple[int, int, str], ...] = ()

    @property
    def damage(self) -> str:
        """The obstacle that is damage, or ""."""
        return next((why for why in self.obstacles if why.startswith(DAMAGED)), "")

    @property
    def repairs(self) -> tuple[str, ...]:
        """The obstacles and cuts that change how the picture looks, and damage, once each."""
        found = (*self.obstacles, *(why for _, _, why in self.cuts))
        return tuple(dict.fromkeys(why for why in found if why in VISIBLE or why.startswith(DAMAGED)))

    @property
    def width(self) -> int:
        return self.header.width

    @property
    def height(self) -> int:
        return self.header.height


def inspect(data: bytes) -> Jpeg:
    """Return the structure of a JPEG. Damage is an obstacle, never an exception; a decoder may still read the rest."""
    header = Header()
    try:
        read_header(data, header)
        obstacles = _obstacles(data, header)
        if not obstacles:
            _check_end(data, header)
    except (Damaged, IndexError, struct.error) as error:
        words = str(error) if isinstance(error, Damaged) else "it ends too early"
        obstacles = [f"{DAMAGED}{words}", *_visible(header)]
    return Jpeg(header, tuple(obstacles), tuple(header.cuts))


def check_agreed(data: bytes) -> Header:
    """Check that decoders agree on the pixels: the chroma sampling is a common one, and no table is missing.

    Return the header, as far as it could be read. Raises ValueError; any other damage is left to the decoder.
    """
    header = Header()
    with suppress(Damaged, IndexError, struct.error):
        read_header(data, header)
        if len(header.components) == 3 and not header.common_sampling:
            raise ValueError(f"decoders disagree on its chroma sampling, {header.sampling}")
        if header.frame in (BASELINE, EXTENDED) and _lacks_table(data, header):
            raise ValueError("it lacks a table that its scan needs")
    return header


def without_cuts(data: bytes, jpeg: Jpeg) -> bytes:
    """Return the file without the bytes of ``jpeg.cuts``; the same object if there are none."""
    for start, stop, _ in reversed(jpeg.cuts):
        data = data[:start] + data[stop:]
    return data


def _obstacles(data: bytes, header: Header) -> list[str]:
    """Return why a decoder of plain baseline files would refuse this one, or show it wrong. Raises Damaged."""
    if not header.frame or not header.width or not header.height or not header.components:
        raise Damaged("no frame with a size before the scan")
    found = []
    if header.frame == PROGRESSIVE:
        found.append("progressive to baseline")
    elif header.frame != BASELINE or header.precision != 8:
        found.append(f"frame type {header.frame - BASELINE} of {header.precision} bits to baseline")
    if len(header.components) not in (1, 3, 4):
        raise Damaged(f"{len(header.components)} components")
    if len(header.components) != 4 and data[header.scan] != len(header.components):
        found.append("several scans to one")
    elif len(header.components) != 4 and not header.common_sampling:
        found.append(f"sampling {header.sampling} to 4:2:0")
    if _stored_as_rgb(header):
        found.append("stored RGB to YCbCr")
    return found + _visible(header)


def _visible(header: Header) -> list[str]:
    found = []
    if len(header.components) == 4:
        found.append(YCCK_TO_RGB if header.adobe == YCCK else CMYK_TO_RGB)
    if header.orientation > 1:
        found.append(TURNED)
    return found


def _stored_as_rgb(header: Header) -> bool:
    identifiers = bytes(component[0] for component in header.components)
    if len(identifiers) != 3 or header.jfif:
        return False
    return header.adobe == 0 or (header.adobe is None and identifiers == b"RGB")


def _check_end(data: bytes, header: Header) -> None:
    """Check that one scan of all components follows, with its tables, then the end. Note bytes after it as a cut.

    Raises Damaged.
    """
    first = _scan_start(data, header)
    end = _scan_end(data, first, header)
    blocks, _ = _blocks_and_mcus(header)
    if (end - first) * 8 < 2 * blocks:  # a block has at least one bit for its DC and one for its AC coefficients
        raise Damaged(f"its {end - first} bytes of data are too few for {header.width} x {header.height} pixels")
    if end + 2 < len(data):
        why = f"{len(data) - end - 2} bytes after its end cut off"
        header.cuts.append((end + 2, len(data), FIRST_PICTURE if header.several_pictures else why))


def _scan_start(data: bytes, header: Header) -> int:
    place = header.scan + 1
    for identifier, _, _, _ in header.components:
        if data[place] != identifier:
            raise Damaged("components in another order than the frame's")
        place += 2
    if _lacks_table(data, header):
        raise Damaged("a table is missing")
    length = place + 3 - (header.scan - 2)
    if data[header.scan - 2 : header.scan] != length.to_bytes(2, "big") or data[place : place + 3] != b"\0\x3f\0":
        raise Damaged("a scan that no baseline file has")
    return place + 3


def _lacks_table(data: bytes, header: Header) -> bool:
    """Return true if the first scan names a Huffman or quantisation table that no segment before it defines."""
    quantization = {identifier: table for identifier, _, _, table in header.components}
    for place in range(header.scan + 1, header.scan + 1 + 2 * data[header.scan], 2):
        dc, ac = data[place + 1] >> 4, 16 + (data[place + 1] & 15)
        if not {dc, ac} <= header.huffman or quantization.get(data[place]) not in header.quantization:
            return True
    return False


def _scan_end(data: bytes, first: int, header: Header) -> int:
    """Return the offset of EOI, the first marker in the scan except restart markers. Raises Damaged if these are wrong
    or another marker comes first."""
    if first + 2 > len(data):
        raise Damaged("no data")
    scan = np.frombuffer(data, np.uint8, offset=first)
    is_marker = (scan[:-1] == 0xFF) & (scan[1:] != 0)  # vectorised: 12 us for 110 KB; bytes.find in a loop takes 70
    found = int(is_marker.argmax())
    if header.restart_interval:
        markers = np.flatnonzero(is_marker)
        _, mcus = _blocks_and_mcus(header)
        restarts = (mcus - 1) // header.restart_interval
        if len(markers) <= restarts or (scan[markers[:restarts] + 1] != 0xD0 + np.arange(restarts) % 8).any():
            raise Damaged("restart markers are missing or out of order")
        found = int(markers[restarts])
    if not is_marker[found]:
        raise Damaged("no end")
    if scan[found + 1] != EOI:
        raise Damaged(f"marker {scan[found + 1]:02X} within the data, at byte {first + found}")
    return first + found


def _blocks_and_mcus(header: Header) -> tuple[int, int]:
    """Return the number of 8x8 blocks in the scan, and of MCUs, the units between which restart markers may stand."""
    if len(header.components) == 1:  # T.81 A.2.2: sampling factors mean nothing then
        blocks = -(-header.width // 8) * -(-header.height // 8)
        return blocks, blocks
    h, v = (max(component[axis] for component in header.components) for axis in (1, 2))
    mcus = -(-header.width // (8 * h)) * -(-header.height // (8 * v))
    return mcus * sum(component[1] * component[2] for component in header.components), mcus
