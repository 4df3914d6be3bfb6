"""Bias, ReLU, normalisation across maps and max-pooling as one operation on a GPU, forward and backward.

It keeps for the backward pass what the convolution returned (before its bias) and uint8 offsets. As compiled torch
operations these layers move three times as many bytes: ``python -m benchmarks bytes`` counts them.
The kernels, their formulas and what there is to tune are in fused_kernels.py.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.library import triton_op, wrap_triton

from alexnet.lrn import CrossMapNorm

LANE = 8  # channels of a thread
FORWARD_BLOCK = 256  # threads of a program; 127 registers each: two programs fit into a multiprocessor
BACKWARD_BLOCK = 128  # 146 registers: three. At C = 96, 120 threads have work: 10 cells of 12 lanes; at C = 256 all
PROGRAMS = 2048  # of the backward kernel, at most: five waves on 132 multiprocessors, and 8 MB of sums for the bias


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
        bias = None
        if self.conv is not None:
            maps, bias = self.conv._conv_forward(maps, self.conv.weight, None), self.conv.bias
        groups, alpha, k = (self.norm.groups, self.norm.alpha, self.norm.k) if self.norm else (1, 0.0, 1.0)
        window, stride = (3, 2) if self.pool else (1, 1)
        return normalise_and_pool(maps, bias, self.relu, groups, float(alpha), float(k), window, stride)[0]


def usable(maps: Tensor) -> bool:
    """Return true if ``maps`` are on an NVIDIA GPU, in a type that the kernels take, and Triton is installed."""
    return maps.is_cuda and maps.dtype != torch.float64 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


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
    if not (norm or pool) or width % LANE or width // LANE > BACKWARD_BLOCK:
        return None
    if norm and (norm.size != 5 or width // norm.groups % LANE):
        return None
    if pool and (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) != (3, 2, 0, 1, False):
        return None
    return Block(count, conv, "before" if relu else "after" if last else "none", norm, pool)


@triton_op("alexnet::normalise_and_pool", mutates_args=())
def normalise_and_pool(
    maps: Tensor, bias: Tensor | None, relu: str, groups: int, alpha: float, k: float, window: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Return pooled maps N,C,OH,OW, channels-last, and where in its window each maximum stood, N,C,OH,OW uint8.

    ``maps`` N,C,H,W; ``relu`` before, after or none; ``groups``, ``alpha`` and ``k`` as in ``CrossMapNorm`` over 5
    channels, with ``alpha`` 0 for no normalisation. A ``window`` of 1 does not pool, and there are no offsets (0).
    """
    from alexnet import fused_kernels as kernels  # they need Triton

    maps = maps.contiguous(memory_format=torch.channels_last)
    n, c, h, w = maps.shape
    high, wide = (h - window) // stride + 1, (w - window) // stride + 1
    pooled = _channels_last(maps, (n, c, high, wide), maps.dtype)
    offsets = _channels_last(maps, (n if window > 1 else 0, c, high, wide), torch.uint8)
    lanes = n * high * wide * c // LANE
    wrap_triton(kernels.pool_forward)[(-(-lanes // FORWARD_BLOCK),)](
        maps, bias, pooled, offsets, lanes,
        **_constants(maps, pooled, groups, alpha, k, relu, window, stride),
        BLOCK=FORWARD_BLOCK, num_warps=FORWARD_BLOCK // 32,
    )  # fmt: skip
    return pooled, offsets


@triton_op("alexnet::normalise_and_pool_backward", mutates_args=())
def normalise_and_pool_backward(
    gradient: Tensor, maps: Tensor, bias: Tensor | None, offsets: Tensor,
    relu: str, groups: int, alpha: float, k: float, window: int, stride: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of maps and bias (0 values if there is none), given that of the pooled maps."""
    from alexnet import fused_kernels as kernels

    maps = maps.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    n, c, h, w = maps.shape
    tile = BACKWARD_BLOCK // (c // LANE)  # cells
    cells = n * -(-h // stride) * -(-w // stride)
    programs = min(PROGRAMS, -(-cells // tile))
    maps_gradient = torch.empty_like(maps)
    bias_sums = maps.new_empty((programs, tile, c if bias is not None else 0), dtype=torch.float32)
    wrap_triton(kernels.pool_backward)[(programs,)](
        maps, bias, gradient, offsets, maps_gradient, bias_sums, cells, programs,
        **_constants(maps, gradient, groups, alpha, k, relu, window, stride),
        BLOCK=BACKWARD_BLOCK, num_warps=BACKWARD_BLOCK // 32,
    )  # fmt: skip
    bias_gradient = bias_sums.sum((0, 1))
    return maps_gradient, bias_gradient if bias is None else bias_gradient.to(bias.dtype)


def _channels_last(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    _, c, h, w = shape  # strides, because the compiler fills what torch.empty with a memory format returns
    return torch.empty_strided(shape, (h * w * c, 1, w * c, c), dtype=dtype, device=like.device)


def _constants(
    maps: Tensor, pooled: Tensor, groups: int, alpha: float, k: float, relu: str, window: int, stride: int
) -> dict[str, Any]:
    """Return what the kernels are compiled for: a kernel per layer, in which divisions by sizes are products."""
    (_, c, h, w), (high, wide) = maps.shape, pooled.shape[2:]
    shape = {"H": h, "W": w, "C": c, "OH": high, "OW": wide, "GROUP": c // groups}
    return shape | {
        "SCALE": alpha / 5, "K": k, "NORMALISE": alpha != 0, "RELU": relu, "WINDOW": window, "STRIDE": stride,
    }  # fmt: skip


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    maps, bias, *ctx.settings = inputs
    ctx.save_for_backward(maps, bias, output[1])
    ctx.set_materialize_grads(False)


def _propagate(ctx: Any, gradient: Tensor, _: None) -> tuple[Any, ...]:
    maps, bias, offsets = ctx.saved_tensors
    maps_gradient, bias_gradient = normalise_and_pool_backward(gradient, maps, bias, offsets, *ctx.settings)
    return maps_gradient, None if bias is None else bias_gradient, *[None] * len(ctx.settings)


normalise_and_pool.register_autograd(_propagate, setup_context=_keep)
