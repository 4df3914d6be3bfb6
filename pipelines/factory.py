"""``open_loader``, the only way to make a loader: it checks the arguments and chooses a backend."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pipelines.arguments import (
    MAX_SEED,
    check_agreed,
    check_cache,
    check_device,
    check_extras,
    decoding_threads,
    integer,
    rank_and_world_size,
)
from pipelines.augment import AUGMENTS, Augment
from pipelines.errors import DataError
from pipelines.identity import Identity, manifest_digest
from pipelines.loader import Loader
from pipelines.openers import OPENERS, Arguments, OnError
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    import torch

    from pipelines.transform import Transform

BackendName = Literal["auto", "gpu", "dali", "turbo", "synthetic"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
DALI_RATE = 7000  # images/s, the most that was published for one GPU (an A100: 5,000 to 7,000)
FOR_ALL = ("turbo", "gpu")  # backends that take every argument
TURBO_RATE, TURBO_LIMIT = 1 / 0.22e-3, 70_000  # images/s of 256x256 JPEGs: of a thread, and of a process on a GPU


def open_loader(
    folder: str | Path,
    split: str = "train",
    batch_size: int = 256,
    augment: str | Augment = "crop_flip",
    *,
    device: str | torch.device = "cpu",
    backend: BackendName = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    seed: int = 0,
    training: bool | None = None,
    threads: int | None = None,
    on_error: OnError = "raise",
    keys: bool = False,
    extras: tuple[str, ...] = (),
    transform: Transform | None = None,
    resident: bool = False,
    cache: str | Path | None = None,
    cache_gb: float | None = None,
) -> Loader:
    """Return a loader of ``Batch`` for a split of a shard folder, or of shards at a URL (s3://bucket/name).

    ``batch_size`` is that of each rank. Rank and number of ranks, if not given, are those of torch.distributed, else
    those of torchrun's environment (RANK and WORLD_SIZE), else 0 of 1; ``repr(loader)`` shows them.
    ``training`` (the default for the split train) shuffles, augments and drops the remainder of an epoch. Otherwise
    images come in order, center crops, and the last batch is padded: over all ranks each image counts once.
    ``augment`` is a name in ``AUGMENTS`` or an ``Augment``. ``threads`` decode; by default one per core.
    ``backend``: ``auto`` is turbo on a CPU. On a GPU it is gpu if the shards are square JPEGs with restart markers,
    else turbo, unless DALI is installed and faster than so few ``threads``. ``repr(loader)`` says why.
    ``resident``, for gpu only: read the split's compressed images into the GPU's memory when the loader is opened.

    Shards at a URL are read through the folder ``cache``, by default below the user's cache folder, in which they take
    at most ``cache_gb`` GB; with ``cache`` those of a network drive too. See docs/remote.md: a cache that is smaller
    than the shards changes the order of epochs.

    For turbo and gpu only: ``on_error``: ``raise`` ends with an error if a sample cannot be decoded; ``skip`` takes the
    next sample instead and reports it. ``keys``: batches have the samples' names. ``extras``: batches have these
    members of the samples, by extension: parsed json, txt as text, others as bytes. ``transform`` changes each batch on
    its device before it is normalised: it takes and returns images N,3,size,size uint8 and labels N, see
    ``pipelines.transform``.

    Raises DataError if the folder is incomplete, the backend or the GPU is missing, or there is less than a batch to
    train on; ValueError for a wrong argument.
    """
    import torch

    device, rank, world_size = torch.device(device), *rank_and_world_size(rank, world_size)
    plan_of = {"batch_size": integer("batch_size", batch_size, 1), "rank": rank, "world_size": world_size}
    seed, threads = integer("seed", seed, 0, MAX_SEED), decoding_threads(threads)
    check_device(device)
    check_cache(cache, cache_gb)
    manifest = load_manifest(folder, cache=cache, cache_gb=cache_gb)
    needs = {"keys": keys, "extras": extras, "transform": transform, "on_error": on_error != "raise"}
    wanted = [name for name, given in needs.items() if given]
    backend, why = _resolved(backend, device, manifest, threads, wanted, resident)
    if on_error not in get_args(OnError):
        raise ValueError(f'on_error is {on_error!r}, not "raise" or "skip"')
    check_extras(extras, manifest)
    training = split == "train" if training is None else training
    if training:
        check_agreed(manifest, split, cache_gb, world_size)
    plan = Plan(samples=manifest.split(split).samples, training=training, **plan_of)
    chosen = _chosen(augment, training)
    _check_sizes(manifest, split, plan, chosen)
    identity = Identity(
        backend=backend,
        split=split,
        training=training,
        seed=seed,
        manifest=manifest_digest(manifest),
        augment=chosen,
        transform=getattr(transform, "__qualname__", type(transform).__name__) if transform else None,
        counts=backend != "dali",
        plan=plan,
        window=manifest.window(split) if training and backend != "synthetic" else None,
    )
    given = Arguments(manifest, identity, device, threads, on_error, keys, tuple(extras), transform, resident)
    loader = OPENERS[backend](given)
    loader.why = why
    return loader


def faster_on_a_gpu(threads: int) -> tuple[BackendName, str]:
    """Return turbo or dali, whichever should give a GPU more images/s with so many decoding threads, and why."""
    turbo = min(threads * TURBO_RATE, TURBO_LIMIT)
    rates = f"turbo with threads={threads} decodes some {turbo:,.0f} images/s of 256x256, DALI at most {DALI_RATE:,}"
    return ("turbo" if turbo > DALI_RATE else "dali"), rates


def _resolved(
    backend: BackendName, device: torch.device, manifest: Manifest, threads: int, wanted: list[str], resident: bool
) -> tuple[BackendName, str]:
    """Return the backend, and why ``auto`` stands for it; "" if it was given.

    Raises ValueError if it is unknown or lacks one of the arguments that are ``wanted``, DataError if it cannot read
    the shards.
    """
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}, only {', '.join(BACKENDS)}")
    why = ""
    if backend == "auto" and resident:
        backend, why = "gpu", "only gpu has resident"
    elif backend == "auto":
        backend, why = _automatic(device, manifest, threads, wanted)
    if resident and backend != "gpu":
        raise ValueError(f"resident needs the backend gpu, not {backend}")
    if wanted and backend not in FOR_ALL:
        raise ValueError(f"{wanted[0]} needs the backend turbo or gpu, not {backend}")
    if backend == "dali" and not manifest.plain:
        raise DataError(
            f"{manifest.location} was written by another program, which DALI's graph does not read: use turbo"
        )
    if backend == "dali" and not manifest.fits:
        raise DataError(
            f"DALI reads whole shards from a folder, and {manifest.location} does not fit into the cache: give a "
            "larger --cache-gb, or use turbo"
        )
    return backend, why


def _automatic(device: torch.device, manifest: Manifest, threads: int, wanted: list[str]) -> tuple[BackendName, str]:
    from pipelines.gpu.opening import why_not

    if device.type != "cuda":
        return "turbo", "it is the fastest on a CPU"
    reason = why_not(manifest, device)
    if not reason:
        return "gpu", "the GPU decodes these shards by itself"
    backend, why = _without_gpu(manifest, threads, wanted)
    return backend, f"{why}; not gpu: {reason}"


def _without_gpu(manifest: Manifest, threads: int, wanted: list[str]) -> tuple[BackendName, str]:
    """Return what ``auto`` is on a GPU for shards that gpu does not read, and why."""
    if wanted:
        return "turbo", f"DALI lacks {wanted[0]}"
    if not manifest.plain:
        return "turbo", "DALI does not read these shards"
    if not manifest.fits:
        return "turbo", "DALI reads no shards through a small cache"
    return faster_on_a_gpu(threads) if _has_dali() else ("turbo", "DALI is not installed")


def _check_sizes(manifest: Manifest, split: str, plan: Plan, augment: Augment) -> None:
    """Raise DataError if the images are too small for the crop, or too few for a batch."""
    folder, size = manifest.location, manifest.image.size
    if augment.size > size:
        raise DataError(f"{folder} has images of {size} pixels, too small for crops of {augment.size}")
    if not plan.batches or plan.samples < plan.world_size:
        raise DataError(
            f"{folder} has {plan.samples} {split} images, less than a batch of {plan.batch_size} for each of "
            f"{plan.world_size} ranks: lower the batch size"
        )


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
    if not isinstance(augment, Augment):
        raise ValueError(f"augment is {augment!r}: it must be an Augment, or one of {', '.join(AUGMENTS)}")
    return augment if training else augment.for_evaluation(augment.crops)
