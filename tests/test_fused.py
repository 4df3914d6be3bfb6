"""Tests of the fused layers by Triton's interpreter on a CPU, against torch's layers in float64."""

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet import VARIANTS, AlexNet, fused, layers
from alexnet.fused import match, usable
from alexnet.lrn import CrossMapNorm
from tests.conftest import command

pytest.importorskip("triton")
fused_operation = importlib.import_module("alexnet.fused_operation")
normalise_and_pool = fused_operation.normalise_and_pool
LAYERS = [  # shape, with bias; relu, groups, alpha, k, window, stride
    pytest.param((2, 96, 7, 9), True, ("before", 1, 5e-4, 2.0, 3, 2), id="paper"),
    pytest.param((3, 48, 8, 5), True, ("after", 2, 1e-4, 2.0, 3, 2), id="source2012, layer 1"),
    pytest.param((1, 32, 5, 4), True, ("before", 2, 1e-4, 2.0, 1, 1), id="source2012, layer 2"),
    pytest.param((2, 24, 6, 7), True, ("before", 1, 0.0, 1.0, 3, 2), id="pooling alone"),
    pytest.param((1, 16, 3, 3), False, ("none", 1, 0.0, 1.0, 3, 2), id="pooling without bias"),
]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the kernels by Triton's interpreter, on tensors of the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fresh = importlib.util.module_from_spec(importlib.util.find_spec("alexnet.fused_kernels"))
    fresh.__spec__.loader.exec_module(fresh)
    monkeypatch.setattr(fused_operation, "kernels", fresh)
    yield


def reference(
    maps: Tensor, bias: Tensor | None, relu: str, groups: int, alpha: float, k: float, window: int, stride: int
) -> Tensor:
    if bias is not None:
        maps = maps + bias[:, None, None]
    if relu == "before":
        maps = maps.relu()
    if alpha:
        maps = torch.cat([F.local_response_norm(part, 5, alpha, 0.75, k) for part in maps.chunk(groups, 1)], 1)
    if window > 1:
        maps = F.max_pool2d(maps, window, stride)
    return maps.relu() if relu == "after" else maps


def both_ways(layer: Any, maps: Tensor, bias: Tensor | None, *settings: Any) -> list[Tensor]:
    """Return the result and the gradients of maps and bias, for a gradient that differs from place to place."""
    maps = maps.detach().requires_grad_()
    bias = bias.detach().to(maps.dtype if maps.dtype == torch.float64 else torch.float32) if bias is not None else None
    leaves = [maps] + ([bias.requires_grad_()] if bias is not None else [])
    result = layer(maps, bias, *settings)
    result = result[0] if isinstance(result, tuple) else result
    gradient = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape).to(torch.bfloat16)
    return [result.detach(), *torch.autograd.grad(result, leaves, gradient.to(result.dtype))]


