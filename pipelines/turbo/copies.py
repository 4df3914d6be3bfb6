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


class DeviceStream:
    """A stream that works beside the caller's, and hands out what it has made.

    Its memory is allocated on that stream, and released to it: torch's allocator keeps what the caller's stream still
    uses (``record_stream``). The caller's host code gets at most ``QUEUED`` batches ahead of the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._handed_out: deque[torch.cuda.Event] = deque()

    def queue(self, work: Callable[[], Tensors]) -> Copied:
        """Call ``work``, which queues a batch on this stream. Return at once."""
        with torch.cuda.stream(self._stream):
            return Copied(work(), self._stream.record_event(torch.cuda.Event(blocking=True)))

    def hand_out(self, copied: Copied) -> Tensors:
        """Let the caller's current stream wait for the batch. Return its tensors, for use on that stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied.done)
        for tensor in self.used(copied.tensors):
            tensor.record_stream(current)
        self._handed_out.append(current.record_event(torch.cuda.Event(blocking=True)))  # waits without a busy core
        if len(self._handed_out) > QUEUED:
            self._handed_out.popleft().synchronize()  # the host waits here if it is that far ahead of the GPU
        return copied.tensors

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was queued here."""
        self._stream.synchronize()

    def used(self, tensors: Tensors) -> tuple[torch.Tensor, ...]:
        """Return the tensors whose memory the caller uses."""
        return tensors


class DeviceCopies(DeviceStream):
    """Copies of batches, normalised by ``normalise`` if it is given."""

    def __init__(self, layout: Layout, device: torch.device, normalise: Normalisation | None, least: int) -> None:
        """Open the stream, and allocate at least ``least`` buffers for batches of this layout."""
        super().__init__(device)
        self.buffers = PinnedBuffers(layout, least, device)
        self._layout, self._normalise = layout, normalise

    def begin(self, memory: torch.Tensor) -> Copied:
        """Begin to copy a batch from a pinned buffer, which is used again after that. Return at once."""
        copied = self.queue(lambda: self._copy(memory))
        self.buffers.give_back(memory, copied.done)
        return copied

    def used(self, tensors: Tensors) -> tuple[torch.Tensor, ...]:
        """Return images and labels. Crops and colours lie beside the uint8 pixels, which are free once normalised."""
        return tensors.images, tensors.labels

    def _copy(self, memory: torch.Tensor) -> Tensors:
        tensors = self._layout.cut(memory.to(self._device, non_blocking=True))
        labels = tensors.labels.clone()  # a caller who keeps the labels does not keep the images
        images = self._normalise(tensors.images, tensors.crops, tensors.colours) if self._normalise else None
        return tensors._replace(labels=labels, images=tensors.images if images is None else images)
