"""How fast is sharding, beside its limits: a plain copy of the files, and decoding, resizing and encoding in memory.

    python -m benchmarks.corpus data/corpus && python -m benchmarks shard --data data/corpus [--peers]

Every candidate is a whole run on the train images, from the start of Python to its end. Under --resize none as large a
share of the images is decoded for the statistics as of ImageNet's. The peers are scripts under
benchmarks/peers that do the same work, each in its own format; benchmarks/peers/requirements.txt says what they need.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import interleave, summarise
from pipelines import DataError
from tools.terminal import require

STATISTICS_SHARE = 4096 / 1_281_167
ROOT = Path(__file__).parents[1]
COPY, MEMORY = "plain copy (the limit of none)", "decode, resize, encode (the limit of square)"


@dataclass(frozen=True)
class ShardOptions:
    """Images a second of sharding, as a ratio to what bounds it."""

    data: Path = Path("data/corpus")
    """A folder of images with train/; see benchmarks.corpus."""
    workers: int = os.cpu_count() or 1
    rounds: int = 5
    peers: bool = False
    """Measure webdataset's ShardWriter and LitData's optimize too."""
    json: Path | None = None
    """Write the result here too."""

    def __post_init__(self) -> None:
        for name in ("workers", "rounds"):
            require(getattr(self, name) >= 1, f"--{name} is {getattr(self, name)}, it starts at 1")


def run_shard(options: ShardOptions) -> dict:
    """The settings and a row a candidate, each with its ratio to the limit of its kind."""
    files = sorted(path for path in (options.data / "train").rglob("*") if path.is_file())
    if not files:
        raise DataError(f"no images below {options.data / 'train'}: python -m benchmarks.corpus {options.data}")
    folders = [str(options.data), "{out}", str(options.workers)]
    statistics = max(1, round(len(files) * STATISTICS_SHARE))
    tool = [
        "tools/shard_imagenet.py",
        str(options.data),
        "{out}",
        "--splits",
        "train",
        "--workers",
        str(options.workers),
    ]
    limited_by_copy: dict[str, Callable[[], int]] = {
        COPY: command(["benchmarks/shard_limits.py", "copy", *folders], len(files)),
        "shard --resize none": command([*tool, "--resize", "none", "--statistics-images", str(statistics)], len(files)),
    }
    limited_by_memory: dict[str, Callable[[], int]] = {
        MEMORY: command(["benchmarks/shard_limits.py", "memory", *folders], len(files)),
        "shard --resize square": command(tool, len(files)),
    }
    if options.peers:
        peers = {
            "webdataset, Pillow": ["shard_webdataset.py", *folders],
            "litdata, Pillow": ["shard_litdata.py", *folders],
            "webdataset, the libraries used here": ["shard_webdataset.py", *folders, "fast"],
        }
        for name, (script, *arguments) in peers.items():
            limited_by_memory[f"peer: {name}"] = command([f"benchmarks/peers/{script}", *arguments], len(files))
    rates = interleave(limited_by_copy | limited_by_memory, options.rounds)
    rows = [
        row
        for limit, group in ((COPY, limited_by_copy), (MEMORY, limited_by_memory))
        for row in summarise({name: rates[name] for name in group}, limit)
    ]
    mean_kb = round(sum(path.stat().st_size for path in files) / len(files) / 1000, 1)
    settings = {"images": len(files), "mean_kb": mean_kb, "workers": options.workers, "rounds": options.rounds}
    return {"benchmark": "shard", "unit": "images/s", "data": str(options.data), **settings, "rows": rows}


def command(arguments: list[str], images: int) -> Callable[[], int]:
    """Runs a script into a folder that is deleted afterwards."""

    def take() -> int:
        with tempfile.TemporaryDirectory(dir=ROOT / "data") as folder:
            line = [sys.executable, *(argument.format(out=Path(folder, "out")) for argument in arguments)]
            done = subprocess.run(
                line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
            )
        if done.returncode:
            raise DataError(f"{' '.join(line)} failed: {done.stderr.strip()[-500:]}")
        return images

    return take
