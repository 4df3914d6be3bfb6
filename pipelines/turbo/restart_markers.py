"""Restart markers, added to a JPEG so that turbo can skip the parts that a crop does not show (entropy.c).

Each costs some four bytes, as the DC prediction restarts after it.
"""

import ctypes

import numpy as np

from pipelines.turbo.native import address_of, native_library

INTERVAL = 4  # MCUs: blocks of 16x16 pixels in most files


def with_restarts(jpeg: bytes) -> bytes:
    """Return a JPEG of the same coefficients with restart markers, without metadata.

    Raises ValueError if the data is damaged, OSError if the compiled part was not built.
    """
    library = native_library()
    if library is None:
        raise OSError("restart markers need turbo's compiled part, which was not built (pipelines/turbo/README.md)")
    out = np.empty(4 * len(jpeg) + (1 << 16), np.uint8)  # other Huffman tables may triple the size
    length = library.with_restarts(
        jpeg, ctypes.c_int64(len(jpeg)), INTERVAL, ctypes.c_void_p(address_of(out)), ctypes.c_int64(len(out))
    )
    if not length:
        raise ValueError("its data is damaged")
    return out[:length].tobytes()
