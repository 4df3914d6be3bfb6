"""The rate of a training step that never waits for data, compared with torchvision's alexnet, and each layer's bound.

python -m benchmarks step --json benchmarks/results/step-cpu.json --picture docs/step-cpu.png

All candidates of a batch size run in turn. ``share`` is the share of the measured rate of a large matrix product in the
same precision. Compiling is timed separately. Memory is what a candidate adds at its peak (GPU only).
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from alexnet import RECIPES, AlexNet
from alexnet.engine import HALVES, TrainStep, compile_model, find_device
from alexnet.half_weights import HalfWeights
from alexnet.model import Fused, Groups
from alexnet.optim import make_optimizer
from alexnet.options import Computation
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.roofline import layers, matmul, measure_limits, print_layers, train_flops, wait
from benchmarks.harness.timing import Deadline, Missing, interleave, summarise
from pipelines.terminal import in_range, require

Precision = Literal["fp32", "bf16", "fp16"]
Variant = Literal["paper", "ungrouped", "source2012", "one_weird_trick", "bn"]
Compiling = Literal["off", "on", "graphs", "autotune"]
GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class StepOptions(MeasureOptions):
    """Training steps of each network, compiled and not, beside torchvision's alexnet; and each layer's limits."""

    batch_sizes: tuple[int, ...] = (256, 1024) if GPU else (32,)
    variants: tuple[Variant, ...] = get_args(Variant) if GPU else ("paper", "one_weird_trick")
    precisions: tuple[Precision, ...] = ("bf16", "fp16") if GPU else ("fp32",)
    compile: tuple[Compiling, ...] = ("off", "on", "graphs") if GPU else ("off", "on")
    """As in train.py, or autotune: torch's max-autotune, which first times every kernel's variants, for minutes."""
    conv1: tuple[Literal["direct", "blocks"], ...] = ("direct", "blocks")
    """Ways to compute the first convolution, tried on the first of the variants."""
    groups: tuple[Groups, ...] = ("grouped", "split") if GPU else ("grouped",)
    """Ways to compute convolutions in groups, tried on the first of the variants."""
    fused: tuple[Fused, ...] = ("auto", "off") if GPU else ("auto",)
    """Bias, ReLU, normalisation and pooling as one kernel or not, tried on the first of the variants."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for each convolution, and take the fastest."""
    steps: int = 30 if GPU else 1
    """Steps of each candidate in a round."""
    rounds: int = 5
    picture: Path | None = None
    """Draw the result here, as PNG."""

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            in_range(name, getattr(self, name), 1)
        for name in ("batch_sizes", "variants", "precisions", "compile", "conv1", "groups", "fused"):
            require(bool(getattr(self, name)), f"--{name.replace('_', '-')} is empty")
        in_range("batch_sizes", min(self.batch_sizes), 1)


@dataclass(frozen=True)
class Candidate:
    network: str
    """A variant, or torchvision."""
    precision: Precision
    compile: Compiling
    channels_last: bool = True
    conv1: Literal["direct", "blocks"] = "direct"
    groups: Groups = "grouped"
    fused: Fused = "auto"

    @property
    def name(self) -> str:
        parts = [self.network, self.precision, {"off": "eager", "on": "compiled"}.get(self.compile, self.compile)]
        parts += ["conv1 in blocks"] * (self.conv1 == "blocks") + ["NCHW"] * (not self.channels_last)
        parts += ["groups split"] * (self.groups == "split") + ["not fused"] * (self.fused == "off")
        return ", ".join(parts)


def candidates(options: StepOptions) -> list[Candidate]:
    """Return torchvision's network with its defaults and under all options of ours, then our networks."""
    found = [Candidate("torchvision", "fp32", "off", channels_last=False)]
    every = list(itertools.product(options.precisions, options.compile))
    found += [Candidate("torchvision", *settings) for settings in every]
    for variant, settings in itertools.product(options.variants, every):
        conv1s = options.conv1 if variant == options.variants[0] else options.conv1[:1]
        found += [Candidate(variant, *settings, conv1=conv1) for conv1 in conv1s]
        if variant == options.variants[0]:
            found += [Candidate(variant, *settings, conv1=conv1s[0], groups=groups) for groups in options.groups[1:]]
            found += [Candidate(variant, *settings, conv1=conv1s[0], fused=fused) for fused in options.fused[1:]]
    return found


