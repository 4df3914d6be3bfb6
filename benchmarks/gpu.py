"""The measurements for a machine with a GPU: an item's commands run in turn, their results in one file and one page.

    python -m benchmarks gpu correct OUT        # OUT/correct-h100-torch2.11.json and .md; docs/gpu.md has the items
    python -m benchmarks gpu step OUT --quick   # the same commands at the smallest sizes, without a GPU too

Every command is a process of its own with a time limit. Before it, a benchmark stops after a whole round; what it has
measured by then is kept, also if it crashes or is killed. Missing data are made first: random views of a few
photographs, each several times.
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
from benchmarks.harness.machine import result_path
from benchmarks.plots.page import page
from pipelines.files import write_atomically
from pipelines.terminal import require

LOG_CHARACTERS, SHOWN_CHARACTERS = 40_000, 4000
LEAST_SECONDS, BUSY = 10, 4  # with less left no command is started; a quick one may take so many times its limit
MEASURING = 0.8  # of a command's time; the rest is for its start and its end
Item = Literal["correct", "step", "train", "loader", "pieces", "ceilings", "peers", "tuning"]


class Line(NamedTuple):
    """A command: python's arguments, those that make it small, and the minutes after which it is killed."""

    arguments: str
    quick: str
    minutes: float


FEW = "--rounds 1 --batches 2 --threads 2"
DECODERS = f"--batch-sizes 8 --prefetch 2 --decoders image {FEW}"
LOADERS = f"--batch-size 8 --backends turbo --short {FEW}"
STEPS = "--batch-sizes 2 --steps 1 --rounds 1 --compile off --precisions fp32 --conv1 direct"
TRAININGS = "--batch-sizes 2 --images 2 --rounds 1 --threads 2 --backends turbo"
STEP = "-m benchmarks step --precisions bf16 --steps 50 --rounds 4"
TABLE = (
    "-m benchmarks ceilings --batch-sizes 256 --prefetch 2 --hw-loads 0.65 0 1 --threads {cores} 4 1 "
    "--decoders image --batches 10 --rounds 3"
)
IMAGES = Line("-m benchmarks.corpus {work}/images --images 4000 --copies 5", "--images 100 --copies 1", 2)
SHARD = "tools/shard_imagenet.py {work}/images {work}/"
SHARDS = {
    "jpeg256": Line(f"{SHARD}jpeg256 --no-restarts", "", 2),
    "raw256": Line(f"{SHARD}raw256 --encoding raw", "", 2),
    "jpeg500": Line(f"{SHARD}jpeg500 --resize none", "", 2),
    "marked256": Line(f"{SHARD}marked256", "", 2),
    "marked500": Line(f"{SHARD}marked500 --resize none --restarts", "", 2),
}
TITLES = {
    "correct": "Is it right, also under load?",
    "step": "The step",
    "train": "End to end",
    "loader": "The loader",
    "pieces": "JPEGs decoded on the GPU, piece by piece",
    "ceilings": "The ceilings and the decoders",
    "peers": "Peers",
    "tuning": "The step, other settings",
}
ITEMS: dict[str, list[Line]] = {
    "correct": [
        Line("-m pytest -v -rA --tb=short -m gpu {gpu_tests}", "--collect-only", 3),
        Line(
            "-m benchmarks pixels --data {work}/jpeg256 {work}/marked500",
            "--batch-size 8 --batches 2 --rounds 1 --backends turbo",
            1.5,
        ),
        Line(
            "-m benchmarks pixels --data {work}/marked256 --backends gpu",
            "--batch-size 8 --batches 2 --rounds 1",
            1,
        ),
        Line("-m benchmarks runs --workers 8", "--workers 2 --decoders torchvision --pictures plain grey", 1.5),
    ],
    "step": [
        Line(f"{STEP} --batch-sizes 1024 --variants paper --compile off on", STEPS, 3),
        Line("-m benchmarks kernels", "--batch-size 2 --steps 1", 1.5),
        Line(f"{STEP} --batch-sizes 1024 --variants ungrouped one_weird_trick --compile on --conv1 direct", STEPS, 1.8),
        Line(f"{STEP} --batch-sizes 256 --variants paper --compile graphs --conv1 direct", STEPS, 1.2),
    ],
    "train": [
        Line(
            f"-m benchmarks train --data {{work}}/jpeg256 {{work}}/raw256 --rounds 4 --batch-sizes {size}",
            TRAININGS,
            minutes,
        )
        for size, minutes in ((1024, 3), (256, 2))
    ],
    "loader": [
        Line(
            "-m benchmarks loader --data {work}/jpeg256 --batch-size 256 --batches 100 --rounds 3 "
            "--augments paper modern",
            f"{LOADERS} --augments paper --crops random",
            2.5,
        ),
        Line(
            "-m benchmarks loader --data {work}/jpeg256 --batch-size 256 --backends turbo --crops random "
            "--threads 1 4 {cores} --batches 60 --rounds 3",
            LOADERS,
            1.5,
        ),
        Line("-m benchmarks loader --data {work}/raw256 --batch-size 256 --batches 60 --crops random", LOADERS, 1),
        Line(
            "-m benchmarks ceilings --finish --data {work}/jpeg256 --batch-sizes 256 --batches 60 --rounds 3",
            DECODERS,
            1.5,
        ),
    ],
    "pieces": [
        Line("-m benchmarks pieces --data {work}/marked256", "--batch-size 8 --calls 1 --rounds 1", 1.5),
        Line(
            "-m benchmarks loader --data {work}/marked256 --backends gpu turbo --crops random --augments paper modern "
            "--threads 1 2 4 --batch-size 1024 --batches 60 --rounds 3",
            f"{LOADERS} --crops random --augments paper --backends gpu",
            3,
        ),
        Line(
            "-m benchmarks train --data {work}/marked256 --backends gpu gpu_resident --batch-sizes 1024 "
            "--threads 1 2 4 16 --rounds 3",
            f"{TRAININGS} --backends gpu gpu_resident",
            3,
        ),
    ],
    "ceilings": [
        Line(f"{TABLE} --data {{work}}/jpeg256 {{work}}/marked256", f"--hw-loads 0.65 {DECODERS}", 3),
        Line(f"{TABLE} --data {{work}}/jpeg500 {{work}}/marked500", f"--hw-loads 0.65 {DECODERS}", 3),
    ],
    "peers": [
        Line(
            "-m benchmarks loader --peers --data {work}/jpeg256 --work {work}/peers --batch-size 256 --rounds 2",
            f"{LOADERS} --crops random",
            3.5,
        ),
        Line(
            "-m benchmarks train --peers --data {work}/jpeg256 --work {work}/peers --batch-sizes 256 --rounds 3",
            TRAININGS,
            2.5,
        ),
    ],
    "tuning": [
        Line(f"{STEP} --batch-sizes 1024 --variants paper --compile graphs --cudnn-benchmark", STEPS, 2),
        Line(f"{STEP} --batch-sizes 2048 --variants paper --compile on", STEPS, 2),
        Line(f"{STEP} --batch-sizes 1024 --variants paper --compile autotune", STEPS, 3),
    ],
}


