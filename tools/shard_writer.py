"""One shard: images in, ``NAME.tar`` and ``NAME.idx`` out, the same bytes whoever writes it and whenever.

A shard is a task of its own: it is written under temporary names, renamed, and then recorded under ``.work/``, so
that a run that was stopped goes on with the shards that have no record.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.limits import MAX_PIXELS
from pipelines.shards import DataError, ImageFormat, Shard, temporary, write_atomically
from tools.hashed_tar import HashedTar
from tools.image_members import make_member
from tools.pixel_statistics import PixelSums
from tools.sources import Sample

WORK = ".work"


@dataclass(frozen=True)
class ShardTask:
    """``name`` (train-000000), the samples in their order, and how to write them.

    ``measured`` are the places of those from which the statistics are taken. An image of more than ``max_pixels`` is
    not decoded.
    """

    name: str
    source: Path
    out: Path
    samples: tuple[Sample, ...]
    image: ImageFormat
    label_width: int
    measured: range = range(0)
    max_pixels: int = MAX_PIXELS

    @property
    def split(self) -> str:
        return self.name.rsplit("-", 1)[0]

    @property
    def tar_path(self) -> Path:
        return self.out / f"{self.name}.tar"

    @property
    def index_path(self) -> Path:
        return self.out / f"{self.name}.idx"

    @property
    def record_path(self) -> Path:
        return self.out / WORK / f"{self.name}.json"

    @property
    def pixels_path(self) -> Path:
        return self.out / WORK / f"{self.name}.npz"


def write_shard(task: ShardTask, note: Callable[[int, dict[str, str] | None], None] | None = None) -> None:
    """Write the shard, its index and its record; ``note`` is told of each sample's bytes, and its entry if quarantined.

    An image that cannot be used is left out and noted in the record. Raises OSError when the disk does.
    """
    repaired: list[dict[str, str]] = []
    quarantined: list[dict[str, str]] = []
    sums = PixelSums(task.image.mean_image_size)
    source_bytes = 0
    partial = temporary(task.tar_path)
    index = []
    with partial.open("wb") as file:
        tar = HashedTar(file)
        for place, sample in enumerate(task.samples):
            data, bad = b"", None
            try:
                data = sample.read(task.source)
                index.append(_add_sample(tar, task, sample, data, sums if place in task.measured else None, repaired))
            except DataError as error:
                bad = {"split": task.split, "source": sample.source, "reason": str(error)}
                quarantined.append(bad)
            source_bytes += len(data)
            if note:
                note(len(data), bad)
        tar.end()
        os.fsync(file.fileno())
    write_atomically(task.index_path, f"v1.2 {len(index)}\n{''.join(line + chr(10) for line in index)}".encode())
    partial.replace(task.tar_path)
    shard = Shard(task.tar_path.name, len(index), task.tar_path.stat().st_size, tar.digest)
    sums.save(task.pixels_path)
    found = {"repaired": repaired, "quarantined": quarantined}
    record = {"shard": vars(shard), "source_bytes": source_bytes} | found
    write_atomically(task.record_path, json.dumps(record).encode())


def _add_sample(
    tar: HashedTar,
    task: ShardTask,
    sample: Sample,
    data: bytes,
    sums: PixelSums | None,
    repaired: list[dict[str, str]],
) -> str:
    """Append the sample's members; returns its line of the index. Raises DataError where it cannot be used."""
    suffix = os.path.splitext(sample.source)[1]  # noqa: PTH122  a tenth of the time of Path.suffix
    member = make_member(data, suffix, task.image, task.max_pixels, sums is not None)
    repaired += [{"split": task.split, "source": sample.source, "action": action} for action in member.repairs]
    if sums is not None and member.pixels is not None:
        sums.add(member.pixels)
    key, extension, label = sample.key, task.image.extension, b"%0*d" % (task.label_width, sample.label)
    image_start, label_start = tar.add(key, extension, member.data, label)
    return f"{extension} {image_start} {len(member.data)} {key}.{extension} cls {label_start} {len(label)} {key}.cls"
