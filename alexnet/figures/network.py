"""Figures of the network itself: the kernels of conv1, activations, and the patches that excite channels most."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from alexnet.figures.tiles import plain, tile
from alexnet.inspection import DEAD, distinct_maps
from alexnet.model import AlexNet

COLUMNS = 16
GREY = 205  # around patches, which are often white
PLAIN = 6.0  # largest standard deviation, of 255, of a patch in which nothing can be seen
Rows = Sequence[tuple[int, Sequence[np.ndarray]]]  # channels and their patches


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
    largest = weights.abs().amax(dim=(1, 2, 3))
    weak = int((largest < largest.max() / 4).sum())
    figure.set_label(
        f"{weak} of {len(weights)} kernels have no weight above a quarter of the largest: kernels that look like noise "
        "have mostly kept what they were initialised with."
    )
    return figure


def activation_maps(layers: dict[str, Tensor], picture: np.ndarray, title: str, channels: int = 36) -> Figure:
    """Draw the picture (H,W,3) and strong channels of each conv layer (1,C,H,W, by name) that differ from each other.

    Each map is scaled to its own largest value.
    """
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    axes[0].imshow(picture)
    axes[0].set_title(plain(title), fontsize=10)
    convolutions = {name: maps[0].float().cpu() for name, maps in layers.items() if name.startswith("conv")}
    for ax, (name, maps) in zip(axes[1:], convolutions.items(), strict=True):
        chosen = maps[distinct_maps(maps, channels)]
        if len(chosen):
            shown = chosen / chosen.amax(dim=(1, 2), keepdim=True)
            ax.imshow(tile(colormaps["inferno"](shown.numpy())[..., :3], columns=6), interpolation="nearest")
        ax.set_title(f"{name}: {len(chosen)} of {len(maps)} maps, {maps.shape[1]} x {maps.shape[2]}", fontsize=10)
    for ax in axes:
        ax.axis("off")
    silent = {name: int((maps.amax(dim=(1, 2)) <= DEAD).sum()) for name, maps in convolutions.items()}
    counts = ", ".join(f"{count} of {len(convolutions[name])} in {name}" for name, count in silent.items())
    figure.set_label(f"Maps that are zero everywhere in this image: {counts}.")
    return figure


def exciting_patches(layers: Mapping[str, Rows], searched: int) -> Figure:
    """Draw, for each layer, a row per channel: its number and the patches found in ``searched`` images.

    Patches are side,side,3 uint8, with the same side within a layer. A channel may have fewer than others. Tiles
    without a patch, and patches of a single colour, are marked.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    plains = missing = 0
    for axes, (name, rows) in zip(panels, layers.items(), strict=False):
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        side, found = _patch_rows(axes, rows) if rows else (0, (0, 0))
        plains, missing = plains + found[0], missing + found[1]
        size = f"{side} x {side} pixels" if rows else "no channel is above zero"
        axes.set_title(f"{name}: {size}", fontsize=10)
    panels[-1].axis("off")
    note = (
        f"The patches of {searched} val images\nthat excite a channel most,\none per image.\nGrey is beyond the edge."
        + "\nplain: a patch of a single colour." * bool(plains)
        + "\n–: the channel is zero\nin all other images." * bool(missing)
    )
    panels[-1].text(0.5, 0.6, note, ha="center", va="center", fontsize=11, linespacing=1.6)
    counts = ", ".join(f"{len(rows)} in {name}" for name, rows in layers.items())
    empty = f"Patches of a single colour, of channels that answer to empty areas: {plains}." if plains else ""
    figure.set_label(f"Channels with patches of their own, of at most nine: {counts}. {empty}".strip())
    return figure


def _patch_rows(axes: Axes, rows: Rows) -> tuple[int, tuple[int, int]]:
    """Draw a layer's patches. Return their side, and the numbers of patches of one colour and of missing ones."""
    side, columns = rows[0][1][0].shape[0], max(len(row) for _, row in rows)
    gap = max(1, side // 14)
    blank = np.full((side, side, 3), GREY, np.uint8)
    tiles = [patch for _, row in rows for patch in [*row, *[blank] * (columns - len(row))]]
    axes.imshow(tile(np.stack(tiles) / 255, columns, gap, GREY / 255), interpolation="nearest")
    middles = [i * (side + gap) + side / 2 for i in range(max(columns, len(rows)))]
    axes.set_yticks(middles[: len(rows)], [str(channel) for channel, _ in rows])
    axes.set_ylabel("channel", fontsize=8)
    counts = {"plain": 0, "–": 0}
    for row, (_, patches) in enumerate(rows):
        for column in range(columns):
            word = "–" if column >= len(patches) else "plain" if _is_plain(patches[column]) else None
            if word:
                counts[word] += 1
                dark = column < len(patches) and patches[column].mean() < 110
                colour = "0.85" if dark else "0.35"
                axes.text(middles[column], middles[row], word, ha="center", va="center", fontsize=6, color=colour)
    return side, (counts["plain"], counts["–"])


def _is_plain(patch: np.ndarray) -> bool:
    """Return true if the patch, without the grey beyond the image's edge, has a single colour."""
    inside = patch[(patch != GREY).any(axis=2)]  # N,3
    return not len(inside) or bool(inside.std(axis=0).max() <= PLAIN)
