"""The binding of gather.c by ctypes: many JPEGs from their shards into one piece of memory, without Python for each."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.augment import Augment
from pipelines.shards.locations import Locations
from pipelines.shards.manifest import Manifest
from pipelines.turbo.native import POINTER, NativeSettings, address_of, native_library

# The layout of gather.c's struct place, whose comments explain the fields.
PLACE = np.dtype(
    [
        *(("line", np.uintp), ("length", np.int32), ("file", np.int32)),
        *(("at", np.int64), ("size", np.int32), ("label", np.int32)),
    ],
    align=True,
)
AROUND = 4 * 512  # bytes of a sample's span beside its JPEG, at most: two headers, padding and label


def gathering_library() -> Any:
    """Return turbo's library, or None if it was not built, or is an earlier version without gather.c."""
    library = native_library()
    try:
        fits = library.gather_layout() == ctypes.sizeof(NativeSettings) * 1000 + PLACE.itemsize
        library.place_samples.restype = ctypes.c_int64
    except AttributeError:
        return None
    return library if fits else None


class Gatherer:
    """A reader of a split's JPEGs. Threads may share it for ``read``."""

    def __init__(self, manifest: Manifest, augment: Augment, locations: Locations, header: bytes) -> None:
        """Gather files that begin with ``header``."""
        self._library, self._locations, self._header = gathering_library(), locations, header
        crop = "center" if augment.crop == "ten" else augment.crop  # whose boxes are not chosen here
        self._settings = NativeSettings.of(manifest, replace(augment, crop=crop))

    def place(self, samples: np.ndarray, room: int, packed: bool = False) -> tuple[np.ndarray, int]:
        """Give these samples places in ``room`` bytes. Return N PLACE, and how many bytes they use.

        ``packed``: a place is for a JPEG alone. The size of a sample that has no place is 0. Raises DataError for a
        damaged index and a shard that cannot be opened.
        """
        places = np.empty(len(samples), PLACE)
        places["file"], places["line"], places["length"] = self._locations.of(samples)
        used = self._library.place_samples(
            ctypes.byref(self._settings), POINTER(address_of(places)), len(places), packed, ctypes.c_int64(room)
        )
        return places, used

    def read(self, places: np.ndarray, memory: np.ndarray, packed: bool = False) -> None:
        """Read the placed samples into ``memory``, uint8, and check them. Set ``at``, ``size`` and ``label``.

        The size of a sample that is damaged or begins with another header becomes 0; Python finds out why.
        """
        span = np.empty(int(places["size"].max(initial=0)) + AROUND, np.uint8) if packed else None
        self._library.gather_samples(
            ctypes.byref(self._settings),
            self._header,
            ctypes.c_int64(len(self._header)),
            POINTER(address_of(places)),
            len(places),
            None if span is None else POINTER(address_of(span)),
            POINTER(address_of(memory)),
        )

    def choose(self, crop_draws: np.ndarray, crops: np.ndarray, boxes: np.ndarray) -> None:
        """Choose a box for each crop from its draws, ``crop_draws`` N,40 float64.

        Write its top and left to ``crops``, N,3 int64, and what it shows of the image to ``boxes``, N,4 int32.
        """
        stride, attempts = crop_draws.strides[0] // 8, crop_draws.shape[1] // 4
        self._library.choose_boxes(
            ctypes.byref(self._settings),
            POINTER(address_of(crop_draws)),
            ctypes.c_int64(stride),
            attempts,
            len(crops),
            POINTER(address_of(crops)),
            POINTER(address_of(boxes)),
        )
