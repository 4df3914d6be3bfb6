"""The log of a run: a JSON line per interval and per epoch, and what an interval measures."""

import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec
import torch
from torch import Tensor

from alexnet.errors import AlexNetError
from alexnet.files import replacing

MAX_BYTES = 1 << 28  # of a log; a line has about 200
LOG_STEPS = 10  # between two lines
GPU_LOG_SECONDS = 2.0  # on a GPU, if that takes more steps
MAX_NUMBER = 1 << 63  # numbers in a line are smaller


class StepLine(TypedDict):
    """A line for each interval of steps."""

    step: int
    epoch: float
    loss: float
    rate: float
    images_per_second: float
    data_wait: float
    memory_gib: float
    step_ms: NotRequired[float]


class EpochLine(TypedDict):
    """A line for each epoch, after its evaluation; it has the other metrics too.

    ``train_top1`` is of the train images as they were augmented, each before its batch's update.
    """

    epoch: int
    loss: NotRequired[float]
    train_top1: NotRequired[float]
    top1: float
    top5: float
    f1: float


LINES: dict[str, Any] = {"step": StepLine, "epoch": EpochLine}  # by their kind


class RunLog:
    """A run's ``log.jsonl``. A line has been handed to the operating system when ``write`` returns.

    A run resumed after ``step`` and ``epoch`` first removes later lines, because it will write them again. Without a
    ``path`` nothing is written: of several ranks, one keeps the log.
    """

    def __init__(self, path: Path | None, step: int = 0, epoch: int = 0) -> None:
        self._path = path
        if path and path.is_file():
            reached = {"step": step, "epoch": epoch}
            kept = [entry for entry in read_log(path) if entry[entry["kind"]] <= reached[entry["kind"]]]
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def write(self, kind: str, **values: Any) -> None:
        if not self._path:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind} | values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log. Raises AlexNetError as ``numbered_lines`` does."""
    return [entry for _, entry in numbered_lines(path)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, each checked to have all fields of its kind. Raises AlexNetError."""
    entries = []
    for number, entry in numbered_lines(path):
        try:
            msgspec.convert(entry, LINES[entry["kind"]])
        except msgspec.ValidationError as error:
            raise AlexNetError(f"{path}, line {number}: {error}: remove the line") from error
        entries.append(entry)
    return entries


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number, from 1, and its content. A line that is not JSON is skipped: a stop may cut one off.

    Raises AlexNetError if the file is too long to be a log, or if a line is JSON but no log line; it names the line.
    """
    if path.stat().st_size > MAX_BYTES:
        raise AlexNetError(f"{path} has {path.stat().st_size} bytes, which no log has: remove what is not of this run")
    for number, line in enumerate(path.read_text(errors="replace").split("\n"), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if problem := _problem(entry):
            raise AlexNetError(f"{path}, line {number}: {problem}, which no run writes: remove the line")
        yield number, entry


def _problem(entry: Any) -> str | None:
    """Return why ``entry`` is no line of a log; None if it is one."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in LINES:
        return "its kind is neither step nor epoch"
    for name, value in entry.items():
        if isinstance(value, dict | list) or (isinstance(value, int | float) and not abs(value) < MAX_NUMBER):
            return f"{name!r} is a {type(value).__name__} and not a number in range"[:200]
    if type(entry.get(kind)) is not int or entry[kind] < 0:
        return f"its {kind} is no whole number"
    return None


def epoch_text(epoch: int, epochs: int, values: dict[str, float], num_classes: int) -> str:
    """Return an epoch's line for the terminal; top-5 only where it says something."""
    names = {"train_top1": "train top-1", "loss": "val loss", "top1": "top-1", "top5": "top-5", "f1": "F1"}
    shown = [name for name in names if name in values and (name != "top5" or num_classes > 5)]
    return f"epoch {epoch}/{epochs}: " + ", ".join(f"{names[name]} {values[name]:.4f}" for name in shown)


def interval_text(measured: dict[str, float]) -> str:
    """Return what an interval measured, for the bar."""
    seconds, images = measured["step_ms"] / 1000, measured["images_per_second"]
    return f"loss {measured['loss']:.3f}, {seconds:.3g} s/step, {images:.{0 if images > 10 else 1}f} images/s"


class Interval:
    """A measurement of the steps between two log lines: loss, images/s, share of time spent waiting for data.

    It is ``full`` after ``log_steps``. By default these are LOG_STEPS, and on a GPU after the first interval as many as
    take GPU_LOG_SECONDS at the speed of the last one. Reading the loss waits for the GPU, which then idles until the
    host has launched the next step: after ten steps of 2 ms that would be a large share. The number is the same on
    every rank, since it follows from a mean over the ranks. On a CPU it is fixed, so that a resumed run logs the same
    lines.
    """

    def __init__(self, device: torch.device, log_steps: int | None = None) -> None:
        self._device = device
        self._log_steps = log_steps or LOG_STEPS
        self._follows_time = device.type == "cuda" and not log_steps
        self.restart()

    @property
    def full(self) -> bool:
        return self.steps >= self._log_steps

    def restart(self) -> None:
        self.steps = self._images = 0
        self._waited = 0.0
        self._loss = torch.zeros((), device=self._device)
        self._losses: list[Tensor] = []
        self._start = time.perf_counter()

    def add(self, loss: Tensor, images: int, waited: float) -> None:
        """Count one step: its loss (on the device), its images, and the seconds it waited for its batch."""
        self._loss += loss
        self._losses.append(loss.clone())  # a CUDA graph overwrites it with the next one
        self.steps, self._images, self._waited = self.steps + 1, self._images + images, self._waited + waited

    def summary(self, last_step: int, over_ranks: Callable[[float], float] = float) -> dict[str, float]:
        """Return means since ``restart``. Waits for the GPU. ``last_step`` is the number of the step added last.

        ``over_ranks`` averages the loss and the time over all ranks. Raises AlexNetError if a loss was not finite.
        """
        loss = over_ranks(self._loss.item() / self.steps)
        seconds = time.perf_counter() - self._start
        if not math.isfinite(loss):
            losses = torch.stack(self._losses).tolist()
            bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
            where = f"{losses[bad]} in step {last_step - len(losses) + bad + 1}" if bad is not None else f"{loss}"
            raise AlexNetError(f"the loss became {where}: lower --learning-rate; last.pt, if any, is sound")
        if self._follows_time:
            self._log_steps = max(LOG_STEPS, round(GPU_LOG_SECONDS / over_ranks(seconds / self.steps)))
        return {
            "loss": round(loss, 5),
            "images_per_second": round(self._images / seconds, 1),
            "data_wait": round(self._waited / seconds, 4),
            "step_ms": round(1000 * seconds / self.steps, 2),
            "memory_gib": round(peak_memory_bytes(self._device) / 2**30, 3),
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of the GPU, or on a CPU that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be the parent process's peak if that was higher
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
