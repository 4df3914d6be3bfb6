"""Checks of the arguments of ``open_loader``, and defaults that depend on the machine and the launcher."""

from __future__ import annotations

import logging
import operator
import os
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError
from pipelines.shards.manifest import Manifest

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
MAX_SEED = 2**32 - 1


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return the argument as an int. Raises ValueError that names it if it is none, or out of range."""
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: it must be an integer, {bounds}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {number}: it must be {bounds}")
    return number


def rank_and_world_size(rank: Any, world_size: Any) -> tuple[int, int]:
    """Return both as given, or else as torch.distributed or torchrun says. Raises ValueError."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size {world_size}: give both, or neither")
    if rank is None:
        rank, world_size, source = _found_ranks()
        LOG.info("rank %s of %s, as %s says", rank, world_size, source)
    world_size = integer("world_size", world_size, 1)
    return integer("rank", rank, 0, world_size - 1), world_size


def _found_ranks() -> tuple[int, int, str]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size(), "torch.distributed"
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is not None and world_size is not None and rank.isdecimal() and world_size.isdecimal():
        return int(rank), int(world_size), "the environment (RANK, WORLD_SIZE)"
    return 0, 1, "no launcher"


def check_device(device: torch.device) -> None:
    """Raise DataError if the device is a GPU that torch does not see."""
    import torch

    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU, or no driver for one"
        raise DataError(f"device is {str(device)!r}, but torch finds {found}: use another, such as device='cpu'")


def decoding_threads(threads: Any) -> int:
    """Return ``threads``, by default this rank's share of the cores of the process; torchrun sets the ranks' number."""
    if threads is not None:
        return integer("threads", threads, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def check_extras(extras: Any, manifest: Manifest) -> None:
    """Raise ValueError unless ``extras`` names members that the shards have."""
    if isinstance(extras, str) or not set(extras) <= set(manifest.extras):
        known = ", ".join(map(repr, manifest.extras)) or "none but the image and the label"
        raise ValueError(f"extras is {extras!r}: it must be a tuple of members that {manifest.location} has: {known}")


def check_cache(cache: Any, cache_gb: Any) -> None:
    """Raise ValueError unless ``cache`` is a folder and ``cache_gb`` a number of GB above 0, or None."""
    if cache_gb is not None and not (isinstance(cache_gb, int | float) and 0 < cache_gb < 1e9):
        raise ValueError(f"cache_gb is {cache_gb!r}: it must be a number of GB above 0")
    if cache is not None and not isinstance(cache, str | os.PathLike):
        raise ValueError(f"cache is {cache!r}: it must be a folder")


def check_agreed(manifest: Manifest, split: str, cache_gb: float | None, world_size: int) -> None:
    """Raise DataError if ranks on several machines might choose caches, and with them orders, of different sizes."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    several = world_size > (int(local) if local.isdecimal() else 1)
    if several and cache_gb is None and not manifest.local and manifest.window(split) is not None:
        raise DataError(
            f"{manifest.location} does not fit into the cache, and ranks may run on several machines: give each the "
            "same --cache-gb, because the order of an epoch depends on it"
        )