def example(shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
    """Return maps at the scale of activations, at which d reaches several times k, and a bias."""
    torch.manual_seed(0)
    maps = (torch.randn(shape) * 60).to(dtype).contiguous(memory_format=torch.channels_last)
    return maps, torch.randn(shape[1]) * 10 if with_bias else None


def differ(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()


@pytest.mark.parametrize(("shape", "with_bias", "how"), LAYERS)
def test_values_and_gradients_are_torchs_in_float64(interpreted, shape, with_bias, how) -> None:
    """Check float32 up to its rounding, and that half precision is the same but for the rounding of what is stored.

    A step of the last digit is allowed there: Triton's interpreter cuts digits off where a GPU rounds.
    """
    maps, bias = example(shape, with_bias, torch.bfloat16)
    exact = both_ways(reference, maps.double(), bias, *how)
    single = both_ways(normalise_and_pool, maps.float(), bias, *how)
    assert max(map(differ, single, exact)) < 1e-6
    assert single[0].is_contiguous(memory_format=torch.channels_last)
    for dtype, step in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        for ours, theirs in zip(both_ways(normalise_and_pool, maps.to(dtype), bias, *how), single, strict=True):
            torch.testing.assert_close(ours.float(), theirs, rtol=step, atol=step * 1e-3)


def test_gradients_are_those_of_finite_differences(interpreted) -> None:
    """Check directions, in float32 with steps that are powers of two: the loss is linear enough over them."""
    maps, bias = example((1, 16, 5, 5), True)
    how = ("before", 1, 0.02, 2.0, 3, 2)
    _, of_maps, of_bias = both_ways(normalise_and_pool, maps, bias, *how)
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 16, 2, 2).to(torch.bfloat16).double()
    for direction in (torch.randn_like(maps), torch.randn_like(maps)):
        ends = [normalise_and_pool(maps + step * direction, bias, *how)[0].double() for step in (2**-5, -(2**-5))]
        slope = ((ends[0] - ends[1]) * weights).sum() * 2**4
        assert (of_maps.double() * direction).sum().item() == pytest.approx(slope.item(), rel=5e-3, abs=5e-3)
    assert of_bias.shape == (16,)


def test_the_first_of_equal_maxima_wins_as_in_torch(interpreted) -> None:
    """Check with values of which most are equal, and with zeros after ReLU."""
    torch.manual_seed(0)
    same = torch.full((2, 8, 9, 7), 3.0).contiguous(memory_format=torch.channels_last)
    assert not normalise_and_pool(same, None, "none", 1, 5e-4, 2.0, 3, 2)[1].any()
    integers = torch.randint(-2, 2, (2, 8, 9, 7)).float().contiguous(memory_format=torch.channels_last)
    pooled, offsets = normalise_and_pool(integers, None, "before", 1, 0.0, 1.0, 3, 2)
    theirs, places = F.max_pool2d(integers.relu(), 3, 2, return_indices=True)
    rows, columns = torch.arange(4)[:, None] * 2, torch.arange(3) * 2
    assert torch.equal(pooled, theirs)
    assert torch.equal(offsets.long(), (places // 7 - rows) * 3 + places % 7 - columns)


def test_not_a_number_is_passed_on(interpreted) -> None:
    maps, _ = example((1, 8, 5, 5), False)
    maps[0, 3, 2, 2] = torch.nan
    for relu in ("before", "after"):
        pooled, _ = normalise_and_pool(maps, None, relu, 1, 0.0, 1.0, 3, 2)
        assert pooled[0, 3].isnan().all()
        assert pooled[0, :3].isfinite().all()


def test_only_maps_and_small_offsets_are_kept_for_the_backward_pass(interpreted) -> None:
    """Check bytes: maps once, and a byte per pooled value. Layer by layer, maps are kept twice, and int64 offsets."""
    maps, bias = example((1, 96, 15, 15), True)
    model = nn.Sequential(nn.ReLU(), CrossMapNorm(), nn.MaxPool2d(3, 2))

    def kept(layer: Any) -> int:
        seen: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            seen[value.data_ptr()] = value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            layer(maps.detach().requires_grad_())
        return sum(seen.values())

    ours = kept(lambda x: normalise_and_pool(x, bias, "before", 1, 5e-4, 2.0, 3, 2))
    assert ours == maps.nbytes + 96 * 7 * 7 + bias.nbytes
    assert kept(lambda x: model(x + bias[:, None, None])) == 2 * maps.nbytes + 8 * 96 * 7 * 7


def test_a_compiled_step_keeps_nothing_else_either() -> None:
    """Check the forward graph's results after tracing with fake tensors, and their strides. Nothing is run."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: list[Any] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append([node.meta["val"] for node in module.graph.output_node().all_input_nodes])
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = torch.empty(2, 55, 55, 96, dtype=torch.bfloat16).permute(0, 3, 1, 2).requires_grad_()
        bias = torch.empty(96).requires_grad_()
        compiled = torch.compile(normalise_and_pool, backend=backend, fullgraph=True, dynamic=False)
        pooled, offsets = compiled(maps, bias, "before", 1, 5e-4, 2.0, 3, 2)
        pooled.sum().backward()
    assert pooled.shape == offsets.shape == (2, 96, 27, 27)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    forward, backward = found
    assert sorted(value.nbytes for value in forward) == sorted(
        [pooled.nbytes, offsets.nbytes, maps.nbytes, bias.nbytes]
    )
    assert [tuple(value.shape) for value in backward] == [(2, 96, 55, 55), (96,)]


FUSED = {
    "paper": ["conv relu norm pool", "conv relu norm pool", "conv relu pool"],
    "ungrouped": ["conv relu norm pool", "conv relu norm pool", "conv relu pool"],
    "source2012": ["conv norm pool relu", "conv relu norm", "pool", "conv pool relu"],
    "one_weird_trick": ["conv relu pool"] * 3,
    "bn": ["relu pool"] * 3,
}
NAMES = {"FirstConv2d": "conv", "GroupedConv2d": "conv", "Conv2d": "conv", "ReLU": "relu", "MaxPool2d": "pool"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layers_that_are_fused(variant: str) -> None:
    with torch.device("meta"):
        rest = list(AlexNet(variant, 2).features)
    found, channels = [], 3
    while rest:
        block = match(rest, channels)
        count = block.span if block else 1
        channels = next((layer.out_channels for layer in rest[:count] if isinstance(layer, nn.Conv2d)), channels)
        if block:
            found.append(" ".join(NAMES.get(type(layer).__name__, "norm") for layer in rest[:count]))
        rest = rest[count:]
    assert found == FUSED[variant]


def test_a_layer_with_a_hook_is_called_by_itself() -> None:
    with torch.device("meta"):
        model = AlexNet("paper", 2)
    assert match(list(model.features), 3).span == 4
    model.features[1].register_forward_hook(lambda *_: None)
    assert match(list(model.features), 3) is None


def test_without_a_gpu_or_triton_layers_are_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not usable(torch.zeros(1))
    gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert usable(gpu)
    monkeypatch.setattr(fused, "HAS_TRITON", False)
    assert not usable(gpu)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "source2012"])
def test_a_network_of_fused_layers_computes_the_same(
    interpreted, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 67, 67).contiguous(memory_format=torch.channels_last) * 50
    model = AlexNet(variant, 7).features.to(memory_format=torch.channels_last)  # N,256,1,1
    results = []
    for how in (False, True):
        monkeypatch.setattr(layers, "usable", lambda maps, how=how: how)
        model.zero_grad()
        maps = model(images)
        maps.square().sum().backward()
        results.append([maps.detach(), *(parameter.grad for parameter in model.parameters())])
    assert max(map(differ, *results)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("fused", "least", "most"), [("auto", 6, 8), ("off", 19, 25)])
def test_a_compiled_step_of_1024_moves_less_than_8_gb(tmp_path: Path, fused: str, least: int, most: int) -> None:
    """Check the generated code in a process of its own, which is told that it has an H100."""
    out = tmp_path / "bytes.json"
    done = command("-m", "benchmarks", "bytes", "--fused", fused, "--json", out)
    assert done.returncode == 0, done.stderr
    assert least < json.loads(out.read_text())["total"] / 1e9 < most
