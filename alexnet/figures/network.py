"""The network itself: its first kernels, and what its layers answer."""

import math

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from alexnet.figures.tiles import tile
from alexnet.model import AlexNet


def conv1_filters(model: AlexNet) -> Figure:
    """The kernels of the first layer, as in figure 3 of the paper: grey is zero, each scaled to its largest weight."""
    weights = model.convolutions()["conv1"].weight.detach().float().cpu()  # filters,3,11,11
    scaled = 0.5 + 0.5 * weights / weights.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    columns = 16
    rows = math.ceil(len(scaled) / columns)
    figure = Figure(figsize=(columns * 0.55, rows * 0.55 + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tile(scaled.permute(0, 2, 3, 1).numpy(), columns), interpolation="nearest")
    axes.axis("off")
    axes.set_title(f"conv1: {len(scaled)} kernels of {weights.shape[2]} x {weights.shape[3]} x 3")
    return figure


@torch.inference_mode()
def layer_activations(model: AlexNet, image: Tensor) -> dict[str, Tensor]:
    """conv1 to conv5 after their ReLU: channels,H,W each. ``image`` 1,3,224,224, normalised."""
    found: dict[str, Tensor] = {}
    relus = [module for module in model.features if isinstance(module, nn.ReLU)]
    hooks = [
        relu.register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output[0].float().cpu().clone()})
        )
        for name, relu in zip(model.convolutions(), relus, strict=True)
    ]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def activation_maps(model: AlexNet, image: Tensor, picture: np.ndarray, title: str, channels: int = 36) -> Figure:
    """The picture (H,W,3, 0..1), and of each conv layer the channels that answer most, brightest first."""
    layers = layer_activations(model, image)
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    axes[0].imshow(picture)
    axes[0].set_title(title, fontsize=10)
    for ax, (name, maps) in zip(axes[1:], layers.items(), strict=True):
        strongest = maps.mean(dim=(1, 2)).argsort(descending=True)[:channels]
        shown = maps[strongest] / maps[strongest].amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        ax.imshow(tile(colormaps["inferno"](shown.numpy())[..., :3], columns=6), interpolation="nearest")
        ax.set_title(f"{name}: {len(strongest)} of {len(maps)} maps, {maps.shape[1]} x {maps.shape[2]}", fontsize=10)
    for ax in axes:
        ax.axis("off")
    return figure
