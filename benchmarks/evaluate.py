"""The cost of evaluating compared with loading alone: the rate at which metrics come from batches (alexnet/engine.py).

    python -m benchmarks evaluate --data data/demo/shards --json benchmarks/results/evaluate-cpu.json

The network takes next to no time, so that the difference is the cost of predictions and metrics. Time is counted in
CPU seconds of one thread, which exclude the work of other processes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from alexnet.engine import find_device, predict
from alexnet.metrics import scores
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines import open_loader
from pipelines.terminal import require

LOADING = "loading alone"


@dataclass(frozen=True)
class EvaluateOptions(MeasureOptions):
    """Images per CPU second of loading alone and of evaluating."""

    data: Path = Path("data/demo/shards")
    """A shard folder."""
    batch_size: int = 64
    rounds: int = 15

    def __post_init__(self) -> None:
        require(self.batch_size >= 1 and self.rounds >= 1, "--batch-size and --rounds start at 1")


def run_evaluate(options: EvaluateOptions) -> Iterator[dict]:
    """Yield the settings and a row for each, of the train split without augmentation. Raises DataError."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    loader = open_loader(options.data, "train", options.batch_size, training=False, device=device, threads=1)
    classes = len(loader.manifest.classes)
    model = small_net(classes).to(device)
    candidates = {
        LOADING: in_cpu_seconds(lambda: sum(batch.valid for batch in loader)),
        "evaluating": in_cpu_seconds(lambda: int(scores(predict(model, loader, device), classes)["samples"])),
    }
    settings = {"data": str(options.data), "batch_size": options.batch_size, "rounds": options.rounds}
    about = {"benchmark": "evaluate", "unit": "images per CPU second", "device": str(device), **settings}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rates in interleave(candidates, options.rounds, deadline):
            yield about | {"rows": summarise(rates, LOADING)}
    finally:
        torch.set_num_threads(threads)
        loader.close()


def in_cpu_seconds(work: Callable[[], int]) -> Callable[[], tuple[int, float]]:
    """Return a function that does ``work``, and returns its number of images and the CPU seconds of this process."""

    def measured() -> tuple[int, float]:
        start = time.process_time()
        images = work()
        return images, time.process_time() - start

    return measured


def small_net(classes: int) -> nn.Module:
    """Return a network that sees every 16th pixel, and multiplies by one matrix."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(1, stride=16), nn.Flatten(), nn.Linear(3 * 14 * 14, classes))
