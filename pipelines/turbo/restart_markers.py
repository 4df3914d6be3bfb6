"""Restart markers, between which turbo passes over what a crop does not show (entropy.c).

Each costs some four bytes, as what stands after it is coded without regard to what stood before.
"""

import ctypes

import numpy as np

from pipelines.turbo.native import address_of, native_library

INTERVAL = 4  # MCUs: blocks of 16x16 pixels in most files


def with_restarts(jpeg: bytes) -> bytes:
    """The same coefficients with restart markers, without metadata.

    Raises ValueError where the data is damaged, OSError where native.py's library was not built.
    """
    library = native_library()
    if library is None:
        raise OSError("restart markers need turbo's compiled part, which this machine lacks")
    out = np.empty(4 * len(jpeg) + (1 << 16), np.uint8)  # other Huffman tables may triple it
    length = library.with_restarts(
        jpeg, ctypes.c_int64(len(jpeg)), INTERVAL, ctypes.c_void_p(address_of(out)), ctypes.c_int64(len(out))
    )
    if not length:
        raise ValueError("its data is damaged")
    return out[:length].tobytes()
