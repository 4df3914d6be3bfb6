"""Tests that several ranks learn what one rank learns, with gloo on CPUs."""

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import distributed
from torch._dynamo.backends.common import aot_autograd

from alexnet import RECIPES, AlexNet, checkpoint
from alexnet.engine import TrainStep
from alexnet.log import read_log
from alexnet.optim import make_optimizer
from alexnet.options import Computation
from alexnet.ranks import Ranks, join_ranks, rank_device
from pipelines import open_loader
from tests.conftest import NUMBERED_IMAGES, assert_refused, command, script
from train import Options, build

RUN = (
    *("train.py", "--recipe", "paper", "--batch-size", "8", "--epochs", "1", "--dropout", "0"),
    *("--learning-rate", "0.001", "--log-steps", "1"),
)
STEPS = NUMBERED_IMAGES // 8


def torchrun(ranks: int, *line: object):
    return command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *line)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_batches_together_are_the_batches_of_one(numbered_shards: Path, world_size: int) -> None:
    """Check that images and labels are bit-identical."""
    alone = open_loader(numbered_shards, "train", 8, "paper", backend="turbo", seed=3)
    shares = [
        open_loader(
            numbered_shards,
            "train",
            8 // world_size,
            "paper",
            backend="turbo",
            rank=rank,
            world_size=world_size,
            seed=3,
        )
        for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_a_batch_in_parts_is_the_batch() -> None:
    """Check up to rounding: float32 sums of a batch's gradients in another order."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 224, 224) * 10, torch.arange(8) % 5
    recipe = replace(RECIPES["paper"], learning_rate=0.001)
    learned = {}
    for parts in (1, 4):
        torch.manual_seed(0)
        model = AlexNet("paper", 5, dropout=0)
        step = TrainStep(model, make_optimizer(model, recipe), recipe, torch.device("cpu"), parts=parts)
        losses = [step(images, labels).item() for _ in range(2)]
        learned[parts] = losses, model.features[0].weight.detach()
    assert learned[4][0] == pytest.approx(learned[1][0], rel=1e-5)
    assert (learned[4][1] - learned[1][1]).norm() < 1e-6 * learned[1][1].norm()


@pytest.fixture(scope="module")
def alone(numbered_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    done = command(*RUN, "--data", numbered_shards, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "parts"), [(2, 2), (2, 1), (4, 1)])
def test_ranks_follow_the_losses_of_one(
    numbered_shards: Path, alone: Path, tmp_path: Path, ranks: int, parts: int
) -> None:
    """Check with the same global batch. fp32 sums in another order differ by some 1e-7 of their size. Training makes
    that grow: over twelve steps losses (which the log rounds to 1e-5) came to differ by 2e-6 and weights by 2e-5."""
    out = tmp_path / "run"
    done = torchrun(ranks, *RUN, "--data", numbered_shards, "--out", out, "--accumulate", parts)
    assert done.returncode == 0, done.stderr[-3000:]
    counted, alone_counted = (
        [entry["train_top1"] for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"]
        for run in (out, alone)
    )
    assert counted == pytest.approx(alone_counted, abs=2 / NUMBERED_IMAGES)
    losses, expected = (
        [entry["loss"] for entry in read_log(run / "log.jsonl") if entry["kind"] == "step"] for run in (out, alone)
    )
    assert len(losses) == STEPS and losses == pytest.approx(expected, rel=2e-5)
    ours, theirs = (checkpoint.load(run / "last.pt") for run in (out, alone))
    for name, weights in theirs["model"].items():
        if weights.ndim > 1:  # biases began at 0 and are still near rounding errors
            assert (ours["model"][name] - weights).norm() < 1e-4 * weights.norm(), name
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=2 / NUMBERED_IMAGES)
    assert ours["metrics"]["samples"] == NUMBERED_IMAGES
    assert done.stdout.count("epoch 1/") == 1 and len(ours["ranks"]) == ranks


@pytest.mark.slow
def test_gradients_may_travel_in_half_precision(numbered_shards: Path, alone: Path, tmp_path: Path) -> None:
    """Check torch's own hook: weights are close to those of fp32, but not equal."""
    out = tmp_path / "run"
    done = torchrun(2, *RUN, "--data", numbered_shards, "--out", out, "--compress", "fp16")
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (checkpoint.load(run / "last.pt")["model"] for run in (out, alone))
    for name, weights in theirs.items():
        assert weights.ndim == 1 or (ours[name] - weights).norm() < 0.02 * weights.norm(), name
    assert not torch.equal(ours["features.0.weight"], theirs["features.0.weight"])


def test_a_batch_that_does_not_divide_is_refused(numbered_shards: Path, tmp_path: Path) -> None:
    line = ("train.py", "--data", numbered_shards, "--out", tmp_path / "run", "--batch-size", "50")
    assert_refused(script(*line, "--accumulate", "3"), "--batch-size 50", "3 equal parts", "--accumulate 3")


def test_what_ranks_tell_each_other_arrives_in_order_on_every_one_and_a_stop_of_one_stops_all() -> None:
    """Check two processes. The third call of rank 1 asks for a stop, which all ranks hear one call later."""
    code = """
import torch
from alexnet.ranks import join_ranks
with join_ranks() as ranks:
    length, tensor = 1 + 1000 * ranks.rank, torch.arange(ranks.rank + 1)
    found = ranks.gather({"rank": ranks.rank, "bytes": b"x" * length, "tensor": tensor, "none": None})
    assert [part["rank"] for part in found] == [0, 1], found
    assert len(found[1]["bytes"]) == 1001 and found[1]["tensor"].tolist() == [0, 1] and found[0]["none"] is None
    assert ranks.mean(float(ranks.rank)) == 0.5
    heard = [ranks.any_rank(call == 2 and ranks.rank == 1, False) for call in range(6)]
    assert heard == [[call == 3, False] for call in range(6)], heard
"""
    done = torchrun(2, "--no-python", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def group_of_one():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_gradients_travel_while_the_compiled_backward_pass_goes_on(
    few_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the network as train.py builds it: torch cuts the graph, and each part's gradients leave before the next.

    The backend runs the graphs as they are traced, so it needs no C compiler.
    """
    happened: list[str] = []

    def backward(graph: torch.fx.GraphModule, _: object):
        return make_boxed_func(lambda *inputs: (happened.append("backward"), graph(*inputs))[1])

    def travel(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        happened.append("bucket")
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    traced = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)
    compile = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr("shutil.which", lambda _: "cc")
    monkeypatch.setattr(torch, "compile", lambda model, mode, **how: compile(model, backend=traced, **how))
    options, cpu = Options(RECIPES["demo"], Computation(compile="on")), torch.device("cpu")
    with group_of_one(), open_loader(few_shards, "train", 4, backend="synthetic") as loader:
        state, _ = build(options, Ranks(0, 2), cpu, loader, None)
        parallel = state.train_step.model
        getattr(parallel, "_orig_mod", parallel).register_comm_hook(None, travel)
        images = torch.randn(2, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # buckets follow the order of the first step's gradients
            happened.clear()
            state.train_step(images, torch.tensor([0, 1]))
    assert happened[:3] == ["backward", "bucket", "backward"] and happened[-1] == "bucket", happened


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list:
    """Pretend that there are four GPUs. Return a list of the calls that would make a context on one."""
    calls: list = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(torch, "empty", lambda *_, device: calls.append(("empty", device)))
    return calls


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:2"])
def test_a_rank_touches_no_gpu_but_its_own(monkeypatch: pytest.MonkeyPatch, four_gpus: list, name: str) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    own = torch.device("cuda", 2)
    assert rank_device(name) == own
    assert four_gpus == [("set_device", own), ("empty", own)]


@pytest.mark.parametrize(
    ("device", "backend", "bound"), [("cuda:2", "cpu:gloo,cuda:nccl", "cuda:2"), ("cpu", "gloo", None)]
)
def test_nccl_is_told_the_ranks_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, bound: str | None
) -> None:
    """Check the process group's arguments: without a device NCCL guesses it from the rank's number."""
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(distributed, "rendezvous", lambda _: iter([(distributed.HashStore(), 0, 4)]))
    monkeypatch.setattr(distributed, "init_process_group", lambda name, **more: given.update(more, backend=name))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with join_ranks(torch.device(device)) as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 4)
    assert (given["backend"], given["device_id"]) == (backend, bound and torch.device(bound))


def test_each_rank_draws_its_own_dropout() -> None:
    drawn = []
    for rank in range(4):
        Ranks(rank, 4).seed(2**32 - 1)
        drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 4
