"""The optimiser, and the learning rate as a function of how far training has come."""

import math
from typing import Any

import torch
from torch import nn

from alexnet.recipes import Recipe

PLATEAU_DROPS = 3  # section 5: "reduced three times prior to termination"
PLATEAU_EPOCHS = 5  # without a better validation error; the paper gives no number


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum; one fused kernel updates all weights."""
    return torch.optim.SGD(
        model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )


class Schedule:
    """The learning rate of each step. Call ``set_rate`` before a step and ``observe`` after each epoch's validation."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe, self._steps_per_epoch = recipe, steps_per_epoch
        self._drops = self._epochs_without_gain = 0
        self._best_error = math.inf

    def rate(self, step: int) -> float:
        epoch = step / self._steps_per_epoch
        warmup = self._recipe.warmup_epochs
        if epoch < warmup:
            return self._recipe.learning_rate * (step + 1) / (warmup * self._steps_per_epoch + 1)
        if self._recipe.schedule == "plateau":
            return self._recipe.learning_rate * 0.1**self._drops
        done = (epoch - warmup) / max(self._recipe.epochs - warmup, 1e-9)
        return self._recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def observe(self, validation_error: float) -> None:
        """Note an epoch's top-1 error; after PLATEAU_EPOCHS without a better one the plateau schedule drops."""
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
