"""The measurements for a machine with a GPU: an item's commands run in turn, their results in one file and one page.

    python -m benchmarks gpu 1 OUT        # OUT/1.json and OUT/1.md; docs/gpu.md has the items
    python -m benchmarks gpu 2 OUT --quick        # the same commands at the smallest sizes, without a GPU too

Every command is a process of its own with a time limit. If one fails, the end of its log is kept and the next command
runs. Missing data are made first: random views of a few photographs, each several times.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from benchmarks.harness.children import ROOT, kill, with_project
from benchmarks.plots.page import page
from pipelines.files import write_atomically
from pipelines.terminal import require

LOG_CHARACTERS = 4000
LEAST_SECONDS = 10  # with less left, no command is started
Item = Literal["1", "2", "3", "4", "5", "6"]


class Line(NamedTuple):
    """A command: python's arguments, those that make it small, and the minutes it may take."""

    arguments: str
    quick: str
    minutes: float


FEW = "--rounds 1 --batches 2 --threads 2"
DECODERS = f"--batch-sizes 8 --prefetch 2 --decoders image {FEW}"
LOADERS = f"--batch-size 8 --backends turbo --short {FEW}"
STEPS = "--batch-sizes 2 --steps 1 --rounds 1 --compile off --precisions fp32 --conv1 direct"
TRAININGS = "--batch-sizes 2 --images 2 --rounds 1 --threads 2 --backends turbo"
STEP = "-m benchmarks step --precisions bf16 --steps 50 --rounds 4"
IMAGES = Line("-m benchmarks.corpus {work}/images --images 4000 --copies 5", "--images 100 --copies 1", 3)
SHARDS = {
    "jpeg256": Line("tools/shard_imagenet.py {work}/images {work}/jpeg256", "", 3),
    "raw256": Line("tools/shard_imagenet.py {work}/images {work}/raw256 --encoding raw", "", 3),
    "jpeg500": Line("tools/shard_imagenet.py {work}/images {work}/jpeg500 --resize none", "", 3),
}
TITLES = {
    "1": "Does it run?",
    "2": "The ceilings",
    "3": "The loader",
    "4": "The step",
    "5": "End to end",
    "6": "Peers",
}
ITEMS: dict[str, list[Line]] = {
    "1": [
        Line("-m benchmarks runs --workers 8", "--workers 2 --decoders image --pictures plain grey", 3),
        Line("-m pytest -q -m gpu tests/test_gpu.py", "--collect-only", 5),
        Line(
            "-m benchmarks ceilings --data {work}/jpeg256 {work}/jpeg500 --rounds 2 --prefetch 2 --batch-sizes 256 "
            "--hw-loads 0.65 --threads {cores} --decoders image image_crop image_random_crop",
            DECODERS,
            2,
        ),
    ],
    "2": [
        Line(
            "-m benchmarks ceilings --data {work}/jpeg256 {work}/jpeg500 --batches 60 --rounds 4",
            f"--hw-loads 0.65 {DECODERS}",
            8,
        )
    ],
    "3": [
        Line("-m benchmarks ceilings --finish --data {work}/jpeg256 --batches 100 --rounds 4", DECODERS, 4),
        Line(
            "-m benchmarks loader --data {work}/jpeg256 --batch-size 256 --batches 200 "
            "--augments paper torchvision modern",
            f"{LOADERS} --augments paper --crops random",
            4,
        ),
        Line("-m benchmarks loader --data {work}/raw256 --batch-size 256 --batches 60 --augments paper", LOADERS, 3),
        Line(
            "-m benchmarks loader --data {work}/jpeg256 --batch-size 256 --backends turbo --crops random "
            "--threads 1 2 4 8 {cores} --batches 100 --rounds 3",
            LOADERS,
            3,
        ),
    ],
    "4": [
        Line(f"{STEP} --batch-sizes 1024 --variants paper", STEPS, 4),
        Line("-m benchmarks kernels", "--batch-size 2 --steps 1", 2),
        Line(f"{STEP} --batch-sizes 1024 --variants one_weird_trick --conv1 direct", STEPS, 3),
        Line(f"{STEP} --batch-sizes 1024 --variants paper --compile graphs --cudnn-benchmark", STEPS, 2),
        Line(f"{STEP} --batch-sizes 256 --variants paper --compile on graphs", STEPS, 2),
        Line(f"{STEP} --batch-sizes 2048 --variants paper --compile on", STEPS, 2),
        Line(f"{STEP} --batch-sizes 1024 --variants paper --compile autotune", STEPS, 4),
    ],
    "5": [
        Line(
            f"-m benchmarks train --data {{work}}/jpeg256 {{work}}/raw256 --rounds 4 --batch-sizes {size}",
            TRAININGS,
            minutes,
        )
        for size, minutes in ((1024, 4), (256, 3), (2048, 4))
    ],
    "6": [
        Line(
            "-m benchmarks loader --peers --data {work}/jpeg256 --work {work}/peers --batch-size 256 --rounds 3",
            f"{LOADERS} --crops random",
            5,
        ),
        Line(
            "-m benchmarks train --peers --data {work}/jpeg256 --work {work}/peers --batch-sizes 256 --rounds 3",
            TRAININGS,
            4,
        ),
    ],
}


