"""``open_loader``: epochs, ranks, padding and resume, the same whatever makes the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from pipelines.augment import AUGMENTS, Augment
from pipelines.plan import Plan
from pipelines.shards import DataError, Manifest, load_manifest

if TYPE_CHECKING:
    import torch

BackendName = Literal["auto", "dali", "synthetic"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


class Batch(NamedTuple):
    """``images`` N,3,H,W, channels-last, normalised, float16 on a GPU and float32 on a CPU; ``labels`` N int64 on the
    same device; ``valid``, how many leading rows count (the others pad the batch)."""

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Backend(Protocol):
    """What makes batches, without end: each epoch padded to ``Plan.padded_batches``."""

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images N,3,H,W, channels-last, on the device; labels N int64, on the CPU. Raises DataError."""

    def checkpoint(self) -> bytes:
        """The position after the last batch given out."""


class Loader:
    """One iteration is one epoch; the next one is the next epoch, shuffled anew. Made by ``open_loader``."""

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        open_backend: Callable[[int, bytes | None], Backend],
        device: torch.device,
    ) -> None:
        self.manifest, self.plan, self.device = manifest, plan, device
        self.epoch = 0
        self._open_backend = open_backend  # (epoch, checkpoint) -> the backend's batches, from that epoch on
        self._opened_at = 0
        self._source: Backend | None = None
        self._next_batch = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches an epoch, equal on every rank."""
        return self.plan.batches

    def __iter__(self) -> Iterator[Batch]:
        """Batches to the end of the epoch. Raises DataError."""
        if self._next_batch and not self._resumed:  # the last epoch was left early
            self._source, self._next_batch = None, 0
            self.epoch += 1
        self._resumed = False
        if self._source is None:
            self._source, self._opened_at = self._open_backend(self.epoch, None), self.epoch
        source = self._source
        while self._next_batch < self.plan.batches:
            images, labels = source.next()
            valid = self.plan.valid(self._next_batch)
            self._next_batch += 1
            yield Batch(images, labels.to(self.device, non_blocking=True), valid)
        for _ in range(self.plan.padded_batches - self.plan.batches):
            source.next()  # the remainder that training leaves out
        self.epoch += 1
        self._next_batch = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands; holds only numbers and bytes."""
        return {
            "epoch": self.epoch,
            "batch": self._next_batch,
            "opened_at": self._opened_at,
            "source": self._source.checkpoint() if self._source else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``: the next batch is the one that would have come. Same data, sizes and ranks."""
        self.epoch, self._next_batch, self._opened_at = state["epoch"], state["batch"], state["opened_at"]
        self._source = None
        if state["source"] is not None:
            self._source = self._open_backend(self._opened_at, state["source"])
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
) -> Loader:
    """Batches of a split of a shard folder, as ``Batch`` describes them.

    ``training`` (by default for the split train) shuffles, augments and drops the remainder of an epoch; otherwise the
    images come in order, the centre of each, and the last batch is padded: over all ranks each image counts once.
    ``augment`` is a name in ``AUGMENTS`` or an ``Augment``. ``threads`` decode; by default one a core.

    Raises DataError when the folder is not whole, the backend is missing, or there is less than a batch to train on;
    ValueError for an unknown augment or backend.
    """
    import torch

    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}, only {', '.join(BACKENDS)}")
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"batch_size {batch_size} of rank {rank} of {world_size} is out of range")
    manifest = load_manifest(folder)
    training = split == "train" if training is None else training
    chosen = _chosen(augment, training)
    if chosen.size > manifest.image.size:
        raise DataError(f"{folder} has images of {manifest.image.size} pixels, too small for crops of {chosen.size}")
    plan = Plan(manifest.split(split).samples, batch_size, rank, world_size, training)
    if not plan.batches or plan.samples < world_size:
        raise DataError(
            f"{folder} has {plan.samples} {split} images, less than a batch of {batch_size} for each of {world_size} "
            "ranks: lower the batch size"
        )
    device = torch.device(device)

    if backend == "synthetic":
        from pipelines.synthetic import SyntheticBatches

        return Loader(manifest, plan, lambda *_: SyntheticBatches(manifest, plan, chosen, device, seed), device)

    from pipelines.dali import DaliBatches, require_dali

    require_dali()

    def open_backend(epoch: int, checkpoint: bytes | None) -> Backend:
        """``epoch`` is 0 but where the one before was left early, and a new pipeline begins."""
        return DaliBatches(manifest, split, plan, chosen, device, seed * 65536 + epoch, threads, checkpoint)

    return Loader(manifest, plan, open_backend, device)


def _chosen(augment: str | Augment, training: bool) -> Augment:
    if isinstance(augment, str):
        if augment not in AUGMENTS:
            raise ValueError(f"no augment {augment!r}, only {', '.join(AUGMENTS)}")
        augment = AUGMENTS[augment]
    return augment if training else augment.for_evaluation()
