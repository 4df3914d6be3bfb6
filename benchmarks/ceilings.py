"""The limits of the machine: matrix products, copies, and JPEG decoding by every decoder available.

    python -m benchmarks ceilings --data SHARDS [SHARDS] [--finish]

The first value of each setting is the usual one; each other value is tried with all else as usual. With --finish,
decoders make batches as for training. A decoder that fails or hangs costs only its own row. benchmarks/decoders.py has
the decoders.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.engine import find_device
from benchmarks.harness.children import Child
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.roofline import measure_host_copy, measure_limits
from benchmarks.harness.timing import Deadline, Missing, interleave, summarise
from benchmarks.loader import REFERENCE, mean_kb
from benchmarks.memory_decoders import NVIMGCODEC
from benchmarks.nvjpeg import BACKENDS
from pipelines import DataError, load_manifest
from pipelines.remote.url import absolute
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
    threads: tuple[int, ...] = tuple(dict.fromkeys((CORES, min(4, CORES), 1)))
    """Host threads: of DALI, of libjpeg-turbo on whole images, and of turbo on its crops."""
    hw_loads: tuple[float, ...] = (0.65, 0.0, 0.9, 1.0)
    """The share of the images that DALI gives to the GPU's JPEG engine."""
    prefetch: tuple[int, ...] = (2, 4)
    """Batches that DALI makes in advance."""
    decoders: tuple[Literal["image", "image_crop", "image_random_crop"], ...] = ("image", "image_crop")
    """DALI's decoders. image_random_crop has crashed on some GPUs: run the benchmark runs first."""
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
        self._child, self.pixels = child, child.pixels
        self.failure = ""

    def __call__(self) -> tuple[int, float]:
        if not self.failure:
            try:
                return self._child()
            except DataError as error:
                self.failure = str(error)
        return 0, 1.0


def run_ceilings(options: CeilingsOptions) -> Iterator[dict]:
    """Yield limits in FLOP/s and bytes/s, a row per decoder and setting, and the decoders that failed."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    limits = {name: asdict(measure_limits(device, kind)) for name, kind in kinds(device).items()}
    limits["host"] = {"bytes_per_second": measure_host_copy(device)}
    unit = "images/s; the ratio is to libjpeg-turbo on all threads"
    about: dict[str, Any] = {"benchmark": "ceilings", "unit": unit, "device": str(device), "limits": limits}
    about |= {name: getattr(options, name) for name in ("batches", "rounds", "finish")}
    rows: list[dict] = []
    missing = Missing()
    for number, data in enumerate(options.data):
        if rows and deadline.left() <= 0:
            missing.left_out.append(data.name)
            continue
        found: list[dict] = []
        part = deadline.part(len(options.data) - number)
        for found in measure_decoders(options, data, device.type, part, missing):
            yield about | {"rows": rows + found} | missing.described()
        rows += found
    yield about | {"rows": rows, "diagnosis": describe(limits, rows, missing, device)} | missing.described()


def kinds(device: torch.device) -> dict[str, torch.dtype]:
    return {"bf16": torch.bfloat16, "fp32": torch.float32} if device.type == "cuda" else {"fp32": torch.float32}


def measure_decoders(
    options: CeilingsOptions, data: Path, device: str, deadline: Deadline, missing: Missing
) -> Iterator[list[dict]]:
    """Yield the rows of a shard folder after every round.

    Note in ``missing`` the decoders that failed, and those that were not started when half of the time was over.
    """
    manifest, chosen = load_manifest(data), dict(candidates(options, device))
    with ExitStack() as stack:
        running: dict[str, Child | Guarded] = {REFERENCE: stack.enter_context(start_reference(options, data))}
        for name, child in started(chosen, options, data, device, deadline):
            if child is None:
                missing.left_out.append(f"{data.name}: {name}")
            elif isinstance(child, DataError):
                missing.failed[f"{data.name}: {name}"] = str(child)
            else:
                running[name] = Guarded(stack.enter_context(child))
        for rates in interleave(running, options.rounds, deadline):
            failed = {name: one.failure for name, one in running.items() if isinstance(one, Guarded) and one.failure}
            missing.failed.update({f"{data.name}: {name}": why for name, why in failed.items()})
            image = {"data": data.name, "encoding": manifest.image.encoding, "mean_kb": mean_kb(manifest)}
            whole = {name: values for name, values in rates.items() if name not in failed}
            yield [
                row | image | chosen.get(name, {}) | running[name].pixels | {"name": f"{data.name}: {name}"}
                for row in summarise(whole, REFERENCE)
                for name in [str(row["name"])]
            ]


def start_reference(options: CeilingsOptions, data: Path) -> Child:
    """Start the reference, libjpeg-turbo on all threads."""
    sizes = {"batch_size": options.batch_sizes[0], "batches": options.batches, "threads": options.threads[0]}
    given = {"work": "reference", "data": absolute(data), "device": "cpu"} | sizes
    return Child(REFERENCE, ["benchmarks/our_loaders.py", json.dumps(given)])


def started(
    chosen: dict[str, dict[str, Any]], options: CeilingsOptions, data: Path, device: str, deadline: Deadline
) -> Iterator[tuple[str, Child | DataError | None]]:
    """Start several decoders at a time. Yield each, the error that it ended with, or None if there was no time."""

    def one(name: str) -> Child | DataError | None:
        if deadline.half_over():
            return None
        try:
            return start(name, chosen[name], options, data=data, device=device)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max(1, CORES // 4)) as pool:
        yield from zip(chosen, pool.map(one, chosen), strict=True)


def start(name: str, settings: dict[str, Any], options: CeilingsOptions, *, data: Path, device: str) -> Child:
    """Start a decoder. A round has as many images at every batch size."""
    batches = max(1, options.batches * options.batch_sizes[0] // settings["batch_size"])
    given = {"data": absolute(data), "device": device, "batches": batches} | settings
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
    if device == "cuda":
        for backend in BACKENDS:
            yield f"nvJPEG {backend}", usual | {"work": "nvjpeg", "backend": backend}
    for backend in NVIMGCODEC[device]:
        yield f"nvImageCodec {backend}", usual | {"work": "nvimgcodec", "backend": backend}
    yield f"torchvision decode_jpeg, {device}", usual | {"work": "torchvision"}
    for threads in options.threads:
        for work, name in (("libjpeg", "libjpeg-turbo"), ("turbo", "turbo's crops")):
            yield f"{name}, {threads} threads", usual | {"work": work, "threads": threads, "device": "cpu"}


def describe(limits: dict[str, dict[str, Any]], rows: list[dict], missing: Missing, device: torch.device) -> list[str]:
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
    lines += [f"wrong pixels: {row['name']}: {row['wrong']} of {row['compared']}" for row in rows if row.get("wrong")]
    return lines + [f"failed: {name}: {why}" for name, why in missing.failed.items()]
