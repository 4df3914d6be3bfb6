"""One shard: images in, ``NAME.tar`` and ``NAME.idx`` out, bit-identical whoever writes it and whenever.

Each shard is a task: it is written under temporary names, renamed, and then recorded under ``.work/``. A resumed run
writes only the shards that have no record.
"""

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.files import temporary, write_atomically
from pipelines.images.limits import MAX_PIXELS
from pipelines.sharding.hashed_tar import HashedTar
from pipelines.sharding.members import make_member
from pipelines.sharding.sources import Sample
from pipelines.sharding.statistics import PixelSums
from pipelines.sharding.uploads import upload_shard
from pipelines.shards.manifest import ImageFormat, Shard, check_shard
from pipelines.untrusted import coerce, read_json

WORK = ".work"
# Errors of a single file. Others (too many open files, a lost network drive) concern the process or the whole source.
OF_ONE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO, errno.ENXIO}


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: ``name`` (train-000000), the samples in their order, and their format.

    ``measured`` are the positions of the samples that enter the statistics. An image of more than ``max_pixels`` is
    not decoded. With ``bucket``, a URL, the finished files go there and do not stay in ``out``.
    """

    name: str
    source: Path
    out: Path
    samples: tuple[Sample, ...]
    image: ImageFormat
    label_width: int
    measured: range = range(0)
    max_pixels: int = MAX_PIXELS
    bucket: str = ""

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
    def files(self) -> tuple[str, str]:
        """Names of the finished files."""
        return self.tar_path.name, self.index_path.name

    @property
    def record_path(self) -> Path:
        return self.out / WORK / f"{self.name}.json"

    @property
    def pixels_path(self) -> Path:
        return self.out / WORK / f"{self.name}.npz"


@dataclass(frozen=True)
class ShardRecord:
    """A finished task: its shard, and the source images that were repaired or quarantined."""

    shard: Shard
    source_bytes: int
    repaired: tuple[dict[str, str], ...]
    quarantined: tuple[dict[str, str], ...]


def read_record(task: ShardTask) -> ShardRecord | None:
    """Return the record of a shard, or None if the shard is missing or differs from its record."""
    try:
        record: ShardRecord = coerce(read_json(task.record_path), ShardRecord, "record")
        PixelSums(task.image.mean_image_size).merge(task.pixels_path)
        whole = bool(task.bucket) or _is_whole(task, record.shard)
    except (DataError, ValueError, OSError):
        return None
    samples = record.shard.samples
    whole &= samples + len(record.quarantined) == len(task.samples) and record.shard.path == task.tar_path.name
    return record if whole else None


def _is_whole(task: ShardTask, shard: Shard) -> bool:
    """Return true if the index has a line for each sample. Raises DataError, OSError if shard or index is missing."""
    check_shard(task.out, shard)
    index = task.index_path.read_bytes()
    return index.endswith(b"\n") and index.count(b"\n") == shard.samples + 1


def write_shard(task: ShardTask, note: Callable[[int, dict[str, str] | None], None] | None = None) -> None:
    """Write the shard, its index and its record. Call ``note`` with each sample's bytes, and its entry if quarantined.

    An image that cannot be read or used is quarantined: left out, and listed in the record. Raises OSError if writing
    fails, or if the whole source is gone.
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
                data = _read(sample, task.source)
                wanted = sums if place in task.measured else None
                index.append(_add_sample(tar, task, sample, data, sums=wanted, repaired=repaired))
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
    record = ShardRecord(shard, source_bytes, tuple(repaired), tuple(quarantined))
    content = json.dumps(dataclasses.asdict(record)).encode()
    if task.bucket:
        upload_shard(task, content)
    write_atomically(task.record_path, content)


def _read(sample: Sample, source: Path) -> bytes:
    """Read a source image. Raises DataError if this one cannot be read, OSError if the whole source cannot."""
    try:
        return sample.read(source)
    except OSError as error:
        if error.errno not in OF_ONE_FILE or (sample.size is not None and error.errno != errno.EIO):  # in an archive
            raise
        top = source / sample.file.partition("/")[0]
        if not top.exists() or (top.is_dir() and not any(top.iterdir())):  # an unmounted disk
            raise
        raise DataError(f"it cannot be read: {error.strerror}") from None


def _add_sample(
    tar: HashedTar,
    task: ShardTask,
    sample: Sample,
    data: bytes,
    *,
    sums: PixelSums | None,
    repaired: list[dict[str, str]],
) -> str:
    """Append the sample's members and return its line of the index. Raises DataError if it cannot be used."""
    suffix = os.path.splitext(sample.source)[1]  # noqa: PTH122  a tenth of the time of Path.suffix
    member = make_member(data, suffix, task.image, max_pixels=task.max_pixels, want_pixels=sums is not None)
    repaired += [{"split": task.split, "source": sample.source, "action": action} for action in member.repairs]
    if sums is not None and member.pixels is not None:
        sums.add(member.pixels)
    key, extension, label = sample.key, task.image.extension, b"%0*d" % (task.label_width, sample.label)
    image_start, label_start = tar.add(key, extension, member.data, label)
    return f"{extension} {image_start} {len(member.data)} {key}.{extension} cls {label_start} {len(label)} {key}.cls"
