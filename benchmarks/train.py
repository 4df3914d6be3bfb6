"""The rate of training from shards, compared with training on synthetic batches, in turn on one compiled network.

    python -m benchmarks train --data SHARDS [RAW_SHARDS] [--peers]

The steps are train.py's, without its schedule. ``data_wait`` is the share of the time in which the host waits for a
batch. If the network is slower than the loader, it includes waiting for the network: judge by the ratio. ``adds_gib``
is the GPU memory that a candidate's first steps added; the first row includes the network.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alexnet.engine import TrainStep, find_device
from alexnet.log import Interval
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.peer_data import extract_images
from benchmarks.harness.timing import Deadline, Missing, interleave, summarise
from benchmarks.our_loaders import WARM_BATCHES
from benchmarks.step import GPU, Candidate, Compiling, Precision, Variant, build, training_step
from pipelines import AUGMENTS, Batch, DataError, load_manifest, open_loader
from pipelines.terminal import require

IMAGENET_IMAGES, EPOCHS = 1_281_167, 90
SYNTHETIC = "reference: synthetic batches"


@dataclass(frozen=True)
class TrainOptions(MeasureOptions):
    """Images a second of training from shards, and their ratio to training on synthetic batches."""

    data: tuple[Path, ...] = (Path("data/demo/shards"),)
    """Shard folders, such as one of JPEGs and a raw one."""
    backends: tuple[Literal["turbo", "dali", "gpu", "gpu_resident"], ...] = ("turbo", "dali")
    augment: str = "paper"
    variant: Variant = "paper"
    precision: Precision = "bf16" if GPU else "fp32"
    compile: Compiling = "on" if GPU else "off"
    conv1: Literal["direct", "blocks"] = "direct"
    batch_sizes: tuple[int, ...] = (256, 1024) if GPU else (32,)
    images: int = 50_000 if GPU else 64
    """Images in a round, rounded down to whole batches, at least one batch."""
    rounds: int = 5
    threads: tuple[int, ...] = (os.cpu_count() or 1,)
    """Threads of each loader; several numbers show how many a GPU needs."""
    peers: bool = False
    """Measure torchvision's too: its alexnet under autocast, eager, fed by ImageFolder and a DataLoader."""
    work: Path = Path("data/benchmark/train")
    """Folder for the peer's images."""

    def __post_init__(self) -> None:
        require(self.augment in AUGMENTS, f"--augment is {self.augment!r}, known: {', '.join(AUGMENTS)}")
        require(bool(self.data), "--data is empty")
        require(bool(self.threads), "--threads takes one number or several")
        smallest = min([*self.batch_sizes, self.images, self.rounds, *self.threads])
        require(smallest >= 1, "--batch-sizes, --images, --rounds and --threads start at 1")


class Training:
    """A loader with a training step. A call is a round; the first opens the loader and is not counted."""

    def __init__(
        self, step: TrainStep, batches: Iterable[Batch], steps: int, device: torch.device, warm: int = WARM_BATCHES
    ) -> None:
        self._step, self._steps, self._device, self._warm = step, steps, device, warm
        self._batches: Iterator[Batch] = itertools.chain.from_iterable(itertools.repeat(batches))
        self._joules = energy_meter(device)
        self._adds_gib: float | None = None
        self._rounds: list[dict[str, float]] = []

    def __call__(self) -> tuple[int, float]:
        before = held_gib(self._device)
        self._take(self._warm)  # uses up the batches made while others were measured
        if self._adds_gib is None and before is not None:
            self._adds_gib = round((held_gib(self._device) or 0) - before, 2)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        joules, start = self._joules(), time.perf_counter()
        images, summary = self._take(self._steps)
        seconds = time.perf_counter() - start
        energy = {} if joules is None else {"joules_per_image": (self._joules() - joules) / images}
        self._rounds.append({name: summary[name] for name in ("data_wait", "memory_gib")} | energy)
        return images, seconds

    def _take(self, steps: int) -> tuple[int, dict[str, float]]:
        """Run train.py's loop. Wait for the GPU at its end. Return the number of images and a summary."""
        interval, images = Interval(self._device), 0
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(self._batches)
            waited = time.perf_counter() - asked
            interval.add(self._step(batch.images, batch.labels), batch.valid, waited)
            images += batch.valid
        return images, interval.summary(steps)

    def measured(self) -> dict[str, float | None]:
        """Return the medians over the rounds, without the first."""
        rounds = self._rounds[1:]
        medians = {name: round(statistics.median(r[name] for r in rounds), 5) for name in rounds[0]}
        return {"adds_gib": self._adds_gib, **medians}


