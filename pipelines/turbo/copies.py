"""Copies to a GPU, on a stream of their own, so that they overlap with the caller's kernels."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch

from pipelines.turbo.buffers import Layout, PinnedBuffers, Tensors

QUEUED = 4  # batches; more would only take memory of the GPU, which has work for as long
Normalisation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Copied(NamedTuple):
    """A batch on the GPU, or on its way there: it may be used after ``done``."""

    tensors: Tensors
    done: torch.cuda.Event


class DeviceCopies:
    """Copies of batches, normalised by ``normalise`` if it is given, by a stream that works beside the caller's.

    The memory is allocated on that stream, and released to it: torch's allocator keeps what the caller's stream still
    uses (``record_stream``). The caller's host code gets at most ``QUEUED`` batches ahead of the GPU.
    """

    def __init__(self, layout: Layout, device: torch.device, normalise: Normalisation | None, least: int) -> None:
        """Open the stream, and allocate at least ``least`` buffers for batches of this layout."""
        self.buffers = PinnedBuffers(layout, least, device)
        self._layout, self._device, self._normalise = layout, device, normalise
        self._stream = torch.cuda.Stream(device)
        self._handed_out: deque[torch.cuda.Event] = deque()

    def begin(self, memory: torch.Tensor) -> Copied:
        """Begin to copy a batch from a pinned buffer, which is used again after that. Return at once."""
        with torch.cuda.stream(self._stream):
            tensors = self._layout.cut(memory.to(self._device, non_blocking=True))
            labels = tensors.labels.clone()  # a caller who keeps the labels does not keep the images
            images = self._normalise(tensors.images, tensors.crops, tensors.colours) if self._normalise else None
            tensors = tensors._replace(labels=labels, images=tensors.images if images is None else images)
            copied = Copied(tensors, self._stream.record_event(torch.cuda.Event(blocking=True)))
        self.buffers.give_back(memory, copied.done)
        return copied

    def hand_out(self, copied: Copied) -> Tensors:
        """Let the caller's current stream wait for the batch. Return its tensors, for use on that stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied.done)
        for tensor in (copied.tensors.images, copied.tensors.labels):
            tensor.record_stream(current)
        self._handed_out.append(current.record_event(torch.cuda.Event(blocking=True)))  # waits without a busy core
        if len(self._handed_out) > QUEUED:
            self._handed_out.popleft().synchronize()  # the host waits here if it is that far ahead of the GPU
        return copied.tensors
