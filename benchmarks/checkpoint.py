"""The cost of a checkpoint to training, written in line and by a thread (alexnet/writer.py).

    python -m benchmarks checkpoint --json benchmarks/results/checkpoint-cpu.json

``STEPS`` steps run without a checkpoint, with one that training waits for, and with one by the thread, in turn. The
images a second include the thread's own work if it takes a core from training, as it does on two cores.
``stalled_share_of_writing`` is the time that training waited for the thread, divided by the time that it worked.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet import RECIPES, AlexNet, checkpoint
from alexnet.engine import TrainStep, find_device
from alexnet.optim import make_optimizer
from alexnet.writer import Writer
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines.terminal import require

STEPS = 6


@dataclass(frozen=True)
class CheckpointOptions(MeasureOptions):
    """The time that writing a checkpoint takes, and the time that it stalls training."""

    batch_size: int = 32
    rounds: int = 5

    def __post_init__(self) -> None:
        require(self.batch_size >= 1 and self.rounds >= 1, "--batch-size and --rounds start at 1")


def run_checkpoint(options: CheckpointOptions) -> Iterator[dict]:
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    step, model, optimizer = learner(options.batch_size, device)
    waits: list[tuple[float, float]] = []  # seconds stalled, seconds of writing
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder), optimizer) as writer:

        def by_thread() -> int:
            stalled, writing = writer.stalled_seconds, writer.writing_seconds
            writer.save({"model": model.state_dict()}, {"optimizer": optimizer.state_dict()})
            done = steps(step, options.batch_size, device)
            stalled = writer.stalled_seconds - stalled
            writer.finish()
            waits.append((stalled, writer.writing_seconds - writing))
            return done  # finish() had little or nothing to wait for

        def in_line() -> int:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save(Path(folder, "last.pt"), state)
            return steps(step, options.batch_size, device)

        candidates = {
            "no checkpoint": lambda: steps(step, options.batch_size, device),
            "one by the thread": by_thread,
            "one in line": in_line,
        }
        for rates in interleave(candidates, options.rounds, deadline):
            bytes_written = Path(folder, "last.pt").stat().st_size
            yield described(options, rates, waits[1:]) | {"bytes": bytes_written}  # the first is not measured


def described(
    options: CheckpointOptions, rates: dict[str, list[float]], waits: list[tuple[float, float]]
) -> dict[str, Any]:
    share = statistics.median(stalled / writing for stalled, writing in waits)
    return {
        "benchmark": "checkpoint",
        "variant": "paper",
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "steps": STEPS,
        "rows": summarise(rates, "no checkpoint"),
        "stalled_seconds": [round(stalled, 4) for stalled, _ in waits],
        "writing_seconds": [round(writing, 3) for _, writing in waits],
        "stalled_share_of_writing": round(share, 4),
        "diagnosis": [f"by the thread, training waited {100 * share:.2f} % of the time that writing took"],
    }


def learner(batch_size: int, device: torch.device) -> tuple[Callable[[], torch.Tensor], AlexNet, torch.optim.Optimizer]:
    """Return a training step of the paper's network on one batch of noise, the model and the optimizer."""
    torch.manual_seed(0)
    model = AlexNet("paper").to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, RECIPES["paper"])
    train_step = TrainStep(model, optimizer, RECIPES["paper"], device)
    images = torch.randn(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch_size,), device=device)
    return lambda: train_step(images, labels), model, optimizer


def steps(step: Callable[[], torch.Tensor], batch_size: int, device: torch.device) -> int:
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return STEPS * batch_size
