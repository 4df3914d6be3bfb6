"""Memory for batches, used again and again.

Fresh memory is slow: the kernel must zero 150 MB of pages for each float32 batch of 256, and pinning takes longer.
"""

import math
import weakref
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

ALIGNED = 64  # bytes; enough for every type, and for the GPU's vectors


class Arrays(NamedTuple):
    """The arrays of a batch that threads fill, and the memory of them: on a CPU of the images, for a GPU of all."""

    images: np.ndarray  # N,size,size,3
    labels: np.ndarray  # int64
    crops: np.ndarray  # N,3 int64: top and left of each crop, and if it is flipped
    colours: np.ndarray  # N,3 float32
    memory: torch.Tensor


class Tensors(NamedTuple):
    """The same arrays of uint8 images as tensors, on any device."""

    images: torch.Tensor
    labels: torch.Tensor
    crops: torch.Tensor
    colours: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """The shapes of a batch's arrays, and their places in one piece of memory: ``rows`` labels, ``images`` images."""

    rows: int
    images: int
    size: int

    @property
    def nbytes(self) -> int:
        return self._ends[-1]

    def cut(self, memory: torch.Tensor) -> Tensors:
        """Return views of ``memory``, ``nbytes`` uint8."""
        return Tensors(**self.views(memory))

    def views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the view of each array, by name."""
        parts = zip(self.shapes().items(), [0, *self._ends], strict=False)
        return {
            name: memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for (name, (shape, dtype)), start in parts
        }

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shape and type of each array, by name, in their order in memory."""
        return {
            "images": ((self.images, self.size, self.size, 3), torch.uint8),
            "labels": ((self.rows,), torch.int64),
            "crops": ((self.images, 3), torch.int64),
            "colours": ((self.images, 3), torch.float32),
        }

    @cached_property
    def _ends(self) -> list[int]:
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes().values()]
        return list(accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes))


class LentBuffers:
    """A pool of memory: ``take`` lends some, which returns to the pool when the last tensor that uses it is gone."""

    def __init__(self, layout: Layout, dtype: type) -> None:
        """Make an empty pool of memory for batches of this layout, whose images have this type."""
        self._layout, self._dtype = layout, dtype
        self._free: list[np.ndarray] = []

    def take(self) -> Arrays:
        """Return uninitialised arrays; only the memory of the images is lent."""
        rows, images, size = self._layout.rows, self._layout.images, self._layout.size
        memory = self._free.pop() if self._free else np.empty((images, size, size, 3), self._dtype)
        lent = memory.view()  # the tensor and its slices keep it alive
        weakref.finalize(lent, self._free.append, memory).atexit = False
        small = np.empty(rows, np.int64), np.empty((images, 3), np.int64), np.empty((images, 3), np.float32)
        return Arrays(memory, *small, torch.from_numpy(lent))


def buffers_in_a_block(nbytes: int, least: int) -> int:
    """Return how many buffers of ``nbytes`` the smallest power of two holds that holds ``least`` of them."""
    return 2 ** math.ceil(math.log2(least * nbytes)) // nbytes


class PinnedBuffers:
    """Pinned memory, from which a GPU copies by itself: one block, allocated once and cut into equal buffers.

    Torch rounds pinned memory up to a power of two: 154 MB, a batch of 1024, to 256. As many buffers are cut as the
    block has room for: six of 1 GiB then. For a CPU, ``least`` buffers that are not pinned.
    """

    def __init__(self, layout: Layout, least: int, device: torch.device) -> None:
        """Allocate at least ``least`` buffers, for copies to ``device``."""
        self._layout = layout
        pinned = device.type == "cuda"
        count = buffers_in_a_block(layout.nbytes, least) if pinned else least
        with torch.cuda.device(device) if pinned else nullcontext():  # on another it would make a context, for 500 MB
            block = torch.empty((count, layout.nbytes), dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self._free: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque((memory, None) for memory in block)

    def take(self) -> Arrays:
        """Return uninitialised arrays in a buffer. Their contents of before have been copied."""
        memory = self.take_memory()
        images, labels, crops, colours = (tensor.numpy() for tensor in self._layout.cut(memory))
        return Arrays(images, labels, crops, colours, memory)

    def take_memory(self) -> torch.Tensor:
        """Return a buffer, ``nbytes`` uint8, whose contents have been copied."""
        memory, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()  # the host waits, but hardly ever: this copy is the oldest
        return memory

    def give_back(self, memory: torch.Tensor, copied: torch.cuda.Event | None) -> None:
        """Lend this buffer again once the GPU has passed ``copied``."""
        self._free.append((memory, copied))
