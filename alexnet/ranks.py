"""Ranks: the processes that torchrun starts to share a command's work. Without torchrun there is one."""

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
    """A rank: its number, the number of ranks, and the communication between them. A single rank sends nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._told: tuple[distributed.Work, Tensor] | None = None

    def gather(self, value: Any) -> list[Any]:
        """Return all ranks' values, in order, on every rank: tensors, numbers, text, bytes, None, lists, dicts of them.

        A value is sent as torch.save writes it and read with ``weights_only``: ``all_gather_object`` would unpickle
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
        """Return the predictions of all ranks, in order, on every rank."""
        parts = self.gather({name: torch.from_numpy(column) for name, column in vars(predictions).items()})
        return Predictions(**{name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def mean(self, value: float) -> float:
        """Return the mean over the ranks, on every rank."""
        return sum(self.gather(value)) / self.world_size

    def any_rank(self, *flags: bool) -> list[bool]:
        """Return, per flag, true if any rank set it. Several ranks learn it one call later, so that none waits."""
        if self.world_size == 1:
            return list(flags)
        before = self._told
        said = torch.tensor(flags, dtype=torch.int32)
        work = distributed.all_reduce(said, distributed.ReduceOp.MAX, async_op=True)
        self._told = work, said
        heard = self._wait(before) or [False] * len(flags)
        if any(heard):  # the reduction under way would report it again
            self._wait(self._told)
            self._told = None
        return heard

    def close(self) -> None:
        """Wait for the reduction that ``any_rank`` left under way."""
        self._wait(self._told)

    @staticmethod
    def _wait(told: tuple[distributed.Work, Tensor] | None) -> list[bool]:
        if told is None:
            return []
        told[0].wait()
        return told[1].bool().tolist()

    def parallel(self, model: nn.Module, device: torch.device, compression: Compression = "none") -> nn.Module:
        """Return ``model`` with a backward pass that averages gradients over ranks, sent in precision ``compression``.

        Gradients travel while the rest of the backward pass is computed. Torch cuts a compiled ``model`` into a graph
        for each bucket of gradients, since it is compiled inside the parallel one's forward pass (DDPOptimizer).

        All ranks start with the weights of rank 0. Batch normalisation uses each rank's own batch, and its running
        statistics are those of rank 0.
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
        """Print on rank 0 only."""
        if self.rank == 0:
            print(message, flush=True)  # a log file shows it at once

    def seed(self, seed: int) -> None:
        """Seed torch differently on each rank, so that dropout masks differ."""
        torch.manual_seed((seed + self.rank * 1_000_003) % 2**32)  # the CPU's generator takes no more bits

    def launcher(self) -> list[str]:
        """Return the words between python and a script that start the ranks of this machine as torchrun did."""
        if self.world_size == 1:
            return []
        said = {"--nproc-per-node": "LOCAL_WORLD_SIZE"}
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":  # several machines
            said |= {"--nnodes": "GROUP_WORLD_SIZE", "--node-rank": "GROUP_RANK"}
            said |= {"--master-addr": "MASTER_ADDR", "--master-port": "MASTER_PORT"}
        words = [word for option, name in said.items() for word in (option, os.environ.get(name, ""))]
        return ["-m", "torch.distributed.run", *words]


@contextmanager
def join_ranks(device: torch.device | None = None) -> Iterator[Ranks]:
    """Yield the ranks, connected by gloo, and if ``device`` is a GPU by NCCL for tensors there."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks()
        return
    store, rank, world_size = next(distributed.rendezvous("env://"))
    # torchrun's store survives restarts and still holds the addresses of ranks that have ended.
    store = distributed.PrefixStore(f"restart {_restarts()}", store)
    gpu = device if device and device.type == "cuda" else None
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    # NCCL would guess the GPU from the rank's number, and could make a context on another rank's
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, device_id=gpu)
    ranks = Ranks(rank, world_size)
    if rank:
        logging.getLogger("alexnet").setLevel(logging.ERROR)  # rank 0 warns for all
    try:
        yield ranks
        ranks.close()
    finally:
        distributed.destroy_process_group()


def rank_device(name: str) -> torch.device:
    """Return the device of that name. Each rank of a machine gets its own GPU. Raises AlexNetError."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return find_device(name)


def restarted() -> bool:
    """Return true if torchrun restarted this process after it lost a rank."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
