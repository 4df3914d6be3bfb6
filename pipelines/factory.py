"""``open_loader``, the one door: arguments checked, a backend chosen, a loader made."""

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
    opening = _Arguments(manifest, split, plan, chosen, device, seed, threads, on_error)
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


class _Arguments(NamedTuple):
    """What ``open_loader`` has made of its arguments."""

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

    batches = SyntheticBatches(o.manifest, o.plan, o.augment, o.device, o.seed)
    return Loader(o.manifest, o.plan, lambda start: batches, o.device, "synthetic")


def _turbo(o: _Arguments) -> Loader:
    from pipelines.turbo.batches import TurboBatches, require_turbo

    require_turbo()
    records = Records(o.manifest, o.split)

    def open_backend(start: Start) -> Backend:
        skip = loader.note_lost if o.on_error == "skip" else None
        return TurboBatches(
            o.manifest, records, o.plan, o.augment, o.device, o.seed, o.threads, start.epoch, start.taken, skip
        )

    loader = Loader(o.manifest, o.plan, open_backend, o.device, "turbo")
    return loader


def _dali(o: _Arguments) -> Loader:
    from pipelines.dali.batches import DaliBatches, require_dali

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
