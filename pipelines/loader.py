"""What a loader is, whatever makes its batches: epochs, a position that can be kept, a list of what was skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipelines.errors import DataError
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import SampleError
from pipelines.untrusted import printable

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
MAX_SKIPPED = 1000  # samples that are listed and reported


class Batch(NamedTuple):
    """``images`` N,3,H,W, channels-last, normalised, float16 on a GPU and float32 on a CPU; ``labels`` N int64 on the
    same device; ``valid``, how many leading rows count (the others pad the batch)."""

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Backend(Protocol):
    """What makes batches, epoch after epoch without end."""

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images N,3,H,W, channels-last, on the device; labels N int64, on the CPU. Raises DataError."""

    def checkpoint(self) -> bytes:
        """The position after the last batch given out."""

    def close(self) -> None:
        """Nothing more is asked of it: let threads go."""


class Start(NamedTuple):
    """Where a backend is to begin: ``taken`` samples into ``epoch``, counted over all ranks.

    ``checkpoint`` is a backend's own, which began with ``opened_at`` as its epoch.
    """

    epoch: int
    taken: int = 0
    opened_at: int = 0
    checkpoint: bytes | None = None


class Loader:
    """One iteration is one epoch; the next one is the next epoch, shuffled anew. Made by ``open_loader``.

    ``epoch`` is the one that the next iteration gives, or the one under way; it may be set before an iteration.
    ``skipped`` are the first samples that could not be used (``on_error="skip"``): shard, key and reason.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        open_backend: Callable[[Start], Backend],
        device: torch.device,
        backend: str,
        surplus: int = 0,
    ) -> None:
        """``surplus`` batches at the end of an epoch are the backend's remainder, which training leaves out."""
        self.manifest, self.plan, self.device, self.backend = manifest, plan, device, backend
        self.epoch = 0
        self.skipped: list[tuple[str, str, str]] = []
        self._reported: set[tuple[str, str]] = set()
        self._lost = 0
        self._open_backend, self._surplus = open_backend, surplus
        self._opened_at = self._source_epoch = 0
        self._source: Backend | None = None
        self._taken = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches a whole epoch, equal on every rank."""
        return self.plan.batches

    def __iter__(self) -> Iterator[Batch]:
        """Batches to the end of the epoch. Raises DataError."""
        if self._taken and not self._resumed:  # the last epoch was left early
            self.close()
            self._taken = 0
            self.epoch += self.epoch == self._source_epoch  # unless another one was asked for
        self._resumed = False
        if self._source is None or self.epoch != self._source_epoch:
            self.close()
            self._open(Start(self.epoch, self._taken))
        while self.plan.batches_after(self._taken) > 0:
            yield self._next()
        for _ in range(self._surplus):
            self._take()
        self.epoch += 1
        self._source_epoch, self._taken = self.epoch, 0

    def _next(self) -> Batch:
        self._lost = 0
        images, labels = self._take()
        valid = self.plan.valid(self._taken // self.plan.step) - (0 if self.plan.training else self._lost)
        self._taken += self.plan.step
        return Batch(images, labels.to(self.device, non_blocking=True), valid)

    def _take(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._source is not None
        try:
            return self._source.next()
        except DataError:
            self.close()  # the next iteration begins with another one
            raise

    def _open(self, start: Start) -> None:
        if start.checkpoint is None:
            start = start._replace(opened_at=start.epoch)
        self._source = self._open_backend(start)
        self._opened_at, self._source_epoch = start.opened_at, start.epoch

    def close(self) -> None:
        """Let the backend's threads and memory go. Iterating opens it again."""
        source, self._source = self._source, None
        if source:
            source.close()

    def note_lost(self, error: SampleError) -> None:
        """A backend gives out a batch that lacks this sample."""
        self._lost += 1
        if (error.shard, error.key) in self._reported or len(self.skipped) >= MAX_SKIPPED:
            return
        self._reported.add((error.shard, error.key))
        self.skipped.append((error.shard, error.key, error.reason))
        LOG.warning(printable(f"skipped: {error.shard}: {error.key} {error.reason}"))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands; holds only numbers, text and bytes."""
        return {
            "backend": self.backend,
            "epoch": self.epoch,
            "taken": self._taken,
            "step": self.plan.step,
            "opened_at": self._opened_at,
            "source": self._source.checkpoint() if self._source else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``: the next batch is the one that would have come. Same data and seed.

        The backend turbo goes on in training with any batch size and number of ranks: those samples of the epoch
        follow that nobody has had yet. The others need the same ones. Raises DataError.
        """
        if state["backend"] != self.backend:
            raise DataError(f"this run was begun with the backend {state['backend']}: go on with that one")
        if state["step"] != self.plan.step and not (self.backend == "turbo" and self.plan.training):
            raise DataError(f"this run had {state['step']} images a step over all ranks, now it is {self.plan.step}")
        self.close()
        self.epoch, self._taken = state["epoch"], state["taken"]
        if state["source"] is not None:
            self._open(Start(self.epoch, self._taken, state["opened_at"], state["source"]))
        self._resumed = True
