"""Figures of the network itself: the kernels of conv1, activations, and the patches that excite channels most."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from alexnet.figures.tiles import plain, tile
from alexnet.model import AlexNet

COLUMNS = 16
GREY = 205  # around patches, which are often white


def conv1_filters(model: AlexNet) -> Figure:
    """Draw the kernels of conv1 as in figure 3 of the paper: grey is zero, each is scaled to its largest weight.

    If conv2 has groups, the kernels of each are drawn apart.
    """
    convolutions = model.convolutions()
    weights = convolutions["conv1"].weight.detach().float().cpu()  # filters,3,11,11
    scaled = 0.5 + 0.5 * weights / weights.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    groups = scaled.permute(0, 2, 3, 1).chunk(convolutions["conv2"].groups)
    rows = math.ceil(len(groups[0]) / COLUMNS)
    figure = Figure(figsize=(COLUMNS * 0.55, len(groups) * (rows * 0.55 + 0.3) + 0.2), layout="constrained")
    for i, (axes, group) in enumerate(zip(figure.subplots(len(groups), squeeze=False).flat, groups, strict=True)):
        axes.imshow(tile(group.numpy(), COLUMNS), interpolation="nearest")
        axes.axis("off")
        where = f", group {i + 1} of conv2" if len(groups) > 1 else ""
        axes.set_title(f"conv1: {len(group)} kernels of 11 x 11 x 3{where}", fontsize=10)
    return figure


def activation_maps(layers: dict[str, Tensor], picture: np.ndarray, title: str, channels: int = 36) -> Figure:
    """Draw the picture (H,W,3) and the most active channels of each conv layer (1,C,H,W, by name), brightest first."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    axes[0].imshow(picture)
    axes[0].set_title(plain(title), fontsize=10)
    convolutions = {name: maps[0].float().cpu() for name, maps in layers.items() if name.startswith("conv")}
    for ax, (name, maps) in zip(axes[1:], convolutions.items(), strict=True):
        strongest = maps.mean(dim=(1, 2)).argsort(descending=True)[:channels]
        shown = maps[strongest] / maps[strongest].amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        ax.imshow(tile(colormaps["inferno"](shown.numpy())[..., :3], columns=6), interpolation="nearest")
        ax.set_title(f"{name}: {len(strongest)} of {len(maps)} maps, {maps.shape[1]} x {maps.shape[2]}", fontsize=10)
    for ax in axes:
        ax.axis("off")
    return figure


def exciting_patches(layers: Mapping[str, Sequence[tuple[int, Sequence[np.ndarray]]]], searched: int) -> Figure:
    """Draw, for each layer, a row per channel: its number and the patches found in ``searched`` images.

    Patches are side,side,3 uint8, with the same side within a layer.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    for axes, (name, rows) in zip(panels, layers.items(), strict=False):
        patches = np.stack([patch for _, row in rows for patch in row]) / 255
        side, columns = patches.shape[1], len(rows[0][1])
        gap = max(1, side // 14)
        axes.imshow(tile(patches, columns, gap, GREY / 255), interpolation="nearest")
        axes.set_yticks([i * (side + gap) + side / 2 for i in range(len(rows))], [str(channel) for channel, _ in rows])
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{name}: {side} x {side} pixels", fontsize=10)
        axes.set_ylabel("channel", fontsize=8)
    panels[-1].axis("off")
    note = (
        f"The patches of {searched} val images\nthat excite a channel most,\none per image.\nGrey is beyond the edge."
    )
    panels[-1].text(0.5, 0.6, note, ha="center", va="center", fontsize=11, linespacing=1.6)
    return figure
