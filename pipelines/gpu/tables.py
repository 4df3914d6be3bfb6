"""The tables of a header, prepared for the kernels: Huffman codes for look-ups (ITU-T T.81, annex C), quantisation."""

import numpy as np

from pipelines.gpu.layout import JpegLayout

LOOK = 9  # bits of a look-up, as in batch.cu
# The layout of batch.cu's struct Tables, whose comments explain the fields.
TABLES = np.dtype(
    [
        ("lookup", np.uint16, (6, 1 << LOOK)),
        ("above", np.int32, (6, 17)),
        ("offset", np.int32, (6, 17)),
        ("symbols", np.uint8, (6, 256)),
        ("steps", np.int16, (3, 64)),
        ("zigzag", np.uint8, 64),
    ]
)


def zigzag() -> np.ndarray:
    """Return where each coefficient lies in its block, row by row, in the order of the scan (A.3.6)."""
    diagonals = [[8 * i + n - i for i in range(8) if 0 <= n - i < 8] for n in range(15)]
    return np.array([place for n, line in enumerate(diagonals) for place in line[:: 1 if n % 2 else -1]], np.uint8)


def tables_of(layout: JpegLayout) -> np.ndarray:
    """Return one TABLES for the kernels."""
    tables = np.zeros((), TABLES)
    tables["zigzag"] = zigzag()
    for component, steps in enumerate(layout.quantisation):
        tables["steps"][component, zigzag()] = np.array(steps, np.uint16).view(np.int16)
        for number, table in enumerate((layout.dc[component], layout.ac[component]), start=2 * component):
            _add_huffman(tables, number, table)
    return tables


def _add_huffman(tables: np.ndarray, number: int, table: bytes) -> None:
    """Make the codes of a Huffman table (C.2): those of one length follow each other."""
    symbols, code, place = table[16:], 0, 0
    tables["symbols"][number, : len(symbols)] = list(symbols)
    for length, count in enumerate(table[:16], start=1):
        tables["offset"][number, length] = place - code
        for symbol in symbols[place : place + count] if length <= LOOK else b"":
            spare = LOOK - length  # bits behind the code, which may have any value
            tables["lookup"][number, code << spare : (code + 1) << spare] = length << 8 | symbol
            code += 1
        code += count if length > LOOK else 0
        tables["above"][number, length] = code
        place, code = place + count, code << 1
