"""The time to the first batch of a dataset of ImageNet's size: the manifest and the indices are read, the plan is made.

    python -m benchmarks first --data data/demo/shards --json benchmarks/results/first-cpu.json

Only turbo is measured: the shards are sparse files, with samples only where its first batches lie.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.engine import find_device
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline
from pipelines import load_manifest, open_loader
from pipelines.sharding.hashed_tar import HashedTar
from pipelines.shards.manifest import Shard, Split
from pipelines.shards.records import Records
from pipelines.terminal import in_range
from pipelines.turbo.randomness import epoch_order

SHARDS = (110, 11_647)  # shards, and samples in each
BATCHES, BATCH_SIZE = 5, 256


@dataclass(frozen=True)
class FirstOptions(MeasureOptions):
    """Seconds until the first batch of 1,281,170 samples is there."""

    data: Path = Path("data/demo/shards")
    """A shard folder, whose first image all samples have."""
    rounds: int = 5

    def __post_init__(self) -> None:
        in_range("rounds", self.rounds, 1)


def run_first(options: FirstOptions) -> Iterator[dict]:
    """Yield the settings and the seconds of each round, the first of which is not counted. Raises DataError."""
    deadline, device = Deadline.after(options.minutes), find_device(options.device)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        shards = of_imagenets_size(options.data, Path(folder, "shards"))
        for current in range(options.rounds + 1):
            if current > 1 and deadline.left() < max(seconds):
                break
            start = time.perf_counter()
            loader = open_loader(shards, "train", BATCH_SIZE, backend="turbo", device=device)
            next(iter(loader))
            seconds.append(round(time.perf_counter() - start, 3))
            loader.close()
            if current:
                yield {"benchmark": "first", "device": str(device), "rounds": options.rounds} | described(seconds[1:])


def described(seconds: list[float]) -> dict[str, Any]:
    samples, median = SHARDS[0] * SHARDS[1], float(np.median(seconds))
    row = {"name": "turbo", "seconds": seconds, "samples": samples, "batch_size": BATCH_SIZE, "rounds": len(seconds)}
    return {"rows": [row], "diagnosis": [f"the first batch of {samples:,} samples came after {median:.2f} s"]}


def sample_bytes(name: str, jpeg: bytes, label: bytes) -> bytes:
    buffer = io.BytesIO()
    tar = HashedTar(buffer)
    tar.add(name, "jpg", jpeg, label)
    return buffer.getvalue()


def of_imagenets_size(source: Path, out: Path) -> Path:
    """Write 1,281,170 samples in 110 shards: full indices, and sparse tars with only the first batches of epoch 0."""
    manifest, (shards, each) = load_manifest(source), SHARDS
    jpeg = Records(manifest, "train").read(0).data
    start, label = 512 + -(-len(jpeg) // 512) * 512, b"0" * manifest.label_width
    slot = len(sample_bytes("n00000000_000000", bytes(jpeg), label))
    wanted = np.sort(epoch_order(0, 0, shards * each)[: BATCHES * BATCH_SIZE + 16])
    made = []
    out.mkdir()
    for number in range(shards):
        path = out / f"train-{number:06d}.tar"
        with path.open("wb") as file:
            for sample in wanted[(wanted >= number * each) & (wanted < (number + 1) * each)].tolist():
                file.seek((sample - number * each) * slot)
                file.write(sample_bytes(f"n00000000_{sample % each:06d}", bytes(jpeg), label))
            file.truncate(each * slot)
        names = (f"n00000000_{row:06d}" for row in range(each))
        lines = (
            f"jpg {row * slot + 512} {len(jpeg)} {name}.jpg cls {row * slot + start + 512} {len(label)} {name}.cls\n"
            for row, name in enumerate(names)
        )
        path.with_suffix(".idx").write_text(f"v1.2 {each}\n" + "".join(lines))
        made.append(Shard(path.name, each, each * slot, ""))
    replace(manifest, folder=out, splits={"train": Split(shards * each, tuple(made))}).save()
    return out
