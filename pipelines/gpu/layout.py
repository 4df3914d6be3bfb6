"""The header that all JPEGs of a set share, read once: the GPU then parses nothing (ITU-T T.81, annex B)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.images.jpeg_header import BASELINE, DHT, DQT, PROGRESSIVE, SOS, Damaged, Header, read_header

YCC = 1  # Adobe's number for YCbCr
SAMPLINGS = ((1, 1), (2, 1), (2, 2))  # of the first component: 4:4:4, 4:2:2, 4:2:0
MAX_SIDE = 4096  # pixels; a batch's coefficients are addressed by 32 bits within an image


@dataclass(frozen=True)
class JpegLayout:
    """What a header says. Files that begin with the same bytes can be decoded together.

    ``quantisation`` has a table for each component, 64 numbers in zigzag order. ``dc`` and ``ac`` have a Huffman table
    for each: 16 numbers of codes by length, then the symbols.
    """

    header: bytes  # the file up to the scan's data
    height: int
    width: int
    sampling: tuple[int, int]  # horizontal and vertical factors of the first component; those of others are 1, 1
    quantisation: tuple[tuple[int, ...], ...]
    dc: tuple[bytes, ...]
    ac: tuple[bytes, ...]
    restart_interval: int  # MCUs of a piece; the last may have fewer

    @property
    def components(self) -> int:
        """Return 1 for grey, 3 for YCbCr."""
        return len(self.quantisation)

    @property
    def mcus(self) -> tuple[int, int]:
        """Return the rows and columns of MCUs, of 8, or 8 times the sampling factors, pixels a side."""
        across, down = (8 * factor for factor in self.sampling)
        return -(-self.height // down), -(-self.width // across)

    @property
    def blocks(self) -> int:
        """Return the 8x8 blocks of an image, of all components."""
        down, across = self.mcus
        return down * across * (self.sampling[0] * self.sampling[1] + self.components - 1)

    @property
    def pieces(self) -> int:
        """Return the restart intervals of an image, each of which can be decoded by itself."""
        down, across = self.mcus
        return -(-down * across // self.restart_interval)


def read_layout(jpeg: bytes) -> JpegLayout:
    """Return the layout of a JPEG file's header; the data behind it is not looked at.

    Raises ValueError if it is not a JPEG that the GPU decodes, with the reason: "it has no restart markers".
    """
    header = Header()
    try:
        read_header(jpeg, header)
        _check(header)
        scan, end = _scan(jpeg, header)
    except (Damaged, IndexError, struct.error) as error:
        raise ValueError(f"it is damaged: {error if isinstance(error, Damaged) else 'its header ends early'}") from None
    quantisation, huffman = _tables(jpeg)
    try:
        return JpegLayout(
            header=jpeg[:end],
            height=header.height,
            width=header.width,
            sampling=header.components[0][1:3] if len(header.components) == 3 else (1, 1),
            quantisation=tuple(quantisation[component[3]] for component in header.components),
            dc=tuple(huffman[selectors >> 4] for selectors in scan),
            ac=tuple(huffman[16 + (selectors & 15)] for selectors in scan),
            restart_interval=header.restart_interval,
        )
    except KeyError:
        raise ValueError("it lacks a table that its scan needs") from None


def _check(header: Header) -> None:
    """Raise ValueError unless the frame is one that the kernels decode."""
    if header.frame == PROGRESSIVE:
        raise ValueError("it is progressive")
    if header.frame != BASELINE or header.precision != 8:
        raise ValueError("it is not a baseline JPEG of 8 bits")
    if not (0 < header.height <= MAX_SIDE and 0 < header.width <= MAX_SIDE):
        raise ValueError(f"it has {header.width} x {header.height} pixels; at most {MAX_SIDE} a side can be decoded")
    factors = [component[1:3] for component in header.components]
    if len(factors) not in (1, 3):
        raise ValueError(f"it has {len(factors)} components instead of 1 (grey) or 3 (YCbCr)")
    if len(factors) == 3 and (factors[0] not in SAMPLINGS or factors[1:] != [(1, 1)] * 2):
        raise ValueError(f"its chroma sampling is {header.sampling}, not 4:4:4, 4:2:2 or 4:2:0")
    if header.orientation > 1:
        raise ValueError("it is to be turned, by its EXIF data")
    identifiers = bytes(component[0] for component in header.components)
    if len(factors) == 3 and not header.jfif and (header.adobe not in (None, YCC) or identifiers == b"RGB"):
        raise ValueError("it is stored as RGB")
    if not header.restart_interval:
        raise ValueError("it has no restart markers")


def _scan(jpeg: bytes, header: Header) -> tuple[list[int], int]:
    """Return the selectors of each component's Huffman tables, and the offset of the data. Raises Damaged."""
    place, count = header.scan + 1, len(header.components)
    end = place + 2 * count + 3
    named = [component[0] for component in header.components]
    if jpeg[header.scan] != count or list(jpeg[place : place + 2 * count : 2]) != named:
        raise ValueError("its components are in several scans")
    if jpeg[header.scan - 2 : header.scan] != (end - header.scan + 2).to_bytes(2) or jpeg[end - 3 : end] != b"\0\x3f\0":
        raise Damaged("a scan that no baseline file has")
    return list(jpeg[place + 1 : place + 2 * count : 2]), end


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and contents of each segment before the scan; ``read_header`` has checked their lengths."""
    place = 2
    while True:
        while jpeg[place] == 0xFF:
            place += 1
        if jpeg[place] == SOS:
            return
        stop = place + 1 + int.from_bytes(jpeg[place + 1 : place + 3])
        yield jpeg[place], jpeg[place + 3 : stop]
        place = stop


def _tables(jpeg: bytes) -> tuple[dict[int, tuple[int, ...]], dict[int, bytes]]:
    """Return the last quantisation table of each number, and Huffman table: those of AC coefficients from 16 up."""
    quantisation, huffman = {}, {}
    for marker, content in _segments(jpeg):
        while content and marker == DQT:
            wide = content[0] >> 4 != 0
            steps = content[1 : 129 if wide else 65]
            quantisation[content[0] & 15] = struct.unpack(f">64{'H' if wide else 'B'}", steps)
            content = content[len(steps) + 1 :]
        while content and marker == DHT:
            end = 17 + sum(content[1:17])
            huffman[content[0]] = content[1:end]
            content = content[end:]
    return quantisation, huffman
