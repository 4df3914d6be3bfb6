"""Tests of the variant source2012 against a slow NumPy net of two towers, written from the release's layer definitions.

The definitions are layers-145.cfg and layer-params-145.cfg; layer.py beside them defines their fields. Convolution
makes 1 + ceil((size + 2 padding - filter) / stride) outputs a side, pooling 1 + ceil((size - window) / stride). Pixels
beyond the edge count as zero (in pooling, not at all). ``scale`` is divided by the number of values in its window.
"""

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from alexnet import AlexNet

Tower = dict[str, np.ndarray]


def conv(x: np.ndarray, weights: np.ndarray, bias: np.ndarray, padding: int = 0, stride: int = 1) -> np.ndarray:
    """Convolve x C,H,W with weights filters,C,k,k."""
    size, k = x.shape[1], weights.shape[2]
    outputs = 1 + math.ceil((size + 2 * padding - k) / stride)
    after = (outputs - 1) * stride + k - size - padding
    x = np.pad(x, ((0, 0), (padding, after), (padding, after)))
    windows = sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]  # C,out,out,k,k
    return np.einsum("cyxij,fcij->fyx", windows, weights, optimize=True) + bias[:, None, None]


def pool(x: np.ndarray, window: int = 3, stride: int = 2) -> np.ndarray:
    outputs = 1 + math.ceil((x.shape[1] - window) / stride)
    y = np.empty((len(x), outputs, outputs))
    for row in range(outputs):
        for column in range(outputs):
            part = x[:, row * stride : row * stride + window, column * stride : column * stride + window]
            y[:, row, column] = part.max((1, 2))
    return y


def cmrnorm(x: np.ndarray, size: int = 5, scale: float = 1e-4, power: float = 0.75, least: float = 2) -> np.ndarray:
    """Normalise across maps; ``least`` is minDiv."""
    near = [x[max(0, c - size // 2) : c + size // 2 + 1] for c in range(len(x))]
    return x / (least + scale / size * np.stack([(part**2).sum(0) for part in near])) ** power


def rnorm(x: np.ndarray, size: int = 5, scale: float = 1e-3, power: float = 0.75) -> np.ndarray:
    """Normalise within a map; minDiv is 1 if a layer does not set it."""
    squares = np.pad(x**2, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    return x / (1 + scale / size**2 * sliding_window_view(squares, (size, size), axis=(1, 2)).sum((3, 4))) ** power


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def reference(image: np.ndarray, convolutions: list[nn.Conv2d], linears: list[nn.Linear]) -> dict[str, np.ndarray]:
    """Return every layer's output, with the towers a and b side by side. ``image`` 3,224,224."""
    weights = [layer.weight.detach().double().numpy() for layer in convolutions]
    biases = [layer.bias.detach().double().numpy() for layer in convolutions]  # type: ignore[union-attr]
    found: dict[str, np.ndarray] = {}

    def tower(layer: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        half = len(weights[layer]) // 2
        return weights[layer][side * half : (side + 1) * half], biases[layer][side * half : (side + 1) * half]

    def note(name: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found[name] = np.concatenate([a, b])
        return a, b

    a, b = note("conv1", *(conv(image, *tower(0, side), stride=4) for side in (0, 1)))
    a, b = note("rnorm1", cmrnorm(a), cmrnorm(b))
    a, b = note("pool1", relu(pool(a)), relu(pool(b)))
    a, b = note("conv2", relu(conv(a, *tower(1, 0), padding=2)), relu(conv(b, *tower(1, 1), padding=2)))
    a, b = note("rnorm2", cmrnorm(a), cmrnorm(b))
    a, b = note("cnorm2", rnorm(a), rnorm(b))
    a, b = note("pool2", pool(a), pool(b))
    both = np.concatenate([a, b])
    a, b = note("conv3", *(relu(conv(both, *tower(2, side), padding=1)) for side in (0, 1)))
    a, b = note("conv4", relu(conv(a, *tower(3, 0), padding=1)), relu(conv(b, *tower(3, 1), padding=1)))
    a, b = note("conv5", conv(a, *tower(4, 0), padding=1), conv(b, *tower(4, 1), padding=1))
    a, b = note("pool3", relu(pool(a)), relu(pool(b)))
    x = found["pool3"].reshape(-1)
    for name, linear in zip(("fc6", "fc7", "fc8"), linears, strict=True):
        x = linear.weight.detach().double().numpy() @ x + linear.bias.detach().double().numpy()
        found[name] = x = x if name == "fc8" else relu(x)
    return found


def test_every_layer_is_that_of_the_published_definition() -> None:
    torch.manual_seed(0)
    model = AlexNet("source2012", 20).eval()
    image = torch.randn(3, 224, 224) * 70
    names = {
        "1": "conv1", "2": "rnorm1", "4": "pool1", "6": "conv2", "7": "rnorm2", "8": "cnorm2", "9": "pool2",
        "11": "conv3", "13": "conv4", "14": "conv5", "16": "pool3",
    }  # fmt: skip
    ours: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        x = image[None]
        for position, layer in model.features.named_children():
            x = layer(x)
            ours[names.get(position, position)] = x[0].double().numpy().copy()
        x = x.flatten(1)
        for position, layer in model.classifier.named_children():
            x = layer(x)
            ours[{"1": "fc6", "4": "fc7", "6": "fc8"}.get(position, position)] = x[0].double().numpy().copy()
    linears = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    expected = reference(image.double().numpy(), list(model.convolutions().values()), linears)
    assert len(expected) == 14
    for name, theirs in expected.items():
        scale = np.abs(theirs).max()
        assert np.abs(ours[name] - theirs).max() < 1e-4 * max(1.0, scale), name


def test_the_towers_meet_only_where_the_definition_says() -> None:
    """Check that nothing before conv3 mixes the towers. conv3 and the fully connected layers see both."""
    torch.manual_seed(0)
    model = AlexNet("source2012", 20).eval()
    images = torch.randn(1, 3, 224, 224) * 70
    with torch.inference_mode():
        before = model.features[:10](images)
        model.features[1].weight[48:] += 1  # type: ignore[index, operator, union-attr]
        after = model.features[:10](images)
    assert torch.equal(before[:, :128], after[:, :128])
    assert not torch.allclose(before[:, 128:], after[:, 128:])


def test_its_first_weights() -> None:
    torch.manual_seed(0)
    model = AlexNet("source2012", 1000)
    layers = [*model.convolutions().values(), *(layer for layer in model.classifier if isinstance(layer, nn.Linear))]
    assert [layer.bias.mean().item() for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]  # type: ignore[union-attr]
    for layer, deviation in zip(layers, (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), strict=True):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
