"""The limits of the machine: matrix products, copies, and JPEG decoding by every decoder available.

    python -m benchmarks ceilings --data SHARDS [SHARDS] [--finish]

The first value of each setting is the usual one; each other value is tried with all else as usual. With --finish,
decoders make batches as for training. A decoder that fails or hangs costs only its own row. benchmarks/decoders.py has
the decoders.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.engine import find_device
from benchmarks.decoders import NVIMGCODEC
from benchmarks.harness.children import Child
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.roofline import measure_host_copy, measure_limits
from benchmarks.harness.timing import interleave, summarise
from benchmarks.loader import REFERENCE, mean_kb
from pipelines import DataError, load_manifest
from pipelines.terminal import require

CORES = os.cpu_count() or 1
PATIENCE = 90  # seconds for a start or a round
UNITS = {
    "hw_load": "{} on the JPEG engine",
    "threads": "{} threads",
    "batch_size": "batches of {}",
    "prefetch": "{} ahead",
}


@dataclass(frozen=True)
class CeilingsOptions(MeasureOptions):
    """Rates of matrix products, copies and JPEG decoders, each decoder in a process of its own."""

    data: tuple[Path, ...] = (Path("data/demo/shards"),)
    """Shard folders of JPEGs."""
    batch_sizes: tuple[int, ...] = (256, 64, 1024)
    threads: tuple[int, ...] = (CORES, max(1, CORES // 2), max(1, CORES // 4))
    hw_loads: tuple[float, ...] = (0.65, 0.0, 0.9, 1.0)
    """The share of the images that DALI gives to the GPU's JPEG engine."""
    prefetch: tuple[int, ...] = (2, 4)
    """Batches that DALI makes in advance."""
    decoders: tuple[Literal["image", "image_crop", "image_random_crop"], ...] = ("image", "image_crop")
    """DALI's decoders. image_random_crop has crashed on some GPUs: run python -m benchmarks runs first."""
    finish: bool = False
    """Make cropped, flipped, normalised batches, not only pixels."""
    batches: int = 40
    """Batches in a round, of the first batch size."""
    rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("data", "batch_sizes", "threads", "hw_loads", "prefetch", "decoders"):
            require(bool(getattr(self, name)), f"--{name.replace('_', '-')} is empty")
        smallest = min([*self.batch_sizes, *self.threads, *self.prefetch, self.batches, self.rounds])
        require(smallest >= 1, "--batch-sizes, --threads, --prefetch, --batches and --rounds start at 1")


