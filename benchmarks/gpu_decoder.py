"""What decoding JPEGs on the GPU takes, kernel by kernel, from files in its memory to normalised crops.

    python -m benchmarks pieces --data SHARDS

The kernels find the restart markers, decode the pieces, transform the blocks, and finish the crops. Their time is that
of torch's profiler, and the whole is timed by events. On a CPU the kernels are emulated: the command shows that it
runs, and measures nothing of a GPU.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from alexnet.engine import find_device
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines import AUGMENTS, Loader, open_loader
from pipelines.terminal import in_range, require

KERNELS = {
    "find_markers": "restart markers",
    "decode_pieces": "Huffman decoding",
    "transform": "inverse transform",
    "finish": "upsampling, colours, crop, normalisation",
}


@dataclass(frozen=True)
class PiecesOptions(MeasureOptions):
    """Microseconds an image of each kernel, and images a second of all, for each augmentation."""

    data: Path = Path("data/demo/shards")
    """A folder of square JPEG shards with restart markers."""
    augments: tuple[str, ...] = ("paper", "modern")
    batch_size: int = 1024
    calls: int = 20
    """Batches decoded in each round."""
    rounds: int = 5

    def __post_init__(self) -> None:
        unknown = set(self.augments) - set(AUGMENTS)
        require(not unknown, f"--augments has {', '.join(unknown)}, known: {', '.join(AUGMENTS)}")
        for name in ("batch_size", "calls", "rounds"):
            in_range(name, getattr(self, name), 1)


def run_pieces(options: PiecesOptions) -> Iterator[dict]:
    """Yield a row per augmentation with its rate and its kernels' us an image. Raises DataError."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    batches = {name: Decoding(options, name, device) for name in options.augments}
    kernels = {name: decoding.kernels() for name, decoding in batches.items()}
    about = {"benchmark": "pieces", "unit": "images/s", "device": str(device), "data": str(options.data)}
    about |= {name: getattr(options, name) for name in ("batch_size", "calls", "rounds")}
    for rates in interleave(batches, options.rounds, deadline):
        rows = [row | {"us": kernels[str(row["name"])]} for row in summarise(rates, options.augments[0])]
        yield about | {"rows": rows}


class Decoding:
    """The decoding of one batch of a resident split, again and again. A call is a round."""

    def __init__(self, options: PiecesOptions, augment: str, device: torch.device) -> None:
        self._calls, self._device, self._images = options.calls, device, options.batch_size
        given = {"augment": augment, "device": device, "backend": "gpu", "resident": True}
        self._loader: Loader = open_loader(options.data, "train", options.batch_size, **given)  # type: ignore[arg-type]
        next(iter(self._loader))
        source: Any = self._loader._source
        self._decode: Callable[[], Any] = partial(source._decoded, source._made[0])

    def __call__(self) -> tuple[int, float]:
        if self._device.type != "cuda":
            start = time.perf_counter()
            self._take()
            return self._calls * self._images, time.perf_counter() - start
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        self._take()
        ended.record()
        ended.synchronize()
        return self._calls * self._images, begun.elapsed_time(ended) / 1000

    def _take(self) -> None:
        for _ in range(self._calls):
            self._decode()

    def kernels(self) -> dict[str, float]:
        """Return the us an image of each kernel, by what it does; nothing without a GPU."""
        if self._device.type != "cuda":
            return {}
        self._take()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            self._take()
            torch.cuda.synchronize()
        spent = {event.key: event.self_device_time_total for event in profiled.key_averages()}
        found = {what: sum(us for key, us in spent.items() if kernel in key) for kernel, what in KERNELS.items()}
        return {what: round(us / self._calls / self._images, 4) for what, us in found.items()}
