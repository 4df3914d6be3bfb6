"""The search for the image that DALI could not use: its error often names none, and its pipeline cannot continue.

This runs only after an error that names no image. A reader alone, with the same arguments and seed, repeats the same
order (some 100,000 samples a second from memory), this time with the source of each sample. The images of the batch
that failed then pass through the rest of the graph one by one.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipelines.dali.graph import Graph
from pipelines.errors import DataError
from pipelines.images.limits import check_shape
from pipelines.shards.manifest import ImageFormat
from pipelines.turbo.decode import read_member

PATIENCE_SECONDS = 20.0
READ_AHEAD = 4  # batches that DALI may be working on when one fails: those it makes ahead, and the one asked for
# Errors that no image causes. nvJPEG's other codes (bad JPEG, not supported, incomplete bitstream) are about images.
GPU_FAULT = re.compile(
    r"CUDA (?:runtime|driver) API error|CUDA runtime failure|CUDA error|CUDA allocation failed"
    r"|The pipeline requires a CUDA-capable GPU|CUDA driver version"
    r"|cudaError[A-Z]\w+|CUDA_ERROR_\w+|(?:CUDA )?out of memory|Can't allocate \d+ bytes on device"
    r"|NVJPEG_STATUS_(?:NOT_INITIALIZED|ALLOCATOR_FAILURE|EXECUTION_FAILED|ARCH_MISMATCH|INTERNAL_ERROR)"
    r"|nvJPEG (?:runtime )?(?:error|failure)\W*[15678]\b",
    re.IGNORECASE,
)
SOURCE = re.compile(r"([a-z]+-\d{6}\.tar):\d+:(\S+)")  # DALI's form is ARCHIVE:OFFSET:MEMBER


def complaint(error: RuntimeError) -> str:
    """Return DALI's message without the traceback of our own code that it repeats."""
    text = str(error)
    return " ".join((text.rpartition("encountered:")[2] or text).split())[:500]


def gpu_fault(error: RuntimeError, device: torch.device) -> str | None:
    """Return how the GPU failed, None if it works: it fails all later work, so that innocent images are refused too.

    DALI's decoder names only a sample whatever went wrong, so the GPU itself is asked. Waits for the GPU.
    """
    text = " ".join(str(error).split())
    if found := GPU_FAULT.search(text):
        return text[found.start() :][:200]
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError as fault:
        return str(fault).splitlines()[0]
    return None


def named(said: str) -> str | None:
    """Return the shard and the image that DALI's message names, or None."""
    found = SOURCE.search(said)
    return f"shard {found[1]}, image {found[2].partition('.')[0]}" if found else None


@dataclass(frozen=True)
class Trace:
    """A search for samples by batch, counted since the graph was built; it gives up after ``patience_seconds``."""

    graph: Graph
    device_index: int | None
    patience_seconds: float = PATIENCE_SECONDS

    def place(self, batch: int, row: int) -> str | None:
        """Return the shard and image of a row of a batch; None if they were not found in time."""
        return next((named(sources[row]) for _, sources in self._replay(batch, 1)), None)

    def unusable(self, batch: int) -> str | None:
        """Return which image of this batch, or of those read ahead, the graph refuses, and why; None if not found."""
        give_up = time.monotonic() + 2 * self.patience_seconds
        pipeline = self._one_by_one()
        for encoded, sources in self._replay(batch, READ_AHEAD):
            for data, source in zip(encoded, sources, strict=True):
                if time.monotonic() > give_up:
                    return None
                if said := _refused(pipeline, data):
                    return f"{named(source)} cannot be used: {_reason(data, self.graph.manifest.image) or said}"
        return None

    def _replay(self, first: int, count: int) -> Iterator[tuple[list[np.ndarray], list[str]]]:
        """Yield encoded images and sources of ``count`` batches; end early if the reader fails or takes too long."""
        give_up = time.monotonic() + self.patience_seconds
        try:
            reader = self._reader()
            for _ in range(first):
                if time.monotonic() > give_up:
                    return
                reader.run()
            for _ in range(count):
                encoded, sources = reader.run()
                rows = range(self.graph.plan.batch_size)
                yield [np.array(encoded[i]) for i in rows], [bytes(np.array(sources[i])).decode() for i in rows]
        except RuntimeError:  # the error is not in an image; DALI's first message describes it
            return

    def _reader(self) -> Any:
        from nvidia.dali import Pipeline, fn

        reader = Pipeline(self.graph.plan.batch_size, 1, None, exec_dynamic=True, enable_checkpointing=True)
        with reader:
            encoded, _ = self.graph.read()
            reader.set_outputs(encoded, fn.get_property(encoded, key="source_info"))
        reader.build()
        return reader

    def _one_by_one(self) -> Any:
        from nvidia.dali import Pipeline, fn

        graph = replace(self.graph, plan=replace(self.graph.plan, batch_size=1))
        pipeline = Pipeline(1, 1, self.device_index, seed=0, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            pipeline.set_outputs(graph.images(fn.external_source(name="encoded")))
        pipeline.build()
        return pipeline


def _refused(pipeline: Any, data: np.ndarray) -> str | None:
    """Return why the graph refuses an image, None if it takes it. Raises RuntimeError if it is not for the image."""
    try:
        pipeline.feed_input("encoded", [data])
        pipeline.run()
    except RuntimeError as error:
        if GPU_FAULT.search(str(error)):
            raise
        return complaint(error)
    return None


def _reason(data: np.ndarray, image: ImageFormat) -> str | None:
    """Return our own decoder's reason for refusing an image; None if it can read what DALI cannot."""
    try:
        height, width = read_member(data.tobytes(), image).shape[:2]
        check_shape(height, width, image)
    except (DataError, ValueError) as error:
        return str(error)
    return None
