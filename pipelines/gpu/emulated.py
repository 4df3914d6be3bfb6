"""The kernels on a CPU, compiled from the same source with loops in place of the grid: for tests, and without a GPU."""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import util
from typing import Any

from pipelines.gpu.kernels import LAYOUT, Batch

MISSING = (
    "the GPU's decoder cannot be emulated on this CPU: its compiled part was not built. "
    "Install a C++ compiler, then run make -B env"
)


def runner() -> Callable[[Batch], None]:
    """Return the function that decodes a batch, whose pointers are those of host memory. Raises OSError without it."""
    library = emulated_library()
    if library is None:
        raise OSError(MISSING)
    return lambda batch: library.decode_batch(ctypes.byref(batch))


@cache
def emulated_library() -> Any:
    """Return the library, or None if it was not built or is of another version."""
    found = util.find_spec("pipelines.gpu._emulated")
    return load_library(found.origin) if found and found.origin else None


def load_library(path: str) -> Any:
    """Return the library at a path, or None if it does not load or is of another version."""
    try:
        library = ctypes.CDLL(path)
        fits = library.layout() == LAYOUT
        _ = library.decode_batch
    except (OSError, AttributeError):
        return None
    return library if fits else None
