"""native.c, where it was built: samples that are as they should be are read and decoded without Python's lock.

The same pixels as decode.py's, in less time: no rows below the part that is wanted are decoded, and the part goes
straight to where it belongs. What is not done is left to records.py and decode.py, which say what is wrong.
"""

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from importlib import util
from typing import Any

import numpy as np

from pipelines.crops import Box, shrink_to
from pipelines.records import Records

INT, POINTER = ctypes.c_int32, ctypes.c_void_p


class Sample(ctypes.Structure):
    """native.c says what these are."""

    _fields_ = (
        *(("line", POINTER), ("extension", ctypes.c_char_p), ("length", INT), ("file", INT)),
        *(("label_digits", INT), ("classes", INT), ("square", INT), ("label", INT), ("height", INT)),
        *(("width", INT), ("size", INT), ("at", ctypes.c_int64), ("shrink", INT), ("top", INT), ("left", INT)),
        *(("part_height", INT), ("part_width", INT), ("flip", INT), ("channels", INT), ("done", INT)),
        ("out", POINTER),
    )

    def want(self, box: Box, shrink: int, flip: bool, channels: int, address: int) -> None:
        """The box of the image, shrunk and then mirrored."""
        self.top, self.left = box.top // shrink, box.left // shrink
        self.part_height, self.part_width = box.height // shrink, box.width // shrink
        self.shrink, self.flip, self.channels, self.out = shrink, flip, channels, address


class Worker:
    """One thread's decoder and memory."""

    def __init__(self, records: Records, at_once: int) -> None:
        """``at_once``: samples of a call, at most."""
        self._library, self._records = native_library(), records
        self._worker = POINTER(self._library.worker_new())
        weakref.finalize(self, self._library.worker_free, self._worker)
        self._samples = (Sample * at_once)()
        for sample in self._samples:
            sample.extension, sample.label_digits, sample.classes, sample.square = records.stored
        self._memory = np.empty(0, np.uint8)

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        """These samples of the split, until the next call. Where the height is 0, something is not as it should be."""
        samples = self._samples[: len(numbers)]
        for number, sample in zip(numbers, samples, strict=True):
            sample.file, sample.line, sample.length = self._records.locate(number)
        self._library.read_samples(self._worker, self._samples, len(numbers))
        return samples

    def decode(self, boxes: Sequence[Box | None], flips: Sequence[bool], out: np.ndarray) -> list[np.ndarray | None]:
        """A box of each sample just read, mirrored where ``flips`` says so; None where there is none, or it failed.

        A box of the size of ``out``, N,size,size,3 uint8, is written there. Others come as H,W,4, shrunk as far as
        ``size`` pixels a side remain, in memory that is good until the next call.
        """
        size, address, used = out.shape[1], out.ctypes.data, 0
        found: list[np.ndarray] = []
        self._grow(sum(4 * box.height * box.width for box in boxes if box))
        for sample, box, flip, image in zip(self._samples, boxes, flips, out, strict=False):
            if box is None:
                sample.height = 0
            elif box.height == box.width == size:
                sample.want(box, 1, flip, 3, address + len(found) * image.nbytes)
            else:
                shrink = shrink_to(box, size)
                height, width = box.height // shrink, box.width // shrink
                image = self._memory[used:][: 4 * height * width].reshape(height, width, 4)
                sample.want(box, shrink, flip, 4, self._address + used)
                used += image.nbytes
            found.append(image)
        self._library.decode_parts(self._worker, self._samples, len(found))
        return [image if sample.done else None for sample, image in zip(self._samples, found, strict=False)]

    def _grow(self, size: int) -> None:
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
            self._address = self._memory.ctypes.data


def has_native() -> bool:
    return native_library() is not None


@cache
def native_library() -> Any:
    """None where it was not built, or does not fit the libjpeg that is installed."""
    found = util.find_spec("pipelines._native")
    if not found or not found.origin:
        return None
    try:
        library = ctypes.CDLL(found.origin)
    except OSError:  # libjpeg is missing
        return None
    library.worker_new.restype = POINTER
    return library if library.worker_new() else None
