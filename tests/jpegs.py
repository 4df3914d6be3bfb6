"""JPEGs of any sampling and with any tables, made coefficient by coefficient, because no common encoder writes them.

ITU-T T.81, annexes B (segments), C and F.1 (Huffman coding).
"""

import random
from dataclasses import dataclass

import numpy as np
import simplejpeg

Factors = tuple[tuple[int, int], ...]  # h, v of each component

COMMON: dict[str, Factors] = {
    "grey": ((1, 1),),
    "grey 2x2": ((2, 2),),
    "4:4:4": ((1, 1), (1, 1), (1, 1)),
    "4:2:2": ((2, 1), (1, 1), (1, 1)),
    "4:4:0": ((1, 2), (1, 1), (1, 1)),
    "4:2:0": ((2, 2), (1, 1), (1, 1)),
    "4:1:1": ((4, 1), (1, 1), (1, 1)),
}
RARE: dict[str, Factors] = {
    "4:4:1": ((1, 4), (1, 1), (1, 1)),
    "4:1:0": ((4, 2), (1, 1), (1, 1)),
    "3x1": ((3, 1), (1, 1), (1, 1)),
    "unequal chroma": ((2, 2), (2, 1), (1, 1)),
    "all 2x1": ((2, 1), (2, 1), (2, 1)),
}
INVALID: dict[str, Factors] = {  # more than ten blocks in an MCU (B.2.3)
    "4x4": ((4, 4), (1, 1), (1, 1)),
    "all 2x2": ((2, 2), (2, 2), (2, 2)),
}


@dataclass
class Kind:
    """The properties of a JPEG to generate.

    ``tables``: ``standard`` (annex K), ``shuffled`` or ``long`` (codes of up to 16 bits). ``most_dc``: the
    largest absolute DC coefficient; no picture exceeds 1024. ``without``: markers of the segments to leave out.
    """

    factors: Factors = COMMON["4:2:0"]
    width: int = 80
    height: int = 64
    restart_interval: int = 0
    tables: str = "standard"
    quality: int = 90
    most_dc: int = 100
    without: tuple[int, ...] = ()


def generate(rng: random.Random, kind: Kind) -> bytes:
    """Return a JPEG with random coefficients, most of them small and at low frequencies."""
    standard = _segments(_standard(kind.quality))
    huffman = {table[0]: table for table in _huffman_tables(standard[0xC4])}
    if kind.tables != "standard":
        huffman = {number: _changed(rng, table, kind.tables) for number, table in huffman.items()}
    frame = b"\x08" + kind.height.to_bytes(2) + kind.width.to_bytes(2) + bytes([len(kind.factors)])
    scan = bytes([len(kind.factors)])
    for number, (h, v) in enumerate(kind.factors):
        frame += bytes([number + 1, h << 4 | v, number > 0])
        scan += bytes([number + 1, 0x11 if number else 0x00])
    segments = [
        (0xDB, b"".join(standard[0xDB])),
        (0xC0, frame),
        (0xC4, b"".join(huffman.values())),
        *([(0xDD, kind.restart_interval.to_bytes(2))] if kind.restart_interval else []),
        (0xDA, scan + b"\0\x3f\0"),
    ]
    written = b"".join(
        bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content
        for marker, content in segments
        if marker not in kind.without
    )
    return b"\xff\xd8" + written + _scan(rng, kind, {n: _codes(t) for n, t in huffman.items()}) + b"\xff\xd9"


def _standard(quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality)


def _segments(jpeg: bytes) -> dict[int, list[bytes]]:
    """Return the contents of the segments before the scan, by marker."""
    found: dict[int, list[bytes]] = {}
    place = 2
    while jpeg[place + 1] != 0xDA:
        length = int.from_bytes(jpeg[place + 2 : place + 4])
        found.setdefault(jpeg[place + 1], []).append(jpeg[place + 4 : place + 2 + length])
        place += 2 + length
    return found


def _huffman_tables(contents: list[bytes]) -> list[bytes]:
    tables, data = [], b"".join(contents)
    while data:
        end = 17 + sum(data[1:17])
        tables.append(data[:end])
        data = data[end:]
    return tables


def _changed(rng: random.Random, table: bytes, how: str) -> bytes:
    """Return a table with the same symbols and other codes."""
    symbols = rng.sample(list(table[17:]), len(table) - 17)
    counts = list(table[1:17])
    if how == "long":
        counts = [0] * 16
        counts[1:8] = [1] * 7
        counts[15] = len(symbols) - 7
        if len(symbols) < 16:  # DC
            counts = [0, *[1] * len(symbols), *[0] * 16][:16]
    return bytes([table[0], *counts, *symbols])


def _codes(table: bytes) -> dict[int, str]:
    """Return the code of each symbol, as a string of bits."""
    codes, code, symbols = {}, 0, iter(table[17:])
    for length, count in enumerate(table[1:17], start=1):
        for _ in range(count):
            codes[next(symbols)] = f"{code:0{length}b}"
            code += 1
        code <<= 1
    return codes


def _scan(rng: random.Random, kind: Kind, codes: dict[int, dict[int, str]]) -> bytes:
    alone = len(kind.factors) == 1
    h, v = (1, 1) if alone else (max(f[0] for f in kind.factors), max(f[1] for f in kind.factors))
    mcus = -(-kind.width // (8 * h)) * -(-kind.height // (8 * v))
    out, bits, last = bytearray(), [], [0] * len(kind.factors)
    for mcu in range(mcus):
        if kind.restart_interval and mcu and mcu % kind.restart_interval == 0:
            out += _packed(bits) + bytes([0xFF, 0xD0 + (mcu // kind.restart_interval - 1) % 8])
            bits, last = [], [0] * len(kind.factors)
        for number, factors in enumerate(kind.factors):
            for _ in range(1 if alone else factors[0] * factors[1]):
                step = rng.randint(-kind.most_dc // 5, kind.most_dc // 5)
                value = max(-kind.most_dc, min(kind.most_dc, last[number] + step))
                _block(rng, bits, value - last[number], codes[number > 0], codes[16 + (number > 0)])
                last[number] = value
    return bytes(out + _packed(bits))


def _block(rng: random.Random, bits: list[str], difference: int, dc: dict[int, str], ac: dict[int, str]) -> None:
    size = abs(difference).bit_length()
    bits += [dc[size], _value(difference, size)]
    place = 1
    for _ in range(min(rng.randint(0, 12), rng.randint(0, 63))):
        run = min(int(rng.expovariate(0.7)), 63 - place)
        place += run + 1
        while run > 15:
            bits.append(ac[0xF0])
            run -= 16
        size = 1 if rng.random() < 0.8 else rng.randint(2, 6)
        value = rng.randint(1 << size - 1, (1 << size) - 1) * rng.choice((-1, 1))
        bits += [ac[run << 4 | size], _value(value, size)]
        if place > 63:
            return
    bits.append(ac[0])


def _value(value: int, size: int) -> str:
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _packed(bits: list[str]) -> bytes:
    """Return the bits as bytes, padded with ones, with a zero byte stuffed after each 0xFF."""
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0") if text else b""
