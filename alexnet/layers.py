"""The layers of the networks that can be computed in several ways, from the same weights and with the same results."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.fused import match, usable


class FirstConv2d(nn.Conv2d):
    """The 11 x 11 convolution of stride 4; with ``blocks`` computed as one of 3 x 3 over blocks of 4 x 4 pixels.

    Three channels leave matrix units idle, 48 do not. The kernel grows to 12 x 12 with zeros; weights are stored as
    usual, and results differ by rounding.
    """

    blocks = False

    def __init__(self, width: int, padding: int = 2, bias: bool = True) -> None:
        super().__init__(3, width, 11, stride=4, padding=padding, bias=bias)

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.blocks:
            return super()._conv_forward(images, weight, bias)
        size, before = images.shape[-1], int(self.padding[0])
        after = 4 * ((size + 2 * before - 11) // 4 + 3) - size - before
        blocks = F.pixel_unshuffle(F.pad(images, (before, after, before, after)), 4)  # N,48,57,57
        kernels = F.pixel_unshuffle(F.pad(weight, (0, 1, 0, 1)), 4)  # width,48,3,3
        return F.conv2d(blocks, kernels, bias)  # N,width,55,55


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups of channels; with ``split`` computed as one dense convolution each, and joined.

    On a GPU a grouped convolution may take much longer than dense ones, which cost copies of their inputs and results.
    """

    split = False

    def _conv_forward(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.split or self.groups == 1:
            return super()._conv_forward(maps, weight, bias)
        biases = [None] * self.groups if bias is None else bias.chunk(self.groups)
        parts = zip(maps.chunk(self.groups, dim=1), weight.chunk(self.groups), biases, strict=True)
        return torch.cat([F.conv2d(*part, padding=self.padding) for part in parts], dim=1)


class Features(nn.Sequential):
    """The layers up to the classifier, in order. With ``fused``, a GPU computes several as one (alexnet/fused.py)."""

    fused = True

    def forward(self, maps: Tensor) -> Tensor:
        layers = list(self)
        while len(layers) > 0:
            block = match(layers, maps.shape[1]) if self.fused and usable(maps) else None
            maps = block.forward(maps) if block else layers[0](maps)
            layers = layers[block.span if block else 1 :]
        return maps
