"""The rate of a wheel's compiled part beside that of this checkout's, on the same samples in turn.

    python -m benchmarks.wheel dist/*.whl --data data/demo/shards --json benchmarks/results/wheel.json

The two differ in their libjpeg-turbo: the wheel's own is newer than most systems'. Seconds are those of the thread on
its core, so that other work on the machine counts for little. Pixels that differ are an error.
"""

import json
import shlex
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tyro

from benchmarks.harness.machine import machine
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines import Augment, DataError, load_manifest
from pipelines.files import write_atomically
from pipelines.shards.records import Records
from pipelines.terminal import in_range, run_command
from pipelines.turbo import native

OURS = "the checkout's"
LIBRARY = "pipelines/turbo/_native.abi3.so"
AT_ONCE = 16  # samples a call


@dataclass(frozen=True)
class Options:
    wheel: tyro.conf.Positional[Path]
    """The wheel."""
    data: Path = Path("data/demo/shards")
    """A shard folder."""
    images: int = 800
    """Images of a round."""
    rounds: int = 15
    json: Path | None = None
    """Write the result here too."""

    def __post_init__(self) -> None:
        in_range("images", self.images, AT_ONCE)
        in_range("rounds", self.rounds, 1)


def main(options: Options) -> None:
    theirs = library_of(options.wheel)
    rows: list[dict[str, Any]] = []
    for crop in ("random", "resized"):
        augment = Augment(crop=crop)
        ours, wheels = (rendering(options, augment, library) for library in (native.native_library(), theirs))
        if not np.array_equal(ours()[2], wheels()[2]):
            raise DataError(f"{options.wheel} gives other pixels than this checkout")
        candidates = {OURS: lambda take=ours: take()[:2], "the wheel's": lambda take=wheels: take()[:2]}
        for rates in interleave(candidates, options.rounds, Deadline()):
            found = summarise(rates, OURS)
        rows += [row | {"name": f"{row['name']}, {crop} crops"} for row in found]
    for row in rows:
        print(f"{row['name']:<30}{row['median']:>10} images/s of a core{row['ratio']:>8}")
    if options.json:
        about = {
            "benchmark": "wheel",
            "unit": "images/s of a core",
            "data": str(options.data),
            "wheel": options.wheel.name,
        }
        about["command"] = shlex.join(["python", "-m", "benchmarks.wheel", *sys.argv[1:]])
        result = machine() | about | {"images": options.images, "rows": rows}
        write_atomically(options.json, json.dumps(result, indent=1).encode() + b"\n")


def library_of(wheel: Path) -> Any:
    """Return the wheel's library, loaded. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = zipfile.ZipFile(wheel).extract(LIBRARY, folder)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{wheel} has no {LIBRARY}: {error}") from error
        library = native.load_library(path)
    if library is None or native.native_library() is None:
        raise DataError("both compiled parts must load here: make env builds the checkout's")
    return library


def rendering(options: Options, augment: Augment, library: Any) -> Callable[[], tuple[int, float, np.ndarray]]:
    """Return a function that renders a round. It returns the number of images, the seconds, and the last pixels."""
    manifest = load_manifest(options.data)
    records = Records(manifest, "train")
    with patch.object(native, "native_library", lambda: library):
        worker = native.Worker(records, manifest, augment, AT_ONCE)
    rng = np.random.default_rng(0)
    numbers = rng.integers(len(records), size=(options.images // AT_ONCE, AT_ONCE))
    draws, flips = rng.random((*numbers.shape, 40)), rng.random(numbers.shape) < 0.5
    out = np.zeros((AT_ONCE, augment.size, augment.size, 3), np.uint8)

    def take() -> tuple[int, float, np.ndarray]:
        start = time.thread_time()
        for some, drawn, flipped in zip(numbers.tolist(), draws, flips, strict=True):
            samples = worker.render(some, drawn, flipped, out)
        pixels = [out.copy(), *(part.copy() for _, part in worker.parts(samples))]
        return numbers.size, time.thread_time() - start, np.concatenate([part.reshape(-1) for part in pixels])

    return take


if __name__ == "__main__":
    run_command(main, Options, __doc__)
