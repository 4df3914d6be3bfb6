"""Bias, ReLU, normalisation across maps and max-pooling as one operation on a GPU, forward and backward.

It keeps for the backward pass what the convolution returned (before its bias) and uint8 offsets. As compiled torch
operations these layers move five times as many bytes: ``python -m benchmarks bytes`` counts them.
The kernels, their formulas and what there is to tune are in fused_kernels.py. Only what needs Triton imports this.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from alexnet import fused_kernels as kernels
from alexnet.fused import LANE

FORWARD_BLOCK = 256  # threads of a program; 127 registers each: two programs fit into a multiprocessor
BACKWARD_BLOCK = 128  # 142 registers: three. At C = 96, 120 threads have work: 10 cells of 12 lanes; at C = 256 all
PROGRAMS = 2048  # of the backward kernel, at most: five waves on 132 multiprocessors, and 8 MB of sums for the bias


@triton_op("alexnet::normalise_and_pool", mutates_args=())
def normalise_and_pool(
    maps: Tensor, bias: Tensor | None, relu: str, groups: int, alpha: float, k: float, window: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Return pooled maps N,C,OH,OW, channels-last, and where in its window each maximum stood, N,C,OH,OW uint8.

    ``maps`` N,C,H,W; ``relu`` before, after or none; ``groups``, ``alpha`` and ``k`` as in ``CrossMapNorm`` over 5
    channels, with ``alpha`` 0 for no normalisation. A ``window`` of 1 does not pool, and there are no offsets (0).
    """
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
