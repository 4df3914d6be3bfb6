"""``open_loader``, the only way to make a loader: it checks the arguments and chooses a backend."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from pipelines.augment import AUGMENTS, Augment
from pipelines.errors import DataError
from pipelines.loader import Backend, Loader, Start
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest, load_manifest
from pipelines.shards.records import Records

if TYPE_CHECKING:
    import torch

BackendName = Literal["auto", "dali", "turbo", "synthetic"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
OnError = Literal["raise", "skip"]


def open_loader(
    folder: str | Path,
    split: str = "train",
    batch_size: int = 256,
    augment: str | Augment = "crop_flip",
    *,
    device: str | torch.device = "cpu",
    backend: BackendName = "auto",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    training: bool | None = None,
    threads: int | None = None,
    on_error: OnError = "raise",
) -> Loader:
    """Return a loader of ``Batch`` for a split of a shard folder.

    ``training`` (the default for the split train) shuffles, augments and drops the remainder of an epoch. Otherwise
    images come in order, center crops, and the last batch is padded: over all ranks each image counts once.
    ``augment`` is a name in ``AUGMENTS`` or an ``Augment``. ``threads`` decode; by default one per core.
    ``backend``: ``auto`` is DALI on a GPU if it is installed, else turbo. ``on_error``: ``raise`` ends with an error
    if a sample cannot be decoded; ``skip``, for turbo only, takes the next sample instead and reports it.

    Raises DataError if the folder is incomplete, the backend is missing, or there is less than a batch to train on;
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
    plan = Plan(
        samples=manifest.split(split).samples,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        training=training,
    )
    _check_sizes(manifest, split, plan, chosen)
    threads = threads or _cores_of_this_rank()
    given = _Arguments(
        manifest=manifest,
        split=split,
        plan=plan,
        augment=chosen,
        device=device,
        seed=seed,
        threads=threads,
        on_error=on_error,
    )
    return {"dali": _dali, "turbo": _turbo, "synthetic": _synthetic}[backend](given)


def _resolved(backend: BackendName, device: torch.device, on_error: OnError) -> BackendName:
    """Return the backend that ``auto`` stands for. Raises ValueError if it is unknown or lacks this ``on_error``."""
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}, only {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "dali" if device.type == "cuda" and _has_dali() else "turbo"
    if on_error not in get_args(OnError) or (on_error == "skip" and backend == "dali"):
        raise ValueError(f'on_error={on_error!r} with backend {backend}: it is "raise", or with turbo "skip"')
    return backend


def _check_sizes(manifest: Manifest, split: str, plan: Plan, augment: Augment) -> None:
    """Raise DataError if the images are too small for the crop, or too few for a batch."""
    folder, size = manifest.folder, manifest.image.size
    if augment.size > size:
        raise DataError(f"{folder} has images of {size} pixels, too small for crops of {augment.size}")
    if not plan.batches or plan.samples < plan.world_size:
        raise DataError(
            f"{folder} has {plan.samples} {split} images, less than a batch of {plan.batch_size} for each of "
            f"{plan.world_size} ranks: lower the batch size"
        )


def _cores_of_this_rank() -> int:
    """Return this rank's share of the cores that the process may use; torchrun sets the number of ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Arguments(NamedTuple):
    """Arguments of ``open_loader``, checked and with defaults filled in."""

    manifest: Manifest
    split: str
    plan: Plan
    augment: Augment
    device: torch.device
    seed: int
    threads: int
    on_error: OnError


def _synthetic(o: _Arguments) -> Loader:
    from pipelines.synthetic import SyntheticBatches

    batches = SyntheticBatches(o.manifest, o.plan, o.augment, device=o.device, seed=o.seed)
    return Loader(o.manifest, o.plan, lambda start: batches, device=o.device, backend="synthetic")


def _turbo(o: _Arguments) -> Loader:
    from pipelines.turbo.batches import TurboBatches, require_turbo

    require_turbo()
    records = Records(o.manifest, o.split)

    def open_backend(start: Start) -> Backend:
        skip = loader.note_lost if o.on_error == "skip" else None
        return TurboBatches(
            o.manifest,
            records,
            o.plan,
            o.augment,
            device=o.device,
            seed=o.seed,
            threads=o.threads,
            epoch=start.epoch,
            taken=start.taken,
            skip=skip,
        )

    loader = Loader(o.manifest, o.plan, open_backend, device=o.device, backend="turbo")
    return loader


def _dali(o: _Arguments) -> Loader:
    from pipelines.dali.batches import DaliBatches, require_dali

    require_dali()

    def open_backend(start: Start) -> Backend:
        """Open DALI's endless pipeline. Another is opened only if an epoch was left early or set by the caller."""
        seed = o.seed * 65536 + start.opened_at
        return DaliBatches(
            o.manifest,
            o.split,
            o.plan,
            o.augment,
            device=o.device,
            seed=seed,
            threads=o.threads,
            checkpoint=start.checkpoint,
        )

    surplus = o.plan.padded_batches - o.plan.batches
    return Loader(o.manifest, o.plan, open_backend, device=o.device, backend="dali", surplus=surplus)


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
