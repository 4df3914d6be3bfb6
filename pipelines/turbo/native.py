"""The binding of the compiled part, native.c, by ctypes: it reads and decodes samples without Python's lock.

It gives the same pixels as decode.py, in less time: it decodes no rows below the crop, and writes the crop straight
into the batch; crops of raw pixels too. It only handles samples that are as sharding writes them. All others are left
to records.py and decode.py, which find out what is wrong. README.md has the contract with native.c.
"""

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.augment import Augment
from pipelines.commands import INSTALLED
from pipelines.images.limits import most_elongated
from pipelines.shards.manifest import Manifest
from pipelines.shards.npy import raw_header_of
from pipelines.shards.records import Records, checked_while_read

POINTER = ctypes.c_void_p
WRITE = 0x200  # PyBUF_WRITE of CPython
memory_view = ctypes.pythonapi.PyMemoryView_FromMemory
memory_view.restype, memory_view.argtypes = ctypes.py_object, (POINTER, ctypes.c_ssize_t, ctypes.c_int)
CROPS = ("random", "resized", "center")  # in the order of native.c's enum
# The layout of native.c's struct sample, whose comments explain the fields.
SAMPLE = np.dtype(
    [
        *(("line", np.uintp), ("length", np.int32), ("file", np.int32), ("flip", np.int32), ("done", np.int32)),
        *(("label", np.int32), ("crop_at", np.int32, 2), ("height", np.int32), ("width", np.int32), ("at", np.int64)),
    ],
    align=True,
)


LOG = logging.getLogger(__name__)
BUILD = "install a C compiler and libjpeg-turbo's headers (or cmake and nasm), then run make -B env"
REINSTALL = "pip install --force-reinstall --no-deps --only-binary alexnet-pipelines alexnet-pipelines"
SLOW = f"without its compiled part: two thirds of the speed; to mend that: {REINSTALL if INSTALLED.is_dir() else BUILD}"
_own = threading.local()  # a worker for ``is_whole``


class NativeSettings(ctypes.Structure):
    """The layout of native.c's struct settings, whose comments explain the fields."""

    _fields_ = (
        *(("extension", ctypes.c_char_p), ("raw_header", ctypes.c_char_p), ("raw_header_bytes", ctypes.c_int32)),
        *(
            (name, ctypes.c_int32)
            for name in ("label_digits", "classes", "checked", "square", "crop", "size", "shorter")
        ),
        ("most_elongated", ctypes.c_double),
        *((name, ctypes.c_double * 2) for name in ("scale", "ratio", "log_ratio")),
    )

    @classmethod
    def of(cls, manifest: Manifest, augment: Augment) -> "NativeSettings":
        image, ratio, header = manifest.image, augment.ratio, raw_header_of(manifest.image)
        return cls(
            extension=image.extension.encode(),
            raw_header=header,
            raw_header_bytes=len(header),
            label_digits=manifest.label_width,
            classes=len(manifest.classes),
            checked=checked_while_read(manifest),
            square=image.size if image.resize == "square" else 0,
            crop=CROPS.index(augment.crop),
            size=augment.size,
            shorter=image.size,
            most_elongated=most_elongated(image),
            scale=augment.scale,
            ratio=ratio,
            log_ratio=(math.log(ratio[0]), math.log(ratio[1])),
        )


class Worker:
    """A thread's decoder and memory."""

    def __init__(self, records: Records, manifest: Manifest, augment: Augment, at_once: int) -> None:
        """Make a worker whose calls render at most ``at_once`` samples each."""
        self._library, self._records = native_library(), records
        self._worker = POINTER(self._library.worker_new())
        weakref.finalize(self, self._library.worker_free, self._worker)
        self._settings = NativeSettings.of(manifest, augment)
        self._samples = np.zeros(at_once, SAMPLE)

    def render(self, numbers: Sequence[int], crop_draws: np.ndarray, flips: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Render samples of the split. Return N SAMPLE, valid until the next call; those not ``done`` are for Python.

        ``crop_draws`` N,40 float64 and ``flips`` N bool are their draws. ``out``, N,size,size,3 uint8, receives the
        pixels, except those of samples that must still be resized, which ``parts`` yields. Raises DataError for a
        damaged index.
        """
        samples = self._samples[: len(numbers)]
        located = np.array([*map(self._records.locate, numbers)], np.int64).reshape(-1, 3)
        samples["file"], samples["line"], samples["length"] = located.T
        samples["flip"] = flips
        draws, stride, attempts = address_of(crop_draws), crop_draws.strides[0] // 8, crop_draws.shape[1] // 4
        self._library.render_samples(
            self._worker,
            ctypes.byref(self._settings),
            POINTER(address_of(samples)),
            len(samples),
            POINTER(draws),
            ctypes.c_int64(stride),
            attempts,
            POINTER(address_of(out)),
        )
        return samples

    def parts(self, samples: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield index in ``samples`` and pixels, H,W,4 uint8, of crops that are yet to be resized; flips are done."""
        start = self._library.worker_parts(self._worker)
        columns = (samples[name].tolist() for name in ("done", "height", "width", "at"))
        for place, (done, height, width, at) in enumerate(zip(*columns, strict=True)):
            if done and height:
                memory = memory_view(start + at, 4 * height * width, WRITE)
                yield place, np.frombuffer(memory, np.uint8).reshape(height, width, 4)


def is_whole(jpeg: bytes) -> bool:
    """Return true for a plain JPEG that decodes without a warning, false for any other. It needs the compiled part."""
    library = native_library()
    if not hasattr(_own, "checker"):
        _own.checker = POINTER(library.worker_new())
        weakref.finalize(_own.checker, library.worker_free, POINTER(_own.checker.value))
    return bool(library.is_whole(_own.checker, jpeg, ctypes.c_int64(len(jpeg))))


def address_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def has_native() -> bool:
    return native_library() is not None


def turbo_text() -> str:
    """Return whether turbo runs its compiled decoder, and what to do if not."""
    return "turbo, compiled decoder" if has_native() else f"turbo {SLOW}"


def decoder_text(backend: str, manifest: Manifest, augment: Augment) -> str:
    """Return the backend and, for turbo, which decoder it runs."""
    if backend != "turbo":
        return backend
    in_python = has_native() and not renders_natively(manifest, augment)
    return "turbo, Python decoder for these samples" if in_python else turbo_text()


@cache
def warn_without_native() -> None:
    """Warn, once in each process, if turbo decodes without its compiled part."""
    if not has_native():
        LOG.warning(turbo_text())


def renders_natively(manifest: Manifest, augment: Augment) -> bool:
    """Return true if the compiled part was built and renders these images.

    It does not make ten crops of an image, nor crops of raw pixels that must be resized.
    """
    resized = manifest.image.encoding == "raw" and augment.crop == "resized"
    return has_native() and manifest.plain and augment.crop in CROPS and not resized


@cache
def native_library() -> Any:
    """Return the library, or None if it was not built."""
    return load_library(str(Path(__file__).with_name("_native.abi3.so")))  # free-threaded Pythons would not find it


def load_library(path: str) -> Any:
    """Return the library, or None if it is of another version or does not fit the libjpeg that is installed."""
    try:
        library = ctypes.CDLL(path)
        fits = library.layout() == ctypes.sizeof(NativeSettings) * 1000 + SAMPLE.itemsize
        library.worker_new.restype = library.worker_parts.restype = POINTER
        library.with_restarts.restype = ctypes.c_int64
        _ = library.render_samples, library.is_whole
    except (OSError, AttributeError):  # libjpeg is missing, or the library is an earlier version without a function
        return None
    return library if fits and library.worker_new() else None
