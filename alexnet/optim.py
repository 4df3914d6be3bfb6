"""The update rules, and the learning rate of each layer over the course of training."""

import math
from collections.abc import Callable
from typing import Any

import torch

from alexnet.model import AlexNet
from alexnet.recipes import Recipe, Steps

PLATEAU_DROPS = 3  # section 5: "reduced three times prior to termination"
PLATEAU_EPOCHS = 5  # without a better validation error; the paper gives no number


class PaperSGD(torch.optim.SGD):
    """The SGD of the paper's section 5: v <- 0.9 v - decay rate w - rate g; w <- w + v.

    torch's SGD keeps u = -v / rate instead, so a change of the rate also scales its velocity. This class then rescales
    u to keep v, and torch's fused kernel does the rest. Rate 0 freezes parameters and their velocity, as in the
    authors' source.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None
                continue
            before = group.get("velocity_rate", group["lr"])
            if before != group["lr"]:
                velocities = [self.state[parameter]["momentum_buffer"] for parameter in group["params"]]
                torch._foreach_mul_(velocities, before / group["lr"])
            group["velocity_rate"] = group["lr"]
        return super().step(closure)


def make_optimizer(model: AlexNet, recipe: Recipe) -> torch.optim.Optimizer:
    """Return SGD with momentum by the recipe's rule, in groups whose rates ``Schedule`` sets; one fused kernel each.

    Frozen parameters are left out.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    conv1 = set(model.convolutions()["conv1"].parameters())
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in trained:
        groups.setdefault((parameter in conv1, parameter.ndim == 1), []).append(parameter)
    rule = PaperSGD if recipe.update == "paper" else torch.optim.SGD
    optimizer = rule(
        [
            {
                "params": parameters,
                "conv1": is_conv1,
                "bias": is_bias,  # of a layer, or a parameter of batch normalisation
                "weight_decay": 0.0 if is_bias and recipe.decay == "weights" else recipe.weight_decay,
            }
            for (is_conv1, is_bias), parameters in groups.items()
        ],
        recipe.learning_rate,
        recipe.momentum,
        fused=True,
    )
    for parameter in trained:  # torch leaves them unset if fp16 overflows in the first step
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Schedule:
    """The learning rate of each step. Call ``set_rate`` before a step and ``observe`` after each epoch's validation."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe, self._steps_per_epoch = recipe.with_epochs(steps_per_epoch), steps_per_epoch
        self._drops = self._epochs_without_gain = 0
        self._best_error = math.inf

    def rate(self, step: int) -> float:
        """Return the learning rate of all weights but the first layer's."""
        recipe, epoch = self._recipe, step / self._steps_per_epoch
        if epoch < recipe.warmup_epochs:
            return recipe.learning_rate * (step + 1) / (recipe.warmup_epochs * self._steps_per_epoch + 1)
        if recipe.schedule == "plateau":
            return recipe.learning_rate * 0.1**self._drops
        if recipe.schedule == "steps":
            return self._stepped(recipe.rate_steps, step, recipe.learning_rate)
        done = (epoch - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every group. Return the one that ``rate`` gives."""
        recipe, rate = self._recipe, self.rate(step)
        conv1 = self._stepped(recipe.conv1_steps, step, rate)
        for group in optimizer.param_groups:
            group["lr"] = conv1 if group["conv1"] else rate
            if group["bias"] and group["lr"] and recipe.bias_rate_factor is not None:
                group["lr"] = recipe.learning_rate * recipe.bias_rate_factor
        return rate

    def _stepped(self, steps: Steps, step: int, before: float) -> float:
        """Return the learning rate times the factor of the last pair whose epoch has come; ``before`` if none has."""
        factors = [factor for start, factor in steps if step / self._steps_per_epoch >= start]
        return self._recipe.learning_rate * factors[-1] if factors else before

    def observe(self, validation_error: float) -> None:
        """Note an epoch's top-1 error. After PLATEAU_EPOCHS without a better one, the plateau rate drops."""
        if validation_error < self._best_error:
            self._best_error, self._epochs_without_gain = validation_error, 0
            return
        self._epochs_without_gain += 1
        if self._epochs_without_gain >= PLATEAU_EPOCHS and self._drops < PLATEAU_DROPS:
            self._drops, self._epochs_without_gain = self._drops + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"drops": self._drops, "epochs_without_gain": self._epochs_without_gain, "best_error": self._best_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drops, self._epochs_without_gain = state["drops"], state["epochs_without_gain"]
        self._best_error = state["best_error"]
