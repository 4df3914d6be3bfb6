"""nvJPEG's batched decoding by ctypes, without the libraries built on it. The functions are those of its nvjpeg.h."""

import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from pipelines import DataError

BACKENDS = {"hybrid": 1, "cuda": 2, "hardware": 3}  # NVJPEG_BACKEND_HYBRID, _GPU_HYBRID, _HARDWARE
INTERLEAVED_RGB = 5  # NVJPEG_OUTPUT_RGBI
FOLDERS = ("/usr/local/cuda/lib64", *(f"{path}/nvidia/cu13/lib" for path in sys.path if path.endswith("-packages")))


class Image(ctypes.Structure):
    """The layout of nvjpegImage_t."""

    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


def load_nvjpeg() -> ctypes.CDLL:
    """Return libnvjpeg. Raises DataError if it is not installed."""
    named = [found] if (found := find_library("nvjpeg")) else []
    files = [str(path) for folder in FOLDERS for path in sorted(Path(folder).glob("libnvjpeg.so*"))]
    for name in named + files:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DataError("there is no libnvjpeg: it comes with CUDA, or pip install nvidia-nvjpeg")


class Decoder:
    """A decoder with one of BACKENDS; hybrid shares a batch among ``threads``, as its Huffman decoding is the CPU's.

    Raises DataError if nvJPEG refuses the backend, such as the JPEG engine of a GPU that has none.
    """

    def __init__(self, library: Any, backend: str, threads: int) -> None:
        self._library, self._pool = library, ThreadPoolExecutor(threads if backend == "hybrid" else 1)
        self._workers = [self._worker(BACKENDS[backend]) for _ in range(threads if backend == "hybrid" else 1)]

    def _worker(self, backend: int) -> tuple[Any, Any]:
        handle, state = ctypes.c_void_p(), ctypes.c_void_p()
        check(self._library.nvjpegCreateEx(backend, None, None, 0, ctypes.byref(handle)), "nvjpegCreateEx")
        check(self._library.nvjpegJpegStateCreate(handle, ctypes.byref(state)), "nvjpegJpegStateCreate")
        return handle, state

    def decode(self, jpegs: Sequence[bytes], images: Sequence[tuple[int, int]], streams: Sequence[int]) -> None:
        """Queue the decoding of ``jpegs`` to device memory: an address and a row's bytes each; a stream per worker.

        Raises DataError if nvJPEG cannot decode one of them.
        """
        count = len(self._workers)
        shares = [slice(number, None, count) for number in range(count)]
        done = [
            self._pool.submit(self._share, worker, jpegs[share], images[share], stream)
            for worker, share, stream in zip(self._workers, shares, streams, strict=True)
            if jpegs[share]
        ]
        for one in done:
            one.result()

    def _share(
        self, worker: tuple[Any, Any], jpegs: Sequence[bytes], images: Sequence[tuple[int, int]], stream: int
    ) -> None:
        count = len(jpegs)
        data = (ctypes.c_char_p * count)(*jpegs)
        lengths = (ctypes.c_size_t * count)(*map(len, jpegs))
        targets = (Image * count)()
        for target, (address, pitch) in zip(targets, images, strict=True):
            target.channel[0], target.pitch[0] = address, pitch
        start, run = self._library.nvjpegDecodeBatchedInitialize, self._library.nvjpegDecodeBatched
        check(start(*worker, count, 1, INTERLEAVED_RGB), "nvjpegDecodeBatchedInitialize")
        check(run(*worker, data, lengths, targets, ctypes.c_void_p(stream)), "nvjpegDecodeBatched")

    @property
    def workers(self) -> int:
        return len(self._workers)


def check(status: int, call: str) -> None:
    if status:
        raise DataError(f"nvJPEG: {call} ended with status {status}")