def run_train(options: TrainOptions) -> Iterator[dict]:
    """Yield the settings, and a row per loader and batch size with its ratio to synthetic batches of that size."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    names = ("augment", "variant", "precision", "compile", "conv1", "images", "rounds", "threads")
    unit = "images/s; the ratio is to synthetic batches of the same size"
    about: dict[str, Any] = {"benchmark": "train", "unit": unit, "device": str(device)}
    about |= {name: getattr(options, name) for name in names}
    rows: list[dict] = []
    missing = Missing()
    for number, size in enumerate(options.batch_sizes):
        if rows and deadline.left() <= 0:
            missing.left_out.append(f"batch size {size}")
            continue
        measured: list[dict] = []
        for measured in measure(options, size, device, deadline.part(len(options.batch_sizes) - number), missing):
            yield about | {"rows": rows + measured} | missing.described()
        rows += measured
    print_rows(rows)
    yield about | {"rows": rows} | missing.described()


def print_rows(rows: list[dict]) -> None:
    print(f"\n{'':<60}{'data wait':>10}{'step ms':>10}{'GiB':>8}{'J/image':>10}{'90 epochs, h':>14}")
    for row in rows:
        energy = row.get("joules_per_image", "")
        print("{name:<60}{data_wait:>10}{step_ms:>10}{memory_gib:>8}".format(**row), end="")
        print(f"{energy:>10}{row['hours_90_epochs']:>14}")


def measure(
    options: TrainOptions, batch_size: int, device: torch.device, deadline: Deadline, missing: Missing
) -> Iterator[list[dict]]:
    """Yield the rows of a batch size after every round. Note in ``missing`` the loaders that are not installed."""
    with ExitStack() as stack:
        candidates = dict(trainings(options, batch_size, device, stack, missing))
        for rates in interleave(candidates, options.rounds, deadline):
            yield described(rates, candidates, batch_size)


def described(rates: dict[str, list[float]], candidates: dict[str, "Training"], batch_size: int) -> list[dict]:
    found = []
    for row in summarise(rates, SYNTHETIC):
        rate = float(row["median"])
        more = {"batch_size": batch_size, "step_ms": round(1000 * batch_size / rate, 2)}
        more |= {"hours_90_epochs": round(EPOCHS * IMAGENET_IMAGES / rate / 3600, 2)}
        found.append(row | more | candidates[str(row["name"])].measured() | {"name": f"{row['name']}, {batch_size}"})
    return found


def trainings(
    options: TrainOptions, batch_size: int, device: torch.device, stack: ExitStack, missing: Missing
) -> Iterator[tuple[str, Training]]:
    """Yield synthetic batches, then each dataset with each loader, on one network; then the peer with its own."""
    candidate = Candidate(options.variant, options.precision, options.compile, conv1=options.conv1)
    step = training_step(build(candidate, device), candidate, device)
    steps = max(1, options.images // batch_size)
    for name, data, how in loaders(options):
        try:
            loader = open_loader(data, "train", batch_size, options.augment, device=device, **how)
        except DataError as error:
            if name == SYNTHETIC:
                raise
            missing.failed[f"{name}, {batch_size}"] = str(error)
            continue
        stack.callback(loader.close)
        yield name, Training(step, loader, steps, device)
    if options.peers:
        batches = TorchvisionBatches(options, batch_size, device)
        theirs = Candidate("torchvision", options.precision, "off")
        step = training_step(build(theirs, device), theirs, device)
        ahead = 2 * max(options.threads) + WARM_BATCHES  # a DataLoader's workers make two batches each
        yield "peer: torchvision's alexnet, ImageFolder", Training(step, batches, steps, device, warm=ahead)


def loaders(options: TrainOptions) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield name, shard folder and arguments of each loader, synthetic batches first."""
    yield SYNTHETIC, options.data[0], {"backend": "synthetic"}
    for data in options.data:
        for backend in options.backends:
            for threads in options.threads:
                more = f", {threads} threads" * (len(options.threads) > 1)
                how = {"backend": backend.removesuffix("_resident"), "threads": threads}
                how |= {"resident": True} if backend == "gpu_resident" else {}
                yield f"{backend.replace('_', ' ')}, {data.name}{more}", data, how


class TorchvisionBatches:
    """Batches of ImageFolder and a DataLoader, as in torchvision's references/classification; iterating is an epoch."""

    def __init__(self, options: TrainOptions, batch_size: int, device: torch.device) -> None:
        from benchmarks.peers.loader_imagefolder import prepare
        from benchmarks.peers.serve import PeerSettings

        images = extract_images(load_manifest(options.data[0]), options.work)
        settings = PeerSettings(
            images,
            options.data[0],
            options.work,
            crop="resized",
            size=224,
            batch_size=batch_size,
            threads=max(options.threads),
        )
        loader: Any = prepare(settings)[0]
        pinned = device.type == "cuda"
        self._loader = DataLoader(loader.dataset, shuffle=True, pin_memory=pinned, **settings.loading())
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._loader:
            moved: list[Tensor] = [tensor.to(self._device, non_blocking=True) for tensor in (images, labels)]
            yield Batch(moved[0].to(memory_format=torch.channels_last), moved[1], len(labels))


def held_gib(device: torch.device) -> float | None:
    """Return the GPU memory that all processes hold, in GiB; None without a GPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**30


def energy_meter(device: torch.device) -> Callable[[], Any]:
    """Return a function that reads the joules the GPU has used; it gives None without a GPU or nvidia-ml-py."""
    if device.type != "cuda":
        return lambda: None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # its error classes exist only once imported; the energy is optional
        return lambda: None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
