"""Tests of local response normalisation against slow loops and torch's own layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alexnet.lrn import CrossMapNorm, SameMapNorm


def cross_map_loop(x: Tensor, size: int, alpha: float, k: float, groups: int) -> Tensor:
    """Compute the formula of section 3.3 of the paper value by value, alpha divided by size; x N,C,H,W float64."""
    each = x.shape[1] // groups
    y = torch.empty_like(x)
    for channel in range(x.shape[1]):
        first = channel // each * each
        near = x[:, max(first, channel - size // 2) : min(first + each, channel + size // 2 + 1)]
        y[:, channel] = x[:, channel] / (k + alpha / size * (near**2).sum(1)) ** 0.75
    return y


def same_map_loop(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    y, edge = torch.empty_like(x), size // 2
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            near = x[:, :, max(0, row - edge) : row + edge + 1, max(0, column - edge) : column + edge + 1]
            d = k + alpha / size**2 * (near**2).sum((2, 3))
            y[:, :, row, column] = x[:, :, row, column] / d**0.75
    return y


CASES: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
    (CrossMapNorm(), lambda x: cross_map_loop(x, 5, 5e-4, 2.0, 1)),
    (CrossMapNorm(3, 0.01, 1.5), lambda x: cross_map_loop(x, 3, 0.01, 1.5, 1)),
    (CrossMapNorm(5, 1e-4, 2.0, groups=2), lambda x: cross_map_loop(x, 5, 1e-4, 2.0, 2)),
    (SameMapNorm(), lambda x: same_map_loop(x, 5, 1e-3, 1.0)),
]


def both_ways(layer: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(gradient)
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize(("layer", "loop"), CASES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_the_loops(layer, loop, layout: torch.memory_format) -> None:
    """Check at the scale of the first layers' activations, at which the sums matter: d reaches several times k."""
    torch.manual_seed(0)
    x, gradient = (torch.randn(2, 12, 7, 6, dtype=torch.float64) for _ in range(2))
    x = x * 150
    expected, expected_gradient = both_ways(loop, x, gradient)
    ours, our_gradient = both_ways(layer, x.float().to(memory_format=layout), gradient.float())
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)
    if layout is torch.channels_last:
        assert ours.is_contiguous(memory_format=layout), "the next layer would copy"


def test_torchs_layer_is_the_same() -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 96, 5, 5) * 50, torch.randn(2, 96, 5, 5)
    theirs = both_ways(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), x, gradient)
    torch.testing.assert_close(both_ways(CrossMapNorm(), x, gradient), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [CrossMapNorm(), SameMapNorm()])
def test_half_precision_survives_activations_whose_squares_do_not_fit_it(layer, dtype: torch.dtype) -> None:
    """Check 1000 squared, which is beyond float16, as closely as the rounding of the input and the output allows."""
    x = (torch.randn(1, 8, 6, 6) * 1000).to(dtype)
    ours, our_gradient = both_ways(layer, x, torch.ones_like(x))
    theirs, their_gradient = both_ways(layer, x.float(), torch.ones_like(x.float()))
    assert ours.dtype == dtype
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_gradient.float(), their_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layer", [CrossMapNorm(groups=2), SameMapNorm()])
def test_it_compiles_into_one_graph_with_the_same_gradients(layer) -> None:
    """Check that forward and backward are traced without a graph break. This backend needs no C compiler."""
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 16, 6, 6) * 50, torch.randn(2, 16, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(both_ways(compiled, x, gradient), both_ways(layer, x, gradient))
