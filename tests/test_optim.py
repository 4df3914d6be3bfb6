"""Tests of update rules and schedules against loops over plain numbers and the tables that they come from."""

import copy
import dataclasses
import json
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from torch import nn

from alexnet import RECIPES, AlexNet, AlexNetError
from alexnet.optim import PaperSGD, Schedule, make_optimizer
from alexnet.recipes import RecipeName, read_recipe

RATES = (0.1, 0.1, 0.1, 0.01, 0.01, 0.0, 0.01, 0.1)
GRADIENTS = (1.0, 2.0, 0.5, 0.5, 3.0, 9.0, -1.0, 0.25)


def run(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[float]:
    """Return the weight after each step at RATES with GRADIENTS."""
    found = []
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        found.append(weight.item())
    return found


def test_the_papers_rule_is_that_of_a_scalar_loop_through_drops_a_freeze_and_a_rise() -> None:
    """Check section 5, and for rate 0 weights.cu of the source, which leaves weight and velocity alone."""
    w, v, expected = 2.0, 0.0, []
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        if rate:
            v = 0.9 * v - 0.05 * rate * w - rate * gradient
            w += v
        expected.append(w)
    ours, theirs = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    found = run(PaperSGD([ours], 0.1, 0.9, weight_decay=0.05, fused=True), ours)
    assert found == pytest.approx(expected, rel=1e-5)
    other = run(torch.optim.SGD([theirs], 0.1, 0.9, weight_decay=0.05), theirs)
    assert other[:3] == pytest.approx(expected[:3], rel=1e-5)
    assert abs(other[3] - expected[3]) > 0.1, "torch's SGD forgets nine tenths of the velocity when the rate drops"


def test_the_papers_rule_survives_a_resume_at_a_drop() -> None:
    """Check that the checkpoint has the rate that the velocity was made with."""
    weights = [nn.Parameter(torch.tensor([2.0])) for _ in range(2)]
    first, second = (PaperSGD([weight], 0.1, 0.9, fused=True) for weight in weights)
    weights[0].grad = torch.ones(1)
    first.step()
    with torch.no_grad():
        weights[1].copy_(weights[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, weight in zip((first, second), weights, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weights[0].item() == weights[1].item() == pytest.approx(2.0 - 0.1 - 0.09 - 0.01)


@cache
def optimizer_of(name: RecipeName) -> tuple[torch.optim.Optimizer, dict[int, str]]:
    model = AlexNet(RECIPES[name].variant, 2)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return make_optimizer(model, RECIPES[name]), named


def rates_of(name: RecipeName, epoch: float) -> dict[str, tuple[float, float]]:
    """Return the rate and weight decay of each parameter, as the optimizer has them in that epoch."""
    optimizer, named = optimizer_of(name)
    Schedule(RECIPES[name], steps_per_epoch=100).set_rate(optimizer, int(epoch * 100))
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[named[id(parameter)]] = group["lr"], group["weight_decay"]
    assert len(found) == len(named)
    return found


@pytest.mark.parametrize(
    ("epoch", "conv1", "weights"),
    [
        (0, 0.01, 0.01),
        (24.99, 0.01, 0.01),
        (25, 1e-3, 1e-3),
        (51, 1e-4, 1e-4),
        (67, 1e-5, 1e-4),
        (72, 0, 1e-4),
        (79, 0, 1e-5),
        (90.99, 0, 1e-5),
    ],
)
def test_the_rates_of_source2012_are_those_of_its_log(epoch: float, conv1: float, weights: float) -> None:
    """Check that biases stay at 0.02 (epsB in layer-params-145.cfg) without decay, and that conv1 stops altogether."""
    found = rates_of("source2012", epoch)
    assert found["features.1.weight"] == (pytest.approx(conv1), 5e-4)
    assert found["features.1.bias"] == (0.02 if conv1 else 0, 0)
    assert found["features.5.weight"] == found["classifier.6.weight"] == (pytest.approx(weights), 5e-4)
    assert found["features.5.bias"] == found["classifier.6.bias"] == (0.02, 0)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.01), (29.99, 0.01), (30, 1e-3), (60, 1e-4), (89, 1e-4)])
def test_the_rates_of_torchvisions_recipe_fall_every_thirty_epochs(epoch: float, rate: float) -> None:
    for found in rates_of("torchvision", epoch).values():
        assert found == (pytest.approx(rate), 1e-4)


def test_the_modern_recipe_decays_neither_biases_nor_batch_normalisation() -> None:
    decayed = {name for name, (_, decay) in rates_of("modern", 10).items() if decay}
    assert decayed == {f"features.{i}.weight" for i in (0, 4, 8, 11, 14)} | {
        f"classifier.{i}.weight" for i in (0, 3, 6)
    }


def test_colour_noise_of_source2012_ends_at_epoch_67() -> None:
    recipe = RECIPES["source2012"]
    assert [recipe.augment_at(epoch) for epoch in (0, 66, 67, 90)] == ["source2012"] * 2 + ["source2012_quiet"] * 2


def test_steps_become_whole_epochs_and_given_epochs_stay() -> None:
    small = RECIPES["small"]
    assert [small.with_epochs(steps).epochs for steps in (7, 52, 6000, 7000)] == [858, 116, 1, 1]
    assert dataclasses.replace(small, epochs=3).with_epochs(7).epochs == 3
    assert small.with_epochs(7).with_epochs(9) == small.with_epochs(7)
    with pytest.raises(ValueError, match="epochs is 0, and so is steps"):
        dataclasses.replace(small, steps=0)
    assert Schedule(small, 7).rate(6006) == 0 < Schedule(small, 7).rate(5990)


def test_every_recipe_can_be_named_on_the_command_line() -> None:
    assert set(get_args(RecipeName)) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_config_json(name: RecipeName) -> None:
    assert read_recipe(json.loads(json.dumps(dataclasses.asdict(RECIPES[name])))) == RECIPES[name]


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(AlexNetError, match=r"no field 'weigth_decay'; the nearest: weight_decay"):
        read_recipe({"weigth_decay": 1.0})
    with pytest.raises(AlexNetError, match=r"not a recipe.*epochs"):
        read_recipe({"variant": "bn", "augment": "crop_flip"})


@pytest.mark.parametrize("steps", [((30, 0.1), (20, 0.1)), ((-1, 0.5),), ((3, -0.1),)])
def test_rate_steps_out_of_order_are_refused(steps) -> None:
    with pytest.raises(ValueError, match="rate_steps"):
        replace(RECIPES["torchvision"], rate_steps=steps)
