"""An exponential moving average (EMA) of the weights: steadier than the latest weights, usually a little better."""

import copy

import torch
from torch import nn

from alexnet.model import AlexNet


class EMA:
    """A copy of a network, ``model``, with averaged weights, to evaluate. Call ``update`` after each training step.

    The first steps are forgotten sooner: the decay rises as (1 + n) / (10 + n) until it reaches ``decay``. Running
    statistics of batch normalisation are averaged like weights; counters are copied. torch's AveragedModel differs in
    both: it copies the weights at its first update, and averages counters.
    """

    def __init__(self, trained: AlexNet, decay: float) -> None:
        self.model = copy.deepcopy(trained).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        pairs = list(zip(_tensors(self.model), _tensors(trained), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        averaged, trained = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averaged, trained, 1 - decay)
        for ours, theirs in self._others:
            ours.copy_(theirs)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
