"""The project's own loaders, their reference and stages, each in a process of its own; see benchmarks/peers/serve.py.

python benchmarks/our_loaders.py JSON
"""

import ctypes
import itertools
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch

from alexnet import RECIPES, AlexNet
from alexnet.engine import TrainStep, compile_model, find_device
from alexnet.optim import make_optimizer
from benchmarks.harness.settings import LoaderSettings
from benchmarks.peers.serve import Rounds, answer
from pipelines import Augment, DataError, load_manifest, open_loader
from pipelines.gpu import opening
from pipelines.shards.records import Records
from pipelines.turbo.native import SAMPLE, native_library

WARM_BATCHES = 6  # more than any loader makes in advance


@dataclass(frozen=True)
class OwnSettings(LoaderSettings):
    """Settings of a loader or a stage. ``work`` is reference (decoding from memory), read (reading), loader, lock (a
    loader whose compiled part does nothing) or step (training on one batch)."""

    backend: Any = "auto"
    crop: Any = "random"
    normalise: Any = "none"
    resident: bool = False
    augment: str = ""
    """A name in AUGMENTS that replaces ``crop`` and ``normalise``."""


def main() -> None:
    settings = OwnSettings.from_command_line()
    work = {"reference": decoding, "read": reading, "loader": loading, "lock": locking, "step": training}[settings.work]
    answer(lambda: work(settings))


def decoding(settings: OwnSettings) -> Rounds:
    """Decode each whole image and discard it; copy raw pixels."""
    jpeg = load_manifest(settings.data).image.encoding == "jpeg"
    work, done = (simplejpeg.decode_jpeg, "decoded") if jpeg else (bytearray, "copied")
    return Rounds(on_threads(settings.threads, work, settings.files()), f"no batch: {done} from memory, thrown away")


def reading(settings: OwnSettings) -> Rounds:
    """Read samples in random order, as turbo does."""
    records = Records(load_manifest(settings.data), "train")
    samples = [random.Random(0).randrange(len(records)) for _ in range(settings.images)]
    return Rounds(on_threads(settings.threads, records.read, samples), "no batch: bytes thrown away")


def on_threads(threads: int, work: Callable[[Any], object], items: list) -> Callable[[], int]:
    """Return a function that does ``work`` on all items, an even share on each thread, and returns their number."""
    pool = ThreadPoolExecutor(threads)

    def share(first: int) -> int:
        for item in items[first::threads]:
            work(item)
        return len(items[first::threads])

    return lambda: sum(pool.map(share, range(threads)))


def loading(settings: OwnSettings) -> Rounds:
    """Make batches as for training."""
    augment = settings.augment or Augment(crop=settings.crop, normalise=settings.normalise)
    device = find_device(settings.device)
    if settings.backend == "gpu" and device.type == "cpu":
        opening.PieceDecoder = NoLaunches  # type: ignore[assignment,misc]
    loader = open_loader(
        settings.data,
        "train",
        settings.batch_size,
        augment,
        device=device,
        backend=settings.backend,
        threads=settings.threads,
        resident=settings.resident,
    )
    endless = itertools.chain.from_iterable(itertools.repeat(loader))

    def take(batches: int) -> int:
        for _ in range(batches):
            images = next(endless).images
        images[0, 0, 0, 0].item()  # waits for the GPU
        return batches * settings.batch_size

    dtype = str(next(endless).images.dtype).removeprefix("torch.")
    what = "the host's share, launches left out" if settings.backend == "gpu" and device.type == "cpu" else device.type
    return Rounds(partial(take, settings.batches), f"{dtype} on {what}", partial(take, WARM_BATCHES))


class NoLaunches:
    """A decoder that returns the same images at once, so that only the host's share of the backend gpu is measured."""

    def __init__(self, _: Any, device: torch.device, *, rows: int, size: int, dtype: torch.dtype, **__: Any) -> None:
        self._images = torch.zeros((rows, size, size, 3), dtype=dtype, device=device)
        self._status = torch.zeros(rows, dtype=torch.int32, device=device)

    def __call__(self, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._images, self._status


def locking(settings: OwnSettings) -> Rounds:
    """Make batches without the compiled part. What is left is Python, which runs one thread at a time.

    A process makes no more than this on any number of cores.
    """

    def paint_nothing(worker: object, settings: object, samples: ctypes.c_void_p, count: int, *rest: object) -> None:
        whole: Any = (ctypes.c_char * (SAMPLE.itemsize * count)).from_address(samples.value or 0)
        np.frombuffer(whole, SAMPLE)["done"] = 1

    native_library().render_samples = paint_nothing
    return loading(settings)


def training(settings: OwnSettings) -> Rounds:
    """Train on one batch. On a CPU, where a step takes seconds, a round is one step."""
    device = find_device(settings.device)
    torch.set_num_threads(settings.threads)
    model = AlexNet("one_weird_trick").to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = RECIPES["paper"]
    step = TrainStep(compile_model(model, "auto", device), make_optimizer(model, recipe), recipe, device)
    images = torch.randn(settings.batch_size, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (settings.batch_size,), device=device)
    steps = settings.batches if device.type == "cuda" else 1

    def take() -> int:
        for _ in range(steps):
            loss = step(images, labels)
        loss.item()  # waits for the GPU
        return steps * settings.batch_size

    return Rounds(take, "one_weird_trick's training step on one batch again and again")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
