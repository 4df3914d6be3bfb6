"""The loader around every backend: epochs, a position that can be saved and resumed, a list of skipped samples."""

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
    """A batch: ``images`` N,3,H,W, channels-last, normalised, float16 on a GPU and float32 on a CPU; ``labels`` N int64
    on the same device; ``valid``, the number of leading rows that count (the others are padding)."""

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Backend(Protocol):
    """An endless source of batches, epoch after epoch."""

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images N,3,H,W, channels-last, on the device, and labels N int64, on the CPU. Raises DataError."""

    def checkpoint(self) -> bytes:
        """Return the position after the last batch that ``next`` returned."""

    def close(self) -> None:
        """End the threads; no other method is called afterwards."""


class Start(NamedTuple):
    """The position at which a backend starts: ``taken`` samples into ``epoch``, counted over all ranks.

    ``checkpoint`` comes from ``Backend.checkpoint`` of a backend that was opened at the epoch ``opened_at``.
    """

    epoch: int
    taken: int = 0
    opened_at: int = 0
    checkpoint: bytes | None = None


class Loader:
    """An iterable of batches: each iteration is one epoch, shuffled differently. ``open_loader`` makes it.

    ``epoch`` is the current epoch, or between iterations the next one; it may be set before an iteration. ``skipped``
    lists the first ``MAX_SKIPPED`` samples that ``on_error="skip"`` left out: shard, key and reason.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        open_backend: Callable[[Start], Backend],
        *,
        device: torch.device,
        backend: str,
        surplus: int = 0,
    ) -> None:
        """Wrap a backend. It makes ``surplus`` more batches per epoch than training uses; these are discarded."""
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
        """Return the number of batches in a whole epoch, equal on every rank."""
        return self.plan.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches up to the end of the epoch. Raises DataError."""
        if self._taken and not self._resumed:  # the last epoch was left early
            self.close()
            self._taken = 0
            self.epoch += self.epoch == self._source_epoch  # unless the caller set another one
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
            self.close()  # the next iteration opens a new one
            raise

    def _open(self, start: Start) -> None:
        if start.checkpoint is None:
            start = start._replace(opened_at=start.epoch)
        self._source = self._open_backend(start)
        self._opened_at, self._source_epoch = start.opened_at, start.epoch

    def close(self) -> None:
        """Release the backend's threads and memory. Iterating opens it again."""
        source, self._source = self._source, None
        if source:
            source.close()

    def note_lost(self, error: SampleError) -> None:
        """Record a sample that the current batch lacks. The backend calls it."""
        self._lost += 1
        if (error.shard, error.key) in self._reported or len(self.skipped) >= MAX_SKIPPED:
            return
        self._reported.add((error.shard, error.key))
        self.skipped.append((error.shard, error.key, error.reason))
        LOG.warning(printable(f"skipped: {error.shard}: {error.key} {error.reason}"))

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position, made of numbers, text and bytes only."""
        return {
            "backend": self.backend,
            "epoch": self.epoch,
            "taken": self._taken,
            "step": self.plan.step,
            "opened_at": self._opened_at,
            "source": self._source.checkpoint() if self._source else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from ``state``: the next batch is the one that would have followed, given the same data and seed.

        In training the backend turbo can resume with another batch size and number of ranks: the samples that no
        rank has had in this epoch follow. Everything else needs the same ones. Raises DataError.
        """
        if state["backend"] != self.backend:
            raise DataError(f"this run was started with the backend {state['backend']}: resume it with that one")
        if state["step"] != self.plan.step and not (self.backend == "turbo" and self.plan.training):
            raise DataError(
                f"this run had {state['step']} images per step over all ranks, now there are {self.plan.step}: resume "
                "it with the same batch size and number of ranks"
            )
        self.close()
        self.epoch, self._taken = state["epoch"], state["taken"]
        if state["source"] is not None:
            self._open(Start(self.epoch, self._taken, state["opened_at"], state["source"]))
        self._resumed = True
