"""The loader around every backend: epochs, a position that can be saved and resumed, a list of skipped samples."""

from __future__ import annotations

import base64
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from pipelines.backend import Backend, Batch, Rows, Skip, Start
from pipelines.errors import DataError
from pipelines.identity import Identity
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import SampleError
from pipelines.untrusted import printable, shown

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
MAX_SKIPPED = 1000  # samples that are listed and reported
_OF_PARENTS: list[Any] = []  # backends of the process that this one was forked from


class Loader:
    """An iterable of batches: each iteration is one epoch, shuffled differently. ``open_loader`` makes it.

    ``epoch`` is the current epoch, or between iterations the next one; it may be set before an iteration. ``skipped``
    lists the first ``MAX_SKIPPED`` samples that ``on_error="skip"`` left out: shard, key and reason. ``why`` says why
    ``backend="auto"`` chose this backend.

    There is one position, so there is one iteration at a time: the next step of an older one raises RuntimeError. An
    iteration that was left early, or ended by an exception, is followed by the next epoch, unless no batch was taken.
    """

    def __init__(
        self,
        manifest: Manifest,
        identity: Identity,
        open_backend: Callable[[Start, Skip], Backend],
        *,
        device: torch.device,
        surplus: int = 0,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap a backend. It makes ``surplus`` more batches per epoch than training uses; these are discarded.

        ``release`` frees what one backend leaves to the next; ``close`` calls it.
        """
        self.manifest, self.plan, self.identity, self.device = manifest, identity.plan, identity, device
        self.why = ""
        self.epoch = 0
        self.skipped: list[tuple[str, str, str]] = []
        self._reported: set[tuple[str, str]] = set()
        self._lost = 0
        self._open_backend, self._surplus, self._release = open_backend, surplus, release
        self._opened_at = self._source_epoch = 0
        self._source: Backend | None = None
        self._process = os.getpid()
        self._iteration: object = None
        self._taken = 0
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, equal on every rank."""
        return self.plan.batches

    def __repr__(self) -> str:
        plan, what = self.plan, self.identity
        why = f" (auto: {self.why})" if self.why else ""
        return (
            f"<Loader of {plan.samples} {what.split} samples of {self.manifest.location}: {len(self)} batches of "
            f"{plan.batch_size}, rank {plan.rank} of {plan.world_size}, backend {what.backend}{why}, on {self.device}>"
        )

    @property
    def backend(self) -> str:
        return self.identity.backend

    @property
    def classes(self) -> list[str]:
        """The names of the classes, by label."""
        return [entry.name for entry in self.manifest.classes]

    @property
    def num_classes(self) -> int:
        return len(self.manifest.classes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches up to the end of the epoch.

        Raises DataError, and RuntimeError if another iteration has begun since, or the process was forked.
        """
        iteration = self._iteration = object()
        self._begin()
        while self.plan.batches_after(self._taken) > 0:
            yield self._next()
            self._check_newest(iteration)
        for _ in range(self._surplus):
            self._take()
        self.epoch += 1
        self._source_epoch, self._taken = self.epoch, 0

    def _begin(self) -> None:
        """Open a backend at the position, unless the one that is open is there."""
        if self._process != os.getpid():
            self._leave_to_parent()
        _warn_in_workers(os.getpid())
        if self._taken and not self._resumed:  # the last epoch was left early
            self._shut()
            self._taken = 0
            self.epoch += self.epoch == self._source_epoch  # unless the caller set another one
        self._resumed = False
        if self._source is None or self.epoch != self._source_epoch:
            self._shut()
            self._open(Start(self.epoch, self._taken))

    def _leave_to_parent(self) -> None:
        """Forget the backend of the process that this one was forked from: its threads do not exist here."""
        _OF_PARENTS.append(self._source)  # freeing it could wait for one of those threads
        self._source, self._process = None, os.getpid()

    def _check_newest(self, iteration: object) -> None:
        if self._iteration is not iteration:
            raise RuntimeError(
                "another iteration of this loader has begun: for two at a time open two loaders with open_loader"
            )
        if self._process != os.getpid():
            raise RuntimeError("this iteration began in the parent process: begin one here, by iter(loader)")

    def _next(self) -> Batch:
        import torch

        self._lost = 0
        with torch.inference_mode(False):  # also the batches that are made ahead would take over the caller's mode
            rows = self._take()
            labels = rows.labels.to(self.device, non_blocking=True)
        valid = self.plan.valid(self._taken // self.plan.step) - (0 if self.plan.training else self._lost)
        self._taken += self.plan.step
        return Batch(rows.images, labels, valid, rows.keys, rows.extras)

    def _take(self) -> Rows:
        assert self._source is not None
        try:
            return self._source.next()
        except BaseException:
            self._shut()  # the next iteration opens a new one
            raise

    def _open(self, start: Start) -> None:
        import torch

        if start.checkpoint is None:
            start = start._replace(opened_at=start.epoch)
        with torch.inference_mode(False):
            self._source = self._open_backend(start, self._note_lost)
        self._opened_at, self._source_epoch = start.opened_at, start.epoch

    def close(self) -> None:
        """Release the backend's threads and memory. Iterating opens it again."""
        self._shut()
        self._release()

    def _shut(self) -> None:
        """End the backend."""
        source, self._source = self._source, None
        if source and self._process == os.getpid():
            source.close()

    def _note_lost(self, error: SampleError) -> None:
        """Record a sample that the current batch lacks."""
        self._lost += 1
        if (error.shard, error.key) in self._reported or len(self.skipped) >= MAX_SKIPPED:
            return
        self._reported.add((error.shard, error.key))
        self.skipped.append((error.shard, error.key, error.reason))
        LOG.warning(printable(f"skipped: {error.shard}: {error.key} {error.reason}"))

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the arguments that decide what follows it, as JSON has them.

        Raises RuntimeError in mid-epoch if the backend was closed, unless counting samples gives the position.
        """
        checkpoint = self._source.checkpoint() if self._source else None
        if self._taken and not (self._source or self.identity.counts or self._resumed):
            raise RuntimeError("this loader was closed in mid-epoch, which its backend cannot resume: save it before")
        return self.identity.state() | {
            "epoch": self.epoch,
            "taken": self._taken,
            "opened_at": self._opened_at,
            "source": checkpoint and base64.b64encode(checkpoint).decode(),
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Resume from ``state``: the next batch is the one that would have followed.

        Raises DataError that names the differences if the state is of other data, seed, augmentation, split or backend,
        or of another batch size, rank or number of ranks. In training turbo and gpu, whose states are the same, resume
        with other numbers of these too: the samples that no rank has had in this epoch follow. ``strict=False`` takes
        the position from any loader: as many samples of the epoch count as taken.
        """
        differences = self.identity.differences(state)
        if differences and strict:
            raise DataError(
                f"this state is of another loader: {'; '.join(differences)}. Open the loader as before, or take only "
                "the position, with load_state_dict(state, strict=False)"
            )
        epoch, taken = state["epoch"], state["taken"]
        if not (type(epoch) is type(taken) is int and epoch >= 0 and 0 <= taken < 2 * self.plan.samples):
            raise DataError(f"this state has no position: {shown(taken)} samples into the epoch {shown(epoch)}")
        self._shut()
        self.epoch, self._taken = epoch, taken
        source = None if differences else state["source"]
        if source is not None and not self.identity.counts:
            source = base64.b64decode(source) if isinstance(source, str) else source  # bytes: of an earlier version
            self._open(Start(self.epoch, self._taken, state["opened_at"], source))
        self._resumed = True


@cache
def _warn_in_workers(process: int) -> None:
    """Warn, once in each process, if this one is a worker of torch's DataLoader."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    if worker:
        warnings.warn(
            f"a loader of shards is used in {worker.num_workers} worker processes of a DataLoader. Each of them gives "
            "every batch, and workers that are started anew begin with the same epoch again. The loader has threads of "
            "its own: iterate over it directly, or with num_workers=0",
            stacklevel=2,
        )
