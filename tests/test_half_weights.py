"""Tests of bf16 weights with float32 masters, by Triton's interpreter on a CPU, against torch's autocast and SGD."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet import RECIPES, half_weights
from alexnet.engine import TrainStep
from alexnet.half_weights import HalfWeights
from alexnet.layers import FirstConv2d, GroupedConv2d
from alexnet.optim import Schedule, make_optimizer
from alexnet.options import Computation
from alexnet.recipes import Recipe
from alexnet.train_state import TrainState

pytest.importorskip("triton")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the kernel by Triton's interpreter, which rounds bf16 towards 0, a GPU to the nearest: ``take`` refreshes."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    name = "alexnet.half_kernel"
    fresh = importlib.util.module_from_spec(importlib.util.find_spec(name))
    fresh.__spec__.loader.exec_module(fresh)
    monkeypatch.setitem(sys.modules, name, fresh)
    yield


class Small(nn.Module):
    """A network of AlexNet's parts, for images of 16 x 16, whose steps take milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        layers = [FirstConv2d(16), nn.BatchNorm2d(16), nn.ReLU(), GroupedConv2d(16, 8, 3, padding=1, groups=2)]
        self.features, self.last = nn.Sequential(*layers), nn.Linear(8 * 3 * 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images).flatten(1))

    def convolutions(self) -> dict[str, nn.Module]:
        return {"conv1": self.features[0], "conv2": self.features[3]}


def trainer(recipe: Recipe, with_halves: bool, frozen: bool = False) -> TrainState:
    """Return a network, the same each time, and its step."""
    torch.manual_seed(0)
    model: Any = Small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.features.requires_grad_(not frozen)
    halves = HalfWeights(model) if with_halves else None
    optimizer, network = make_optimizer(model, recipe), halves.network if halves else model
    step = TrainStep(network, optimizer, recipe, CPU, halves=halves)
    return TrainState(model, optimizer, Schedule(recipe, 10), step)


def take(state: TrainState, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        torch.manual_seed(number)
        images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        state.schedule.set_rate(state.optimizer, number)
        losses.append(state.train_step(images, torch.arange(4) % 3).item())
        if halves := state.train_step.halves:
            for weight, half in halves.halves.items():
                assert ((weight - half).abs() <= weight.abs() / 128).all() and half.grad is weight.grad is None
            halves.refresh()
    return losses


def differ(one: TrainState, other: TrainState) -> float:
    """Return the largest difference of a weight or velocity, in parts of the largest in its tensor."""
    both = zip(one.model.parameters(), other.model.parameters(), strict=True)
    pairs = [(a, b) for a, b in both if a.requires_grad]
    velocities = [
        (one.optimizer.state[a]["momentum_buffer"], other.optimizer.state[b]["momentum_buffer"]) for a, b in pairs
    ]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs + velocities)


@pytest.mark.parametrize(
    ("name", "steps", "within"), [("source2012", range(249, 252), 1e-5), ("modern", range(48, 51), 5e-3)]
)
def test_steps_are_those_of_autocast(interpreted, name, steps, within) -> None:
    """Check through a drop of the rate (source2012, epoch 25), with biases at rates of their own and shared buffers.

    In modern's, the last bit of a float32 decides how one weight is rounded to bf16: by 0.4 % up or down.
    """
    recipe = replace(RECIPES[name], precision="bf16", average_decay=0.0)
    ours, theirs = trainer(recipe, True), trainer(recipe, False)
    assert take(ours, steps) == pytest.approx(take(theirs, steps), rel=1e-5)
    assert differ(ours, theirs) < within
    assert all(torch.equal(a, b) for a, b in zip(ours.model.buffers(), ours.train_step.model.buffers(), strict=True))


def test_one_step_is_autocasts_to_the_rounding_of_float32(interpreted) -> None:
    recipe = replace(RECIPES["paper"], precision="bf16")
    ours, theirs = trainer(recipe, True), trainer(recipe, False)
    assert take(ours, range(1)) == take(theirs, range(1))
    assert differ(ours, theirs) < 1e-6
    for weight, half in zip(ours.model.parameters(), ours.train_step.model.parameters(), strict=True):
        assert half.dtype == (torch.bfloat16 if weight.ndim > 1 else torch.float32)
        assert torch.equal(weight.to(half.dtype), half)


def test_a_rate_of_0_freezes_conv1_as_in_the_source_of_2012(interpreted) -> None:
    recipe = replace(RECIPES["source2012"], precision="bf16")
    state = trainer(recipe, True)
    conv1 = state.model.convolutions()["conv1"]
    before = conv1.weight.detach().clone()
    take(state, range(720, 721))
    assert torch.equal(conv1.weight, before)
    take(state, range(1))
    assert not torch.equal(conv1.weight, before)


def test_frozen_features_have_no_gradients(interpreted) -> None:
    state = trainer(replace(RECIPES["torchvision"], precision="bf16"), True, frozen=True)
    before = [parameter.detach().clone() for parameter in state.model.features.parameters()]
    take(state, range(1))
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.features.parameters(), strict=True))


def test_a_checkpoint_has_the_masters_and_a_resumed_run_goes_on_to_the_same_bits(interpreted) -> None:
    recipe = replace(RECIPES["paper"], precision="bf16")
    state = trainer(recipe, True)
    take(state, range(1))
    kept = {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in state.describe()["model"].items()
    }
    assert torch.bfloat16 not in {tensor.dtype for tensor in kept.values()}
    resumed = trainer(recipe, True)
    saved = torch.utils._pytree.tree_map(
        lambda value: value.clone() if isinstance(value, Tensor) else value, state.state_dict()
    )
    resumed.load_state_dict(saved | {"model": kept, "epoch": 0})
    assert take(resumed, range(1, 2)) == take(state, range(1, 2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            [*state.model.parameters(), *state.train_step.model.parameters()],
            [*resumed.model.parameters(), *resumed.train_step.model.parameters()],
            strict=True,
        )
    )


def test_copies_are_kept_where_autocast_would_cast_and_gradients_are_not_summed(monkeypatch) -> None:
    monkeypatch.setattr(half_weights, "HAS_TRITON", True)
    assert Computation().keeps_halves(GPU, "auto", 1) and Computation().keeps_halves(GPU, "bf16", 1)
    for how, device, precision, ranks in (
        (Computation(), CPU, "bf16", 1),
        (Computation(), GPU, "fp32", 1),
        (Computation(), GPU, "fp16", 1),
        (Computation(), GPU, "bf16", 2),
        (Computation(accumulate=2), GPU, "bf16", 1),
        (Computation(fused="off"), GPU, "bf16", 1),
    ):
        assert not how.keeps_halves(device, precision, ranks)
    monkeypatch.setattr(half_weights, "HAS_TRITON", False)
    assert not Computation().keeps_halves(GPU, "bf16", 1)
