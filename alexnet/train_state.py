"""The state that training changes, as a checkpoint stores it."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alexnet.engine import TrainStep
from alexnet.model import AlexNet
from alexnet.optim import Schedule


@dataclass
class TrainState:
    """The state of a run, except for the position in the data and the random generators, which differ by rank.

    ``step`` and ``epoch`` count what is finished; ``history`` has each epoch's metrics, ``best`` the highest top-1.
    ``seen`` and ``right`` count this rank's train images of the epoch under way and those classified right, NaN if a
    checkpoint of an earlier version did not say.
    """

    model: AlexNet
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train_step: TrainStep
    step: int = 0
    epoch: int = 0
    best: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)
    seen: float = 0
    right: float = 0

    @property
    def val_model(self) -> AlexNet:
        """The network to evaluate: the EMA if there is one."""
        return self.train_step.ema.model if self.train_step.ema else self.model

    def end_epoch(self, metrics: dict[str, float]) -> bool:
        """Record an epoch's metrics. Return true if its top-1 is the best so far."""
        self.epoch += 1
        self.seen = self.right = 0
        self.history.append(metrics)
        self.schedule.observe(1 - metrics["top1"])
        is_best = metrics["top1"] > self.best
        self.best = max(self.best, metrics["top1"])
        return is_best

    def describe(self) -> dict[str, Any]:
        """Return the weights to evaluate, their epoch and their metrics."""
        metrics = self.history[-1] if self.history else {}
        return {"model": self.val_model.state_dict(), "epoch": self.epoch, "metrics": metrics}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for resuming besides ``describe``."""
        state = {
            "step": self.step,
            "best": self.best,
            "history": list(self.history),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
        }
        if self.train_step.ema:
            state |= {"trained": self.model.state_dict(), "averaged_updates": self.train_step.ema.updates}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint. Raises KeyError, ValueError, RuntimeError or TypeError if it is of another run."""
        self.model.load_state_dict(state.get("trained", state["model"]))
        if self.train_step.halves:
            self.train_step.halves.refresh()
        self.optimizer.load_state_dict(state["optimizer"])
        for values in self.optimizer.state.values():
            values |= {name: _writable(value) for name, value in values.items()}
        self.schedule.load_state_dict(state["schedule"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        if self.train_step.ema:
            self.train_step.ema.model.load_state_dict(state["model"])
            self.train_step.ema.updates = state["averaged_updates"]
        self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
        self.history = list(state["history"])


def _writable(value: Any) -> Any:
    """Return a tensor whose numbers share no memory: an expanded one, in a checkpoint of few bytes, is copied."""
    expanded = isinstance(value, Tensor) and any(
        size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)
    )
    return value.clone() if expanded else value


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators, the only ones in use here: dropout draws from its device's generator."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def choose_algorithms(deterministic: bool) -> None:
    """Let cuDNN time its algorithms for each convolution and take the fastest, or make runs bit-identical.

    Which one is the fastest may differ from run to run, and with it the rounding. ``deterministic``: an operation that
    cannot be deterministic raises RuntimeError; some run slower on a GPU. Call it before anything runs on a GPU.
    """
    torch.backends.cudnn.benchmark = not deterministic  # shapes never change, so it times each convolution once
    if not deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires this
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a slow aid to debugging
