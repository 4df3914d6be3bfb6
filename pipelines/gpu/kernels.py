"""The kernels' arguments and grids, for whoever launches them: ``emulated.py`` on a CPU, ``launch.py`` on a GPU."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.gpu.tables import TABLES

FOLDER = Path(__file__).parent
SOURCES = ("batch.cu", "entropy.cu", "pixels.cu")  # in this order
POINTERS = ("data", "offsets", "sizes", "boxes", "crops", "colours", "matrices", "others", "header", "tables")
MEMORY = ("mean_image", "scale", "ends", "coefficients", "planes", "images", "status")
NUMBERS = ("rows", "size", "dtype", "height", "width", "components", "h", "v")
COUNTS = ("mcus_down", "mcus_across", "interval", "pieces", "header_bytes")


class Batch(ctypes.Structure):
    """The layout of batch.cu's struct Batch, whose comments explain the fields."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*POINTERS, *MEMORY)),
        ("data_bytes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in (*NUMBERS, *COUNTS)),
    )


LAYOUT = ctypes.sizeof(Batch) * 100_000 + TABLES.itemsize  # of both structs, as emulated.cpp returns it


class Launch(NamedTuple):
    """A kernel to launch on a grid of ``blocks`` x rows of the batch, with ``threads`` threads a block."""

    kernel: str
    blocks: int
    threads: int


def launches(batch: Batch, blocks_of_image: int) -> Iterator[Launch]:
    """Yield the kernels of a batch in their order; the numbers of threads are those of batch.cu."""
    yield Launch("find_markers", 1, 256)
    yield Launch("decode_pieces", -(-batch.pieces // 64), 64)
    yield Launch("transform", -(-blocks_of_image // 16), 128)
    yield Launch("finish", -(-batch.size * -(-batch.size // 4) // 256), 256)


def source() -> str:
    """Return the kernels' source as one text."""
    return "".join(f'#line 1 "{name}"\n{(FOLDER / name).read_text()}' for name in SOURCES)
