"""``open_loader``: epochs, ranks, padding and resume, the same whatever makes the batches."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from pipelines.augment import AUGMENTS, Augment
from pipelines.documents import printable
from pipelines.plan import Plan
from pipelines.records import Records, SampleError
from pipelines.shards import DataError, Manifest, load_manifest

if TYPE_CHECKING:
    import torch

BackendName = Literal["auto", "dali", "turbo", "synthetic"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
OnError = Literal["raise", "skip"]
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
        print(printable(f"skipped: {error.shard}: {error.key} {error.reason}"), file=sys.stderr)

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


def open_loader(
    folder: str | Path,
    split: str = "train",
    batch_size: int = 256,
    augment: str | Augment = "crop_flip",
    device: str | torch.device = "cpu",
    backend: BackendName = "auto",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    training: bool | None = None,
    threads: int | None = None,
    on_error: OnError = "raise",
) -> Loader:
    """Batches of a split of a shard folder, as ``Batch`` describes them.

    ``training`` (by default for the split train) shuffles, augments and drops the remainder of an epoch; otherwise the
    images come in order, the centre of each, and the last batch is padded: over all ranks each image counts once.
    ``augment`` is a name in ``AUGMENTS`` or an ``Augment``. ``threads`` decode; by default one a core.
    ``backend``: ``auto`` is DALI on a GPU where it is installed, else turbo. ``on_error``: ``skip`` takes the next
    sample for one that cannot be decoded and says so (turbo alone can); ``raise`` makes it an error.

    Raises DataError when the folder is not whole, the backend is missing, or there is less than a batch to train on;
    ValueError for an unknown augment or backend.
    """
    import torch

    device = torch.device(device)
    backend = _resolved(backend, device, on_error)
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"batch_size {batch_size} of rank {rank} of {world_size} is out of range")
    manifest = load_manifest(folder)
    training = split == "train" if training is None else training
    chosen = _chosen(augment, training)
    plan = Plan(manifest.split(split).samples, batch_size, rank, world_size, training)
    _check_sizes(manifest, split, plan, chosen)
    threads = threads or _cores_of_this_rank()
    opening = _Opening(manifest, split, plan, chosen, device, seed, threads, on_error)
    return {"dali": _dali, "turbo": _turbo, "synthetic": _synthetic}[backend](opening)


def _resolved(backend: BackendName, device: torch.device, on_error: OnError) -> BackendName:
    """``auto`` by its own name. Raises ValueError for an unknown backend, and where it has no such ``on_error``."""
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}, only {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "dali" if device.type == "cuda" and _has_dali() else "turbo"
    if on_error not in get_args(OnError) or (on_error == "skip" and backend == "dali"):
        raise ValueError(f'on_error={on_error!r} with backend {backend}: it is "raise", or with turbo "skip"')
    return backend


def _check_sizes(manifest: Manifest, split: str, plan: Plan, augment: Augment) -> None:
    """Raises DataError where the images are too small, or too few."""
    folder, size = manifest.folder, manifest.image.size
    if augment.size > size:
        raise DataError(f"{folder} has images of {size} pixels, too small for crops of {augment.size}")
    if not plan.batches or plan.samples < plan.world_size:
        raise DataError(
            f"{folder} has {plan.samples} {split} images, less than a batch of {plan.batch_size} for each of "
            f"{plan.world_size} ranks: lower the batch size"
        )


def _cores_of_this_rank() -> int:
    """Its share of those that this process may use; torchrun tells how many ranks there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Opening(NamedTuple):
    """What ``open_loader`` has made of its arguments."""

    manifest: Manifest
    split: str
    plan: Plan
    augment: Augment
    device: torch.device
    seed: int
    threads: int
    on_error: OnError


def _synthetic(o: _Opening) -> Loader:
    from pipelines.synthetic import SyntheticBatches

    batches = SyntheticBatches(o.manifest, o.plan, o.augment, o.device, o.seed)
    return Loader(o.manifest, o.plan, lambda start: batches, o.device, "synthetic")


def _turbo(o: _Opening) -> Loader:
    from pipelines.turbo import TurboBatches, require_turbo

    require_turbo()
    records = Records(o.manifest, o.split)

    def open_backend(start: Start) -> Backend:
        skip = loader.note_lost if o.on_error == "skip" else None
        return TurboBatches(
            o.manifest, records, o.plan, o.augment, o.device, o.seed, o.threads, start.epoch, start.taken, skip
        )

    loader = Loader(o.manifest, o.plan, open_backend, o.device, "turbo")
    return loader


def _dali(o: _Opening) -> Loader:
    from pipelines.dali import DaliBatches, require_dali

    require_dali()

    def open_backend(start: Start) -> Backend:
        """DALI's pipeline is endless; another one begins only where an epoch was left early or chosen."""
        seed = o.seed * 65536 + start.opened_at
        return DaliBatches(o.manifest, o.split, o.plan, o.augment, o.device, seed, o.threads, start.checkpoint)

    return Loader(o.manifest, o.plan, open_backend, o.device, "dali", o.plan.padded_batches - o.plan.batches)


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except (ImportError, ValueError):
        return False


def _chosen(augment: str | Augment, training: bool) -> Augment:
    if isinstance(augment, str):
        if augment not in AUGMENTS:
            raise ValueError(f"no augment {augment!r}, only {', '.join(AUGMENTS)}")
        augment = AUGMENTS[augment]
    return augment if training else augment.for_evaluation(augment.crops)
