"""The rate of sharding, compared with references: a plain copy, and decoding, resizing and encoding in memory.

    python -m benchmarks.corpus data/corpus && python -m benchmarks shard --data data/corpus [--peers]

Every candidate is a whole run on the train images, from the start of Python to its end. Under --resize none, the share
of images decoded for the statistics is the same as for ImageNet. The peers are scripts under benchmarks/peers that do
the same work, each in its own format; benchmarks/peers/requirements.txt lists what they need.
"""

import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.children import ROOT, with_project
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines import DataError
from pipelines.terminal import in_range

STATISTICS_SHARE = 4096 / 1_281_167
COPY, MEMORY = "reference: plain copy", "reference: decode, resize, encode"


@dataclass(frozen=True)
class ShardOptions:
    """Images a second of sharding, and their ratio to a reference."""

    data: Path = Path("data/corpus")
    """A folder of images with train/; see benchmarks.corpus."""
    workers: int = os.cpu_count() or 1
    rounds: int = 5
    peers: bool = False
    """Measure webdataset's ShardWriter and LitData's optimize too."""
    json: Path | None = None
    """Write the result here too, after every round."""
    minutes: float = math.inf
    """Stop after a whole round if the next would not fit into this time."""

    def __post_init__(self) -> None:
        for name in ("workers", "rounds"):
            in_range(name, getattr(self, name), 1)


def run_shard(options: ShardOptions) -> Iterator[dict]:
    """Yield the settings and a row per candidate, with its ratio to the reference of its kind."""
    deadline = Deadline.after(options.minutes)
    files = sorted(path for path in (options.data / "train").rglob("*") if path.is_file())
    if not files:
        makes_some = shlex.join(["python", "-m", "benchmarks.corpus", str(options.data)])
        raise DataError(f"no images below {options.data / 'train'}: {makes_some}")
    beside = options.data.resolve().parent
    copying = {name: command(line, len(files), beside) for name, line in copying_lines(options, len(files)).items()}
    resizing = {name: command(line, len(files), beside) for name, line in resizing_lines(options).items()}
    mean_kb = round(sum(path.stat().st_size for path in files) / len(files) / 1000, 1)
    settings = {"images": len(files), "mean_kb": mean_kb, "workers": options.workers, "rounds": options.rounds}
    about = {"benchmark": "shard", "unit": "images/s", "data": str(options.data), **settings}
    for rates in interleave(copying | resizing, options.rounds, deadline):
        rows = [
            row
            for reference, group in ((COPY, copying), (MEMORY, resizing))
            for row in summarise({name: rates[name] for name in group}, reference)
        ]
        yield about | {"rows": rows}


def copying_lines(options: ShardOptions, images: int) -> dict[str, list[str]]:
    """Return the command lines of the candidates that leave images as they are."""
    statistics = max(1, round(images * STATISTICS_SHARE))
    return {
        COPY: ["benchmarks/harness/shard_references.py", "copy", *folders(options)],
        "shard --resize none": [*tool(options), "--resize", "none", "--statistics-images", str(statistics)],
    }


def resizing_lines(options: ShardOptions) -> dict[str, list[str]]:
    """Return the command lines of the candidates that decode, resize and encode images."""
    found = {
        MEMORY: ["benchmarks/harness/shard_references.py", "memory", *folders(options)],
        "shard --resize square": tool(options),
    }
    if options.peers:
        peers = "benchmarks/peers/shard_"
        found |= {
            "peer: webdataset, Pillow": [f"{peers}webdataset.py", *folders(options)],
            "peer: litdata, Pillow": [f"{peers}litdata.py", *folders(options)],
            "peer: webdataset, the libraries used here": [f"{peers}webdataset.py", *folders(options), "fast"],
        }
    return found


def folders(options: ShardOptions) -> list[str]:
    return [str(options.data.resolve()), "{out}", str(options.workers)]


def tool(options: ShardOptions) -> list[str]:
    workers = ["--workers", str(options.workers)]
    return ["tools/shard_imagenet.py", str(options.data.resolve()), "{out}", "--splits", "train", *workers]


def command(arguments: list[str], images: int, beside: Path) -> Callable[[], int]:
    """Return a function that runs a script into a temporary folder in ``beside`` and returns the number of images."""

    def take() -> int:
        with tempfile.TemporaryDirectory(dir=beside) as folder:
            line = [sys.executable, *(argument.format(out=Path(folder, "out")) for argument in arguments)]
            done = subprocess.run(line, cwd=ROOT, env=with_project(), capture_output=True, text=True)
        if done.returncode:
            raise DataError(f"{' '.join(line)} failed: {done.stderr.strip()[-500:]}")
        return images

    return take
