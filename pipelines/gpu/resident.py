"""The JPEGs of a split, all in the memory of a device: read once, then only their places are sent with each batch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from pipelines.errors import DataError
from pipelines.gpu.gather import Gatherer

LOADED = 1024  # samples that a thread reads at a time
RESERVE = 4 << 30  # bytes of a GPU's memory that are left to the network


class Chunk(NamedTuple):
    """Samples that are read together: their places, in memory from ``start`` on, and the bytes they use."""

    start: int
    places: np.ndarray  # gather.PLACE
    used: int


class Resident:
    """JPEGs in memory. ``data`` is uint8 on the device."""

    def __init__(self, data: torch.Tensor, first: int, places: np.ndarray) -> None:
        """Take ``places``, gather.PLACE in ``data``, of consecutive samples from the number ``first`` on."""
        self.data, self._first, self._places = data, first, places

    def place(self, samples: np.ndarray) -> np.ndarray:
        """Return a copy of the places of these samples; of others, which only pad a batch, any."""
        return self._places[np.clip(samples - self._first, 0, len(self._places) - 1)]


def load(gatherer: Gatherer, samples: range, device: torch.device, threads: int, what: str) -> Resident:
    """Read the JPEGs of these samples into the device's memory; a sample that the GPU cannot decode gets no place.

    ``what`` names them in the error. Raises DataError if there is too little memory, before anything is read.
    """
    chunks = list(_planned(gatherer, samples))
    needed = chunks[-1].start + chunks[-1].used
    check_memory(needed, device, what)
    data = torch.empty(needed, dtype=torch.uint8, device=device)
    pinned = device.type == "cuda"
    largest = max(chunk.used for chunk in chunks)
    buffers = [torch.empty(largest, dtype=torch.uint8, pin_memory=pinned) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(chunks), threads):
            pairs = list(zip(chunks[start : start + threads], buffers, strict=False))
            reads = [pool.submit(gatherer.read, chunk.places, buffer.numpy(), True) for chunk, buffer in pairs]
            for (chunk, buffer), read in zip(pairs, reads, strict=True):
                read.result()
                data[chunk.start : chunk.start + chunk.used].copy_(buffer[: chunk.used])
                chunk.places["at"] += chunk.start
    return Resident(data, samples.start, np.concatenate([chunk.places for chunk in chunks]))


def _planned(gatherer: Gatherer, samples: range) -> Iterator[Chunk]:
    """Yield the samples in chunks, with their places, from the index alone."""
    start = 0
    for first in range(samples.start, samples.stop, LOADED):
        numbers = np.arange(first, min(first + LOADED, samples.stop))
        places, used = gatherer.place(numbers, room=1 << 62, packed=True)
        yield Chunk(start, places, used)
        start += used


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise DataError if less memory than ``needed`` bytes is free on the device."""
    free = free_bytes(device)
    if needed > free:
        place = "GPU memory" if device.type == "cuda" else "memory"
        beside = " beside what is kept for the network" if device.type == "cuda" else ""
        raise DataError(
            f"resident needs {needed / 1e9:.3g} GB of {place} for {what}, and {free / 1e9:.3g} GB are free{beside}: "
            f"{free / needed:.0%} would fit. Leave resident out, or shard fewer images (--classes, --per-class) or "
            "smaller ones (--size)"
        )


def free_bytes(device: torch.device) -> int:
    """Return how much memory a split may take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(0, free + unused - RESERVE)
    import psutil

    return psutil.virtual_memory().available
