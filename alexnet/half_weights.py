"""Weights in bfloat16 with masters in float32: one kernel updates both, so that a step casts nothing. On a GPU."""

import copy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.fused import HAS_TRITON
from alexnet.model import AlexNet
from alexnet.optim import PaperSGD


class HalfWeights:
    """A copy of a network, ``network``, to train by: its weights are bfloat16 copies of the network's own, the masters.
    ``halves`` maps each master to its copy.

    Biases, batch normalisation and buffers are the network's own, as autocast does not cast them or casts little. The
    optimizer has the masters, and so have checkpoints and the EMA. Under autocast results are those of the network
    itself, in which each step casts the weights to bfloat16 and their gradients to float32.
    """

    def __init__(self, model: AlexNet) -> None:
        shared = [*model.parameters(), *model.buffers()]
        memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
        self.halves: dict[nn.Parameter, nn.Parameter] = {}
        for weight in (parameter for parameter in model.parameters() if parameter.ndim > 1):
            half = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
            memo[id(weight)] = self.halves[weight] = half
        self.network = copy.deepcopy(model, memo)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters again, after they were changed by other means than ``update``."""
        for weight, half in self.halves.items():
            half.copy_(weight)

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Update masters and copies by the copies' gradients, which are dropped. Call it after ``optimizer.step``."""
        update = import_module("alexnet.half_kernel").update  # it imports Triton, for seconds
        for group in optimizer.param_groups:
            frozen = isinstance(optimizer, PaperSGD) and group["lr"] == 0
            for weight in group["params"]:
                half = self.halves.get(weight)
                if half is None or half.grad is None:
                    continue
                if not frozen:
                    state = optimizer.state[weight]
                    state["momentum_buffer"] = velocity = _laid_out(state["momentum_buffer"], weight)
                    gradient = _laid_out(half.grad, weight)
                    update(weight, velocity, gradient, half, group["lr"], group["momentum"], group["weight_decay"])
                half.grad = None


def usable(device: torch.device, precision: str) -> bool:
    """Return true if a step in this precision casts weights to bfloat16, on a GPU with Triton."""
    return device.type == "cuda" and precision in ("auto", "bf16") and HAS_TRITON


def _laid_out(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return ``tensor`` with the strides of ``weight``; a copy, unless it has them."""
    return tensor if tensor.stride() == weight.stride() else torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
