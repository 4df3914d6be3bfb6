"""The least time of a training step, layer by layer, computed from shapes: nothing is measured.

    python -m benchmarks budget --variants paper

A pass takes no less than its operations at the rate of a large matrix product, nor than its bytes at the rate of a
large copy. Activations, their gradients and the weights that products read are 2 bytes; parameters, gradients and
momentum in the update 4. ``fused`` counts what follows a convolution (bias, ReLU, normalisation, pooling) as one pass
forward and one backward, which keeps the convolution's output and one byte per pooled value, and the update as one pass
that writes bf16 weights, so that nothing is cast; ``by itself`` counts every module as a pass of its own. docs/gpu.md
has the table, tests/test_step_benchmark.py compares it with this.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from alexnet import AlexNet
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.roofline import PRODUCTS, Limits, groups, product_flops
from benchmarks.step import Variant
from pipelines.terminal import in_range, require

HALF, FULL, MASK = 2, 4, 1  # bytes of a number in bf16, in float32, and of a pooling offset or a dropout mask
UPDATE = 5 * FULL  # reads parameter, gradient, momentum; writes parameter, momentum
CASTS = (FULL + HALF) + (HALF + FULL)  # autocast: parameters to bf16, their gradients to float32


@dataclass(frozen=True)
class BudgetOptions(MeasureOptions):
    """The least time of a training step per layer, from shapes. Nothing is measured."""

    variants: tuple[Variant, ...] = get_args(Variant)
    batch_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    tflops: float = 798
    """TFLOP/s of a large bf16 matrix product: read on an H100 SXM with torch 2.11; 788 on an H200."""
    terabytes: float = 3.0
    """TB/s of a large copy, read plus written: read on the same H100; 4.3 on an H200."""
    reached: float = 1.0
    """The share of that matrix rate that convolutions and linear layers reach, an assumption."""

    def __post_init__(self) -> None:
        require(bool(self.variants and self.batch_sizes), "--variants and --batch-sizes take one value or more")
        in_range("batch_sizes", min(self.batch_sizes), 1)
        require(self.tflops > 0 and self.terabytes > 0, "--tflops and --terabytes must be above 0")
        require(0 < self.reached <= 1, f"--reached is {self.reached}, it is a share above 0, up to 1")

    @property
    def limits(self) -> Limits:
        return Limits(self.reached * self.tflops * 1e12, self.terabytes * 1e12)


@dataclass(frozen=True)
class Pass:
    """A kernel at the least: its operations and the bytes that it reads and writes."""

    flops: int
    bytes: int

    def least_ms(self, limits: Limits) -> float:
        return 1000 * max(self.flops / limits.flops_per_second, self.bytes / limits.bytes_per_second)


@dataclass(frozen=True)
class Part:
    """A part of a step: its passes if what follows a product is fused, and if every module is a pass by itself."""

    name: str
    fused: tuple[Pass, ...]
    by_itself: tuple[Pass, ...]

    def least_ms(self, limits: Limits, fused: bool = True) -> float:
        return math.fsum(one.least_ms(limits) for one in (self.fused if fused else self.by_itself))


def run_budget(options: BudgetOptions) -> Iterator[dict]:
    """Yield a row per variant, part and batch size, in ms."""
    for variant in options.variants:
        print("", *table(variant, options), sep="\n")
    rows = [
        {
            "name": f"{variant}, {size}: {part.name}",
            "fused_ms": round(part.least_ms(options.limits), 3),
            "by_itself_ms": round(part.least_ms(options.limits, fused=False), 3),
        }
        for variant in options.variants
        for size in options.batch_sizes
        for part in budget(variant, size)
    ]
    limits = {"tflops": options.tflops, "terabytes": options.terabytes, "reached": options.reached}
    yield {"benchmark": "budget", "unit": "ms, predicted", **limits, "rows": rows}


def budget(variant: str, batch_size: int) -> list[Part]:
    """Return the parts of a training step of a network with 1000 classes; the update is the last."""
    with torch.device("meta"):  # shapes without memory
        model = AlexNet(variant)
        maps = torch.empty(batch_size, 3, 224, 224)
    found: list[Part] = []
    for name, layer, tail in products(model):
        maps = maps.flatten(1) if name == "fc6" else maps
        padded = model.features[0](maps) if name == "conv1" and isinstance(model.features[0], nn.ZeroPad2d) else maps
        outputs = [layer(padded)]
        passes = product(layer, padded, outputs[0], first=name == "conv1")
        found.append(Part(name, passes, passes))
        for module in tail:
            outputs.append(module(outputs[-1]))
        if tail:
            found.append(Part(f"after {name}", one_pass(tail, outputs[0], outputs[-1]), each_pass(tail, outputs)))
        maps = outputs[-1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    update, casts = (Pass(0, UPDATE * parameters),), (Pass(0, CASTS * parameters),)
    return [*found, Part("casts of weights", (), casts), Part("update", update, update)]


def products(model: AlexNet) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """Yield the name of each convolution and linear layer, the layer, and the modules up to the next one."""
    every = groups(model)
    starts = [number for number, (_, modules) in enumerate(every) if isinstance(modules[0], PRODUCTS)]
    for start, end in pairwise([*starts, len(every)]):
        (name, (layer, *tail)), *rest = every[start:end]
        yield name, layer, tail + [module for _, modules in rest for module in modules]


def product(layer: nn.Module, inputs: Tensor, outputs: Tensor, first: bool) -> tuple[Pass, ...]:
    """Return the passes of a product: forward, the weights' gradient and, except in the first, the inputs' gradient."""
    assert isinstance(layer, PRODUCTS)
    count = 2 if first else 3
    flops = product_flops(layer, inputs, outputs, first) // count
    return count * (Pass(flops, HALF * (inputs.numel() + outputs.numel() + layer.weight.numel())),)


def one_pass(modules: Sequence[nn.Module], inputs: Tensor, outputs: Tensor) -> tuple[Pass, ...]:
    """Return a pass forward and one backward, which reads the input again and recomputes what it needs."""
    masks = MASK * outputs.numel() * any(isinstance(module, nn.MaxPool2d | nn.Dropout) for module in modules)
    forward = HALF * (inputs.numel() + outputs.numel()) + masks
    return Pass(0, forward), Pass(0, forward + HALF * inputs.numel())


def each_pass(modules: Sequence[nn.Module], outputs: Sequence[Tensor]) -> tuple[Pass, ...]:
    """Return the passes of each module by itself. ``outputs`` begins with the input of the first."""
    steps = zip(modules, pairwise(outputs), strict=True)
    return tuple(one for module, (before, behind) in steps for one in one_pass([module], before, behind))


def table(variant: str, options: BudgetOptions) -> list[str]:
    """Return the lines of a Markdown table: a row per part, a column per batch size, and an empty one for measuring."""
    columns = [budget(variant, size) for size in options.batch_sizes]
    limits, last = options.limits, len(columns) - 1
    lines = [f"| `{variant}` | GFLOP | MB | {' | '.join(map(str, options.batch_sizes))} | measured |"]
    lines.append("| --- " * (len(columns) + 4) + "|")
    for parts in zip(*columns, strict=True):
        flops, moved = (sum(getattr(one, name) for one in parts[last].fused) for name in ("flops", "bytes"))
        cells = [f"{flops / 1e9:,.0f}" if flops else "", f"{moved / 1e6:,.0f}"]
        lines.append(row(parts[0].name, cells + [f"{part.least_ms(limits):.2f}" for part in parts]))
    for name, fused in (("the step, fused", True), ("the step, each module by itself", False)):
        lines.append(row(name, ["", "", *(f"{step_ms(parts, limits, fused):.1f}" for parts in columns)]))
    rates = [
        f"{1000 * size / step_ms(parts, limits):,.0f}" for size, parts in zip(options.batch_sizes, columns, strict=True)
    ]
    return [*lines, row("images/s, fused", ["", "", *rates])]


def row(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} | |"


def step_ms(parts: Sequence[Part], limits: Limits, fused: bool = True) -> float:
    return math.fsum(part.least_ms(limits, fused) for part in parts)
