"""Processes that share a command's work, as torchrun starts them; without torchrun there is one."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from alexnet.engine import find_device
from alexnet.metrics import Predictions

Compression = Literal["none", "fp16", "bf16"]


class Ranks:
    """This process's number, how many there are, and what they tell each other; alone, nothing is sent."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._told: tuple[distributed.Work, Tensor] | None = None

    def gather(self, value: Any) -> list[Any]:
        """What each rank brings, in order, on every rank: tensors, numbers, text, bytes, None, lists and dicts of them.

        It travels as torch.save writes it and is read without pickle's powers: ``all_gather_object`` would unpickle
        whatever reaches the ports that torchrun opens on all interfaces.
        """
        if self.world_size == 1:
            return [value]
        file = io.BytesIO()
        torch.save(value, file)
        own = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor([len(own)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded)
        files = (io.BytesIO(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True))
        return [torch.load(file, weights_only=True) for file in files]

    def gather_predictions(self, predictions: Predictions) -> Predictions:
        """Those of all ranks, in order."""
        parts = self.gather({name: torch.from_numpy(column) for name, column in vars(predictions).items()})
        return Predictions(**{name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def mean(self, value: float) -> float:
        """Over the ranks, on every rank."""
        return sum(self.gather(value)) / self.world_size

    def any_rank(self, *flags: bool) -> list[bool]:
        """Whether a rank says so. With several, all hear it a call later, so that nobody waits for it."""
        if self.world_size == 1:
            return list(flags)
        before = self._told
        said = torch.tensor(flags, dtype=torch.int32)
        work = distributed.all_reduce(said, distributed.ReduceOp.MAX, async_op=True)
        self._told = work, said
        heard = self._wait(before) or [False] * len(flags)
        if any(heard):  # what is under way would say it again
            self._wait(self._told)
            self._told = None
        return heard

    def close(self) -> None:
        """Leave nothing under way."""
        self._wait(self._told)

    @staticmethod
    def _wait(told: tuple[distributed.Work, Tensor] | None) -> list[bool]:
        if told is None:
            return []
        told[0].wait()
        return told[1].bool().tolist()

    def parallel(self, model: nn.Module, device: torch.device, compression: Compression = "none") -> nn.Module:
        """``model``, whose backward pass makes gradients the mean over ranks; ``compression`` is how they travel.

        It begins everywhere with the weights of rank 0. Batch normalisation uses each rank's own batch, and its
        running statistics are those of rank 0.
        """
        if self.world_size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        if compression != "none":
            hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
            parallel.register_comm_hook(None, hooks[compression])
        return parallel

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every rank the running statistics of rank 0."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def print0(self, message: str) -> None:
        """Once, whatever the number of ranks."""
        if self.rank == 0:
            print(message)

    def seed(self, seed: int) -> None:
        """Of what the ranks draw by themselves from here on: dropout, for each another one."""
        torch.manual_seed((seed + self.rank * 1_000_003) % 2**32)  # a CPU's generator takes no more bits

    def command(self) -> str:
        """How this one was begun, on this machine."""
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
        return "python train.py" if self.world_size == 1 else f"torchrun --nproc-per-node {ranks} train.py"


@contextmanager
def join_ranks(gpus: bool = False) -> Iterator[Ranks]:
    """Joined by gloo, and with ``gpus`` by NCCL for what lies there."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks()
        return
    store, rank, world_size = next(distributed.rendezvous("env://"))
    # torchrun keeps its store over restarts, with the addresses of ranks that are no more.
    store = distributed.PrefixStore(f"restart {_restarts()}", store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=world_size
    )
    ranks = Ranks(rank, world_size)
    if rank:
        logging.getLogger("alexnet").setLevel(logging.ERROR)  # rank 0 warns for all
    try:
        yield ranks
        ranks.close()
    finally:
        distributed.destroy_process_group()


def rank_device(name: str) -> torch.device:
    """``find_device``, where each rank of a machine has a GPU of its own. Raises AlexNetError."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def restarted() -> bool:
    """Whether torchrun has begun again, having lost a rank."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
