"""The .npy files of a shard folder: raw images and the mean image, each of one known shape and type.

A file with another header is refused before its contents are read.
"""

import io

import numpy as np

from pipelines.shards.manifest import ImageFormat


def npy_header(shape: tuple[int, ...], dtype: type) -> bytes:
    """Return the header of numpy's format 1.0; the rest of such a file is the values of ``shape``."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def raw_header_of(image: ImageFormat) -> bytes:
    """Return the header that each image of raw shards begins with; empty for JPEGs."""
    return npy_header((image.size, image.size, 3), np.uint8) if image.encoding == "raw" else b""


def read_npy(data: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an array of exactly this shape and type. Raises ValueError for any other array.

    ``numpy.load`` would allocate memory for whatever the header claims, and evaluate that header.
    """
    header = npy_header(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not data.startswith(header) or len(data) != len(header) + size:
        raise ValueError(f"it is not a whole array of {','.join(map(str, shape))} {np.dtype(dtype).name}")
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape).copy()