@dataclass(frozen=True)
class GpuOptions:
    """The commands of an item, run in turn within a time limit; their results together in a folder."""

    item: tyro.conf.Positional[Item]
    """1 does it run, 2 ceilings, 3 loader, 4 step, 5 end to end, 6 peers."""
    out: tyro.conf.Positional[Path]
    """Folder for ITEM.json and ITEM.md."""
    work: Path = Path("data/gpu")
    """Folder for the data, which are made if they are missing."""
    minutes: float = 8
    """Time for all commands; those that no longer fit are left out."""
    only: tuple[int, ...] = ()
    """Run only these of the item's commands, counted from 1."""
    quick: bool = False
    """Run at the smallest sizes, on small data of its own, to check that everything works."""

    def __post_init__(self) -> None:
        require(self.minutes > 0, f"--minutes is {self.minutes}, it must be above 0")
        count = len(ITEMS[self.item])
        require(
            set(self.only) <= set(range(1, count + 1)), f"--only takes numbers from 1 to {count} in item {self.item}"
        )

    @property
    def data(self) -> Path:
        return (self.work / ("quick" if self.quick else "full")).resolve()

    @property
    def lines(self) -> list[Line]:
        """The commands to run, preceded by those that make missing data."""
        chosen = [line for number, line in enumerate(ITEMS[self.item], 1) if not self.only or number in self.only]
        needed = " ".join(line.arguments for line in chosen)
        missing = {
            name: line for name, line in SHARDS.items() if name in needed and not self.has(f"{name}/manifest.json")
        }
        return [IMAGES] * bool(missing and not self.has("images")) + [*missing.values()] + chosen

    def has(self, name: str) -> bool:
        return (self.data / name).exists()


def run_gpu(options: GpuOptions) -> None:
    if not torch.cuda.is_available():
        print("there is no GPU here: this measures what the CPU can do, and each command says what it leaves out")
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    result = {"item": options.item, "title": TITLES[options.item], "quick": options.quick, "commands": done}
    for line in options.lines:
        done.append(execute(line, options, end))
        write_atomically(options.out / f"{options.item}.json", json.dumps(result, indent=1).encode() + b"\n")
    write_atomically(options.out / f"{options.item}.md", page([result]).encode())
    print(f"written to {options.out / options.item}.json and .md")


def arguments(line: Line, options: GpuOptions) -> list[str]:
    text = f"{line.arguments} {line.quick if options.quick else ''}"
    return shlex.split(text.format(work=shlex.quote(str(options.data)), cores=os.cpu_count() or 1))


def execute(line: Line, options: GpuOptions, end: float) -> dict[str, Any]:
    """Run a command. Return how it ended, the seconds it took, and its result or the end of its log."""
    given = arguments(line, options)
    found: dict[str, Any] = {"command": "python " + shlex.join(given)}
    left = end - time.monotonic()
    if left < LEAST_SECONDS:
        return found | {"ended": "before it began: no time was left"}
    print(f"\n== {found['command']}", flush=True)
    written, start = options.out.resolve() / "part.json", time.monotonic()
    written.unlink(missing_ok=True)
    to_file = ["--json", str(written)] if line.arguments.startswith("-m benchmarks ") else []
    code, log = finish(given + to_file, min(60 * line.minutes, left))
    print(log[-LOG_CHARACTERS:], flush=True)
    found |= {"ended": "well" if code == 0 else f"with {code}", "seconds": round(time.monotonic() - start, 1)}
    if not written.exists():
        return found | {"log": log[-LOG_CHARACTERS:]}
    found["result"] = json.loads(written.read_bytes())
    written.unlink()
    return found


def finish(given: list[str], limit: float) -> tuple[int | str, str]:
    """Run python. Return its exit code and its output.

    After ``limit`` seconds, kill it with all its descendants and return a message instead of the exit code.
    """
    process = subprocess.Popen(
        [sys.executable, *given],
        cwd=ROOT,
        env=with_project() | {"PYTHONUNBUFFERED": "1"},  # keeps the output of a killed command
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        log, _ = process.communicate(timeout=limit)
        return process.returncode, log
    except subprocess.TimeoutExpired:
        kill(process.pid)
        return f"no end in {limit:.0f} s", process.communicate()[0]