def run_step(options: StepOptions) -> Iterator[dict]:
    """Yield the settings, a row per candidate, and a line per layer of the first variant. Print and draw them too."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    limits = {name: measure_limits(device, HALVES.get(name, torch.float32)) for name in ("fp32", *options.precisions)}
    settings = {name: value for name, value in asdict(options).items() if name not in ("json", "picture", "minutes")}
    missing = Missing()
    about: dict[str, Any] = {
        "benchmark": "step",
        "unit": "images/s; the ratio is to the fastest torchvision row of the batch size",
        **settings,
        "device": str(device),
        "limits": {name: asdict(limit) for name, limit in limits.items()},
    }
    rows: list[dict] = []
    for number, size in enumerate(options.batch_sizes):
        if rows and deadline.left() <= 0:
            missing.left_out.append(f"batch size {size}")
            continue
        measured_rows: list[dict] = []
        for measured_rows in measure_steps(
            options, size, device, deadline.part(len(options.batch_sizes) - number), missing
        ):
            yield about | {"rows": rows + measured_rows, "layers": []} | missing.described()
        rows += measured_rows
    precision, batch_size = options.precisions[0], options.batch_sizes[-1]
    model = AlexNet(options.variants[0]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = HALVES.get(precision)
    measured, limits[precision] = layers(model, batch_size, device, half, limits[precision])
    lines = [asdict(layer) | {"least_ms": layer.least_ms(limits[precision])} for layer in measured]
    print_layers(f"{options.variants[0]}, {precision}, batch {batch_size}, eager", measured, limits[precision])
    print_rows(rows)
    about["limits"] = {name: asdict(limit) for name, limit in limits.items()}
    result = about | {"rows": rows, "layers": lines} | missing.described()
    if options.picture:
        from benchmarks.plots.step import draw

        draw(result).savefig(options.picture, dpi=110)
    yield result


def measure_steps(
    options: StepOptions, batch_size: int, device: torch.device, deadline: Deadline, missing: Missing
) -> Iterator[list[dict]]:
    """Yield, after every round, a row per candidate, measured in turn with the products to which their shares refer.

    Candidates that are not prepared (compiled) when half of the time is over are noted in ``missing``.
    """
    work: dict[str, Callable[[], int]] = {}
    extra: dict[str, dict[str, Any]] = {}
    chosen: list[Candidate] = []
    for candidate in candidates(options):
        if chosen and deadline.half_over():
            missing.left_out.append(f"{candidate.name}, {batch_size}")
            continue
        chosen.append(candidate)
        work[candidate.name], extra[candidate.name] = prepare(candidate, options.steps, batch_size, device)
    for precision in {candidate.precision for candidate in chosen}:
        product, flops = matmul(device, HALVES.get(precision, torch.float32))
        work[f"matmul {precision}"] = partial(repeat, product, flops, device)
    for rates in interleave(work, options.rounds, deadline):
        yield described(rates, chosen, extra, batch_size)


def described(
    rates: dict[str, list[float]], chosen: list[Candidate], extra: dict[str, dict[str, Any]], batch_size: int
) -> list[dict]:
    theirs = [candidate.name for candidate in chosen if candidate.network == "torchvision"]
    medians = {row["name"]: row["median"] for row in summarise(rates, theirs[0])}
    rows: dict[Any, dict[str, Any]] = {
        row["name"]: row for row in summarise(rates, max(theirs, key=lambda name: float(medians[name])))
    }
    for candidate in chosen:
        row, more = rows[candidate.name], dict(extra[candidate.name])
        rate = float(row["median"])
        share = rate * more.pop("flops") / float(medians[f"matmul {candidate.precision}"])
        row |= {"step_ms": round(1000 * batch_size / rate, 2), "share": round(share, 3), **more}
        row |= {"name": f"{candidate.name}, {batch_size}", "batch_size": batch_size, "network": candidate.network}
    return [rows[candidate.name] for candidate in chosen]


def repeat(product: Callable[[], object], flops: int, device: torch.device, times: int = 10) -> int:
    for _ in range(times):
        product()
    wait(device)
    return times * flops


def prepare(
    candidate: Candidate, steps: int, batch_size: int, device: torch.device
) -> tuple[Callable[..., int], dict[str, Any]]:
    """Return a function that runs the steps and waits for the last, and its compile seconds, GiB and FLOP per image."""
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    model = build(candidate, device)
    flops = train_flops(model, device)
    step = training_step(model, candidate, device)
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
    images = images.to(torch.float16 if device.type == "cuda" else torch.float32, memory_format=layout)
    labels = torch.randint(1000, (batch_size,), device=device)

    def take(count: int = steps) -> int:
        for _ in range(count):
            loss = step(images, labels)
        loss.item()  # waits for the GPU
        return count * batch_size

    first, second = timed(take), timed(take)
    peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
    return take, {
        "compile_s": round(first - second, 1) if candidate.compile != "off" else None,
        "memory_gib": round(peak / 2**30, 3) if peak is not None else None,
        "flops": flops,
    }


def build(candidate: Candidate, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if candidate.network == "torchvision":
        import torchvision  # only for those who compare

        model: nn.Module = torchvision.models.alexnet(weights=None)
    else:
        model = AlexNet(candidate.network, conv1=candidate.conv1, groups=candidate.groups, fused=candidate.fused)
    layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]


def training_step(model: nn.Module, candidate: Candidate, device: torch.device) -> TrainStep:
    """Return train.py's step, at a rate so small that no network diverges on any data."""
    recipe = replace(RECIPES["paper"], precision=candidate.precision, learning_rate=1e-5)
    optimizer = (
        make_optimizer(model, recipe)
        if isinstance(model, AlexNet)
        else torch.optim.SGD(model.parameters(), recipe.learning_rate, 0.9, weight_decay=5e-4)
    )
    halves = None
    if isinstance(model, AlexNet) and Computation(fused=candidate.fused).keeps_halves(device, candidate.precision, 1):
        halves = HalfWeights(model)
        model = halves.network
    if candidate.compile == "autotune":
        compiled: Any = torch.compile(model, dynamic=False, mode="max-autotune")
    else:
        compiled = compile_model(model, candidate.compile, device)
    return TrainStep(compiled, optimizer, recipe, device, halves=halves)


def timed(take: Callable[[int], int]) -> float:
    start = time.perf_counter()
    take(1)
    return time.perf_counter() - start


def print_rows(rows: list[dict]) -> None:
    print(f"\n{'':<48}{'step ms':>10}{'share':>10}{'compile s':>10}{'GiB':>8}")
    for row in rows:
        cells = ("" if row[name] is None else row[name] for name in ("step_ms", "share", "compile_s", "memory_gib"))
        print("{:<48}{:>10}{:>10}{:>10}{:>8}".format(row["name"], *cells))
    print()
