"""The layers that one operation replaces on a GPU: bias, ReLU, normalisation across maps and max-pooling."""

from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from alexnet.lrn import CrossMapNorm

HAS_TRITON = find_spec("triton") is not None
LANE = 8  # channels of a thread
MOST_CHANNELS = 1024


class Block(NamedTuple):
    """The layers that one operation replaces: [Conv2d] [ReLU] [CrossMapNorm] [MaxPool2d] [ReLU], with one ReLU at most.

    The convolution itself stays; its bias is added by the operation.
    """

    span: int
    conv: nn.Conv2d | None
    relu: Literal["before", "after", "none"]
    norm: CrossMapNorm | None
    pool: nn.MaxPool2d | None

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the layers. N,C,H,W to N,C,H,W, channels-last."""
        from alexnet.fused_operation import normalise_and_pool  # it imports Triton, for seconds

        bias = None
        if self.conv is not None:
            maps, bias = self.conv._conv_forward(maps, self.conv.weight, None), self.conv.bias
        groups, alpha, k = (self.norm.groups, self.norm.alpha, self.norm.k) if self.norm else (1, 0.0, 1.0)
        window, stride = (3, 2) if self.pool else (1, 1)
        return normalise_and_pool(maps, bias, self.relu, groups, float(alpha), float(k), window, stride)[0]


def usable(maps: Tensor) -> bool:
    """Return true if ``maps`` are on a GPU, in a type that the kernels take, and Triton is installed."""
    return maps.is_cuda and maps.dtype != torch.float64 and HAS_TRITON


def match(layers: list[nn.Module], channels: int) -> Block | None:
    """Return the block at the start of ``layers``, whose input has ``channels``. None: the first layer is on its own.

    A layer with forward hooks is called as a module, so that they see its output.
    """
    found: list[Any] = []
    count = 0
    for kind in (nn.Conv2d, nn.ReLU, CrossMapNorm, nn.MaxPool2d, nn.ReLU):
        layer = layers[count] if count < len(layers) else None
        second_relu = len(found) == 4 and found[1] is not None
        fits = isinstance(layer, kind) and len(layer._forward_hooks) == 0 and not second_relu
        found.append(layer if fits else None)
        count += fits
    conv, relu, norm, pool, last = found
    width = conv.out_channels if conv else channels
    if not (norm or pool) or width % LANE or width > MOST_CHANNELS:
        return None
    if norm and (norm.size != 5 or width // norm.groups % LANE):
        return None
    if pool and (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) != (3, 2, 0, 1, False):
        return None
    return Block(count, conv, "before" if relu else "after" if last else "none", norm, pool)