class Guarded:
    """A child that may crash or hang. After that, calling it does nothing."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.failure = ""

    def __call__(self) -> tuple[int, float]:
        if not self.failure:
            try:
                return self.child()
            except DataError as error:
                self.failure = str(error)
        return 0, 1.0


def run_ceilings(options: CeilingsOptions) -> dict:
    """Return limits in FLOP/s and bytes/s, a row per decoder and setting, and the decoders that failed."""
    device = find_device(options.device)
    limits = {name: asdict(measure_limits(device, kind)) for name, kind in kinds(device).items()}
    limits["host"] = {"bytes_per_second": measure_host_copy(device)}
    rows: list[dict] = []
    failed: list[dict[str, str]] = []
    for data in options.data:
        found, lost = measure_decoders(options, data, device.type)
        rows, failed = rows + found, failed + lost
    settings = {name: getattr(options, name) for name in ("batches", "rounds", "finish")}
    result = {"benchmark": "ceilings", "unit": "images/s; the ratio is to libjpeg-turbo on all threads", **settings}
    result |= {"device": str(device), "limits": limits, "rows": rows, "failed": failed}
    return result | {"diagnosis": describe(limits, failed, device)}


def kinds(device: torch.device) -> dict[str, torch.dtype]:
    return {"bf16": torch.bfloat16, "fp32": torch.float32} if device.type == "cuda" else {"fp32": torch.float32}


def measure_decoders(options: CeilingsOptions, data: Path, device: str) -> tuple[list[dict], list[dict[str, str]]]:
    """Return the rows of one shard folder, and the names and reasons of the decoders that failed."""
    manifest, chosen = load_manifest(data), dict(candidates(options, device))
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running: dict[str, Any] = {REFERENCE: stack.enter_context(start_reference(options, data))}
        for name, settings in chosen.items():
            try:
                child = start(name, settings, options, data=data, device=device)
            except DataError as error:
                failed[name] = str(error)
            else:
                running[name] = Guarded(stack.enter_context(child))
        rates = interleave(running, options.rounds)
    failed |= {name: one.failure for name, one in running.items() if name != REFERENCE and one.failure}
    image = {"data": data.name, "encoding": manifest.image.encoding, "mean_kb": mean_kb(manifest)}
    rows = [
        row | {"name": f"{data.name}: {row['name']}"} | image | chosen.get(str(row["name"]), {})
        for row in summarise({name: values for name, values in rates.items() if name not in failed}, REFERENCE)
    ]
    return rows, [{"name": f"{data.name}: {name}", "why": why} for name, why in failed.items()]


def start_reference(options: CeilingsOptions, data: Path) -> Child:
    """Start the reference, libjpeg-turbo on all threads."""
    sizes = {"batch_size": options.batch_sizes[0], "batches": options.batches, "threads": options.threads[0]}
    given = {"work": "reference", "data": str(data), "device": "cpu"} | sizes
    return Child(REFERENCE, ["benchmarks/our_loaders.py", json.dumps(given)])


def start(name: str, settings: dict[str, Any], options: CeilingsOptions, *, data: Path, device: str) -> Child:
    """Start a decoder. A round has as many images at every batch size."""
    batches = max(1, options.batches * options.batch_sizes[0] // settings["batch_size"])
    given = {"data": str(data), "device": device, "batches": batches} | settings
    return Child(name, ["benchmarks/decoders.py", json.dumps(given)], patience=PATIENCE)


def variations(options: CeilingsOptions, device: str) -> list[dict[str, Any]]:
    """Return the usual settings, then all settings that differ from them in one value."""
    choices: dict[str, tuple[Any, ...]] = {
        "threads": options.threads,
        "batch_size": options.batch_sizes,
        "prefetch": options.prefetch,
    }
    choices |= {"hw_load": options.hw_loads} if device == "cuda" else {}
    usual = {name: values[0] for name, values in choices.items()}
    return [usual, *(usual | {name: value} for name, values in choices.items() for value in values[1:])]


def candidates(options: CeilingsOptions, device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and settings of each decoder to measure."""
    usual, *others = variations(options, device)
    for decoder in options.decoders:
        yield f"DALI {decoder}", usual | {"work": "dali", "decoder": decoder, "finish": options.finish}
    for changed in others:
        what = next(UNITS[name].format(value) for name, value in changed.items() if value != usual[name])
        first = {"work": "dali", "decoder": options.decoders[0], "finish": options.finish}
        yield f"DALI {options.decoders[0]}, {what}", changed | first
    if options.finish:
        yield "DALI and turbo together", usual | {"work": "together"}
        return
    for backend in NVIMGCODEC[device]:
        yield f"nvImageCodec {backend}", usual | {"work": "nvimgcodec", "backend": backend}
    yield "torchvision decode_jpeg", usual | {"work": "torchvision"}


def describe(limits: dict[str, dict[str, Any]], failed: list[dict[str, str]], device: torch.device) -> list[str]:
    """Describe the limits and what failed, in lines of text."""
    lines = [
        f"{name} matrix product: {limit['flops_per_second'] / 1e12:.2f} TFLOP/s"
        for name, limit in limits.items()
        if name != "host"
    ]
    lines.append(f"copy within {device.type}: {limits['fp32']['bytes_per_second'] / 1e9:.1f} GB/s, read and written")
    if limits["host"]["bytes_per_second"]:
        lines.append(f"copy from pinned memory: {limits['host']['bytes_per_second'] / 1e9:.1f} GB/s")
    if device.type != "cuda":
        lines.append("left out, as they need a GPU: bf16, copies to it, its JPEG engine, nvJPEG")
    return lines + [f"failed: {row['name']}: {row['why']}" for row in failed]
