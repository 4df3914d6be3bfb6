"""The two arrays of a shard folder, .npy files of one shape and type each: anything else in them is refused unread."""

import io

import numpy as np

from pipelines.shards.manifest import ImageFormat


def npy_header(shape: tuple[int, ...], dtype: type) -> bytes:
    """How numpy's format 1.0 begins; without it the file is ``shape``'s pixels and nothing else."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def raw_header_of(image: ImageFormat) -> bytes:
    """What each member of raw shards begins with; nothing for JPEGs."""
    return npy_header((image.size, image.size, 3), np.uint8) if image.encoding == "raw" else b""


def read_npy(data: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Raises ValueError for any other array.

    ``numpy.load`` would take memory for whatever its header claims, and evaluate that header.
    """
    header = npy_header(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not data.startswith(header) or len(data) != len(header) + size:
        raise ValueError(f"it is not a whole array of {','.join(map(str, shape))} {np.dtype(dtype).name}")
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape).copy()
