"""Local response normalisation, forward and backward: y = x / (k + alpha * (mean of x squared over a window)) ** 0.75.

torch.nn.LocalResponseNorm makes many passes over the largest maps of the network, half of a training step on a CPU.
Here a CPU handles one image at a time, which stays in its cache, and torch.compile fuses everything into a kernel.
Both windows are symmetric, so the gradient needs the same window again:

    dx = dy d^-0.75 - 1.5 alpha x window(dy x d^-1.75),  d = k + alpha * window(x^2)

Only x is kept for the backward pass. Sums are float32 whatever the type of x: squares of activations overflow float16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Window = Callable[[Tensor], Tensor]


class CrossMapNorm(nn.Module):
    """A normalisation over ``size`` neighbouring channels. ``alpha`` is divided by ``size``, as in LocalResponseNorm.

    ``groups`` of channels do not see each other, like the halves of a layer on two GPUs. N,C,H,W to N,C,H,W.
    """

    def __init__(self, size: int = 5, alpha: float = 5e-4, k: float = 2.0, groups: int = 1) -> None:
        super().__init__()
        self.size, self.alpha, self.k, self.groups = size, alpha, k, groups

    def forward(self, maps: Tensor) -> Tensor:
        return _Normalise.apply(maps, self._mean, self.alpha, self.k)

    def _mean(self, squares: Tensor) -> Tensor:
        """Return window means of ``squares``, H,W,C or N,H,W,C, with zeros beyond both ends of a group of channels."""
        grouped = squares.unflatten(-1, (self.groups, -1))
        return _window_sum(grouped, -1, self.size).flatten(-2).div_(self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}, groups={self.groups}"


class SameMapNorm(nn.Module):
    """A normalisation over ``size`` x ``size`` neighbours in the same channel, zero-padded. N,C,H,W to N,C,H,W."""

    def __init__(self, size: int = 5, alpha: float = 1e-3, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.k = size, alpha, k

    def forward(self, maps: Tensor) -> Tensor:
        return _Normalise.apply(maps, self._mean, self.alpha, self.k)

    def _mean(self, squares: Tensor) -> Tensor:
        """Return window means of ``squares``, H,W,C or N,H,W,C."""
        rows = _window_sum(squares, -2, self.size)
        return _window_sum(rows, -3, self.size).div_(self.size**2)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}"


def _window_sum(x: Tensor, dim: int, size: int) -> Tensor:
    """Sum ``size`` neighbours along ``dim``, a negative number, with zeros beyond both ends."""
    length, edge = x.shape[dim], size // 2
    padded = F.pad(x, (0, 0) * (-dim - 1) + (edge, edge))
    total = padded.narrow(dim, 0, length) + padded.narrow(dim, 1, length)
    for start in range(2, size):
        total += padded.narrow(dim, start, length)
    return total


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, mean: Window, alpha: float, k: float) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.mean, ctx.alpha, ctx.k = mean, alpha, k

        def normalise(x: Tensor) -> Tensor:
            root = _root(x, mean, alpha, k)
            return root.sqrt().mul_(root).mul_(x)

        return _image_by_image(normalise, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (maps,) = ctx.saved_tensors
        mean, alpha, k = ctx.mean, ctx.alpha, ctx.k

        def propagate(x: Tensor, dy: Tensor) -> Tensor:
            root = _root(x, mean, alpha, k)
            scaled = root.sqrt().mul_(root).mul_(dy)  # dy d^-0.75
            across = mean(root.square_().mul_(scaled).mul_(x))  # dy x d^-1.75
            return scaled.addcmul_(x, across, value=-1.5 * alpha)

        return _image_by_image(propagate, maps, gradient), None, None, None


def _root(x: Tensor, mean: Window, alpha: float, k: float) -> Tensor:
    """Return d^-0.5, from which two multiplications make each power needed: several times faster than pow."""
    return mean(x * x).mul_(alpha).add_(k).rsqrt_()


def _image_by_image(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """Apply ``function`` to the float32 values of N,C,H,W tensors, channels last. Return the first tensor's type."""
    images = [tensor.movedim(1, -1) for tensor in maps]  # N,H,W,C
    if torch.compiler.is_compiling() or maps[0].device.type != "cpu":
        result = function(*(image.float() for image in images)).to(maps[0].dtype)
    else:
        result = torch.empty_like(images[0], memory_format=torch.contiguous_format)
        for out, *image in zip(result, *images, strict=True):
            out.copy_(function(*(part.float() for part in image)))
    return result.movedim(-1, 1)
