"""Processes that share a command's work, as torchrun starts them; without torchrun there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import distributed

from alexnet.engine import find_device


class Ranks(NamedTuple):
    """This process's number and how many there are."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any] | None:
        """What each rank brings (picklable), in order, on rank 0; None on the others."""
        if self.world_size == 1:
            return [value]
        found = [None] * self.world_size if self.rank == 0 else None
        distributed.gather_object(value, found)
        return found


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Joined by gloo: what is exchanged is little, and on the CPU."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks(0, 1)
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def rank_device(name: str) -> torch.device:
    """``find_device``, where each rank of a machine has a GPU of its own. Raises AlexNetError."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return device
