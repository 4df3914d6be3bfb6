"""Memory for batches, used again when nobody holds the batch any more.

Fresh memory costs: the kernel hands out 150 MB of zeroed pages for every float32 batch of 256.
"""

import weakref

import numpy as np
import torch


class LentBuffers:
    """``take`` gives memory to write to; it comes back by itself when the last tensor of it is gone."""

    def __init__(self, pinned: bool) -> None:
        """``pinned`` memory is left to torch, which keeps it until the GPU has copied it."""
        self._pinned = pinned
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, torch.Tensor]:
        """The same memory twice, uninitialised. Every call of an instance has the same shape and type."""
        if self._pinned:
            tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
            return tensor.numpy(), tensor
        memory = self._free.pop() if self._free else np.empty(shape, dtype)
        lent = memory.view()  # lives as long as the tensor, whose views all hold it
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return memory, torch.from_numpy(lent)