@dataclass(frozen=True)
class GpuOptions:
    """The commands of an item, run in turn within a time limit; their results together in a folder."""

    item: tyro.conf.Positional[Item]
    """correct (pixels under load, tests), step, train (end to end), loader, pieces (the backend gpu),
    ceilings (decoders), peers, tuning."""
    out: tyro.conf.Positional[Path]
    """Folder for ITEM-CARD-torchVERSION.json and .md."""
    work: Path = Path("data/gpu")
    """Folder for the data, which are made if they are missing."""
    minutes: float = 7.5
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
    path = result_path(options.out, options.item + "-quick" * options.quick)
    for line in options.lines:
        done.append(execute(line, options, end))
        write_atomically(path, json.dumps(result, indent=1).encode() + b"\n")
        write_atomically(path.with_suffix(".md"), page([result]).encode())
    print(f"written to {path} and {path.with_suffix('.md').name}")


def arguments(line: Line, options: GpuOptions) -> list[str]:
    text = f"{line.arguments} {line.quick if options.quick else ''}"
    tests = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    files = shlex.join(path.relative_to(ROOT).as_posix() for path in tests)
    return shlex.split(text.format(work=shlex.quote(str(options.data)), cores=os.cpu_count() or 1, gpu_tests=files))


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
    limit = min(60 * line.minutes * (BUSY if options.quick else 1), left)
    measuring = ["--minutes", f"{MEASURING * limit / 60:.2f}", "--json", str(written)]
    code, log = finish(given + measuring * line.arguments.startswith("-m benchmarks "), limit)
    print(log[-SHOWN_CHARACTERS:], flush=True)
    found |= {"ended": "well" if code == 0 else f"with {code}", "seconds": round(time.monotonic() - start, 1)}
    if code != 0 or not written.exists():
        found["log"] = log[-LOG_CHARACTERS:]
    if written.exists():
        found["result"] = json.loads(written.read_bytes())
        written.unlink()
        if found["result"]["partial"]:
            found["ended"] = f"in part, {found['ended']}"
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
