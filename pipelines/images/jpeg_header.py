"""The segments of a JPEG file up to its scan, read and checked (ITU-T T.81, annex B)."""

import struct
from dataclasses import dataclass, field
from functools import lru_cache

from pipelines.images.exif import orientation

EOI, SOS, DQT, DHT, DRI, COM = 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xFE
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
KNOWN = FRAMES | {SOS, DQT, DHT, DRI, COM, *range(APP0, APP15 + 1)}

# Sampling factors of the first component if the two others have 1x1: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1.
COMMON_SAMPLINGS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})

BROKEN_EXIF = "broken EXIF ignored"
SECOND_EXIF = "a second EXIF block ignored"
FIRST_PICTURE = "the first of its pictures kept"


class Damaged(Exception):
    """An error in the file; its message says what is wrong."""


@dataclass(slots=True)
class Header:
    """The contents of the segments before the scan. ``components`` are (identifier, h, v, quantisation table)."""

    frame: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    components: list[tuple[int, int, int, int]] = field(default_factory=list)
    quantization: set[int] = field(default_factory=set)
    huffman: set[int] = field(default_factory=set)  # 0x00 and up DC, 0x10 and up AC
    restart_interval: int = 0
    jfif: bool = False
    adobe: int | None = None
    several_pictures: bool = False
    orientation: int = 0  # 1 to 8, as in EXIF; 0 without an EXIF block that can be read
    cuts: list[tuple[int, int, str]] = field(default_factory=list)
    scan: int = 0  # offset of the SOS segment's contents

    @property
    def common_sampling(self) -> bool:
        """True for grey and ``COMMON_SAMPLINGS``, on whose pixels decoders agree. native.c has the same rule."""
        return len(self.components) == 1 or (len(self.components) == 3 and self._common_colours)

    @property
    def usual(self) -> bool:
        """True if every build of libjpeg-turbo decodes the file: Huffman codes, 8 bits, a common sampling, also of CMYK
        with black sampled as the first component."""
        black = [component[1:3] for component in self.components[3:]]
        cmyk = len(black) == 1 and black[0] == self.components[0][1:3] and self._common_colours
        frames = (BASELINE, EXTENDED, PROGRESSIVE)
        return self.frame in frames and self.precision == 8 and (cmyk or self.common_sampling)

    @property
    def _common_colours(self) -> bool:
        first, *others = (component[1:3] for component in self.components[:3])
        return first in COMMON_SAMPLINGS and others == [(1, 1)] * 2

    @property
    def sampling(self) -> str:
        """The sampling factors of the components, as "1x4, 1x1, 1x1"."""
        return ", ".join(f"{h}x{v}" for _, h, v, _ in self.components)


def read_header(data: bytes, header: Header) -> None:
    """Fill ``header`` from all segments up to the scan. Raises Damaged, IndexError or struct.error."""
    if data[:2] != b"\xff\xd8":
        raise Damaged("it does not begin as a JPEG")
    place = 2
    while True:
        if data[place] != 0xFF:
            raise Damaged(f"no marker at byte {place}")
        begin = place
        while data[place] == 0xFF:  # B.1.1.2: any number of fill bytes may precede a marker
            place += 1
        marker = data[place]
        if marker not in KNOWN:
            raise Damaged(f"marker {marker:02X} at byte {place} of the header")
        start, stop = place + 3, place + 1 + (data[place + 1] << 8) + data[place + 2]
        if stop < start or stop > len(data):
            raise Damaged(f"segment {marker:02X} at byte {place} is longer than the file or has no length")
        if marker == SOS:
            header.scan = start
            return
        _read_segment(data, marker, header, begin=begin, start=start, stop=stop)
        place = stop


def _read_segment(data: bytes, marker: int, header: Header, *, begin: int, start: int, stop: int) -> None:
    if marker in FRAMES:
        _read_frame(data[start:stop], marker, header)
    elif marker == DHT:
        while start < stop:
            symbols = start + 17
            end = symbols + sum(data[start + 1 : symbols])
            _check_huffman(data[start:end])
            header.huffman.add(data[start])
            start = end
    elif marker == DQT:
        while start < stop:
            header.quantization.add(data[start] & 15)
            start += 129 if data[start] >> 4 else 65
    elif marker == DRI:
        header.restart_interval = (data[start] << 8) + data[start + 1]
    elif marker == APP0:
        header.jfif |= data.startswith(b"JFIF\0", start)
    elif marker == APP1 and data.startswith(b"Exif\0\0", start):
        _read_exif(data[start:stop], (begin, stop), header)
    elif marker == APP2 and data.startswith(b"MPF\0", start):
        header.several_pictures = True
        header.cuts.append((begin, stop, FIRST_PICTURE))
    elif marker == APP14 and data.startswith(b"Adobe", start) and stop - start >= 12:
        header.adobe = data[start + 11]
    if marker in (DHT, DQT) and start != stop:
        raise Damaged(f"the tables at byte {begin} are longer or shorter than their segment")


@lru_cache(64)  # most files have the same four, of annex K
def _check_huffman(table: bytes) -> None:
    """Raise Damaged unless ``table`` is possible: class and identifier, numbers of codes of 1 to 16 bits, symbols."""
    counts, symbols = table[1:17], table[17:]
    codes = sum(count << (16 - bits) for bits, count in enumerate(counts, start=1))
    if table[0] & ~0x13 or codes > 1 << 16 or len(symbols) > 256 or (table[0] < 16 and max(symbols, default=0) > 15):
        raise Damaged("an impossible Huffman table")


def _read_frame(content: bytes, marker: int, header: Header) -> None:
    header.precision, header.height, header.width, count = struct.unpack_from(">BHHB", content)
    if header.frame or len(content) != 6 + 3 * count:
        raise Damaged("two frames, or one of another length than its components need")
    packed = [content[place : place + 3] for place in range(6, len(content), 3)]
    header.frame = marker
    header.components = [(identifier, hv >> 4, hv & 15, table) for identifier, hv, table in packed]
    for axis in (1, 2):  # decoders need integer ratios
        factors = [component[axis] for component in header.components]
        if not all(1 <= factor <= 4 and max(factors) % factor == 0 for factor in factors):
            raise Damaged(f"sampling factors {factors}")


def _read_exif(content: bytes, segment: tuple[int, int], header: Header) -> None:
    """Take the orientation of the first block that can be read. Any other is cut, since decoders differ on it."""
    try:
        found = orientation(content)
    except ValueError:
        header.cuts.append((*segment, BROKEN_EXIF))
        return
    if header.orientation:
        header.cuts.append((*segment, SECOND_EXIF))
    else:
        header.orientation = found
