"""Memory for batches, reused once a batch is garbage-collected.

Fresh memory is slow: the kernel must zero 150 MB of pages for each float32 batch of 256.
"""

import weakref

import numpy as np
import torch


class LentBuffers:
    """A pool of memory: ``take`` lends some, which returns to the pool when the last tensor that uses it is gone."""

    def __init__(self, pinned: bool) -> None:
        """Make an empty pool. Torch manages ``pinned`` memory: it keeps it until the GPU has copied it."""
        self._pinned = pinned
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, torch.Tensor]:
        """Return an uninitialised array and a tensor of its memory. Each call must have the same shape and type."""
        if self._pinned:
            tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device="cpu", pin_memory=True)
            return tensor.numpy(), tensor
        memory = self._free.pop() if self._free else np.empty(shape, dtype)
        lent = memory.view()  # the tensor and its slices keep it alive
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return memory, torch.from_numpy(lent)
