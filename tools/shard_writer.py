"""One shard: images in, ``NAME.tar`` and ``NAME.idx`` out, the same bytes whoever writes it and whenever.

A shard is a task of its own: it is written under temporary names, renamed, and then recorded under ``.work/``, so
that a run that was stopped goes on with the shards that have no record.
"""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.images import read_picture, square
from pipelines.shards import DataError, ImageFormat, Shard, write_atomically
from tools.sources import Sample

WORK = ".work"


@dataclass(frozen=True)
class ShardTask:
    """``name`` (train-000000), the samples in their order, and how to write them."""

    name: str
    source: Path
    out: Path
    samples: tuple[Sample, ...]
    image: ImageFormat
    label_width: int

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


class PixelSums:
    """Sums over pixels in whole numbers, so that no order of adding changes a digit."""

    def __init__(self, size: int) -> None:
        self.images = 0
        self.pixels = np.zeros((size, size, 3), np.int64)  # sum over images
        self.products = np.zeros((3, 3), np.int64)  # sum of r*r, r*g, ... over images and pixels

    def add(self, pixels: np.ndarray) -> None:
        """``pixels`` H,W,3 uint8. A float64 product of one image's bytes is exact: it stays below 2**53."""
        self.images += 1
        self.pixels += pixels
        flat = pixels.reshape(-1, 3).astype(np.float64)
        self.products += (flat.T @ flat).astype(np.int64)

    def merge(self, images: int, pixels: np.ndarray, products: np.ndarray) -> None:
        self.images += images
        self.pixels += pixels
        self.products += products


def write_shard(task: ShardTask, progress) -> None:
    """Write the shard, its index and its record; ``progress(images)`` is called as it goes.

    An image that cannot be decoded is left out and noted in the record. Raises OSError when the disk does.
    """
    repaired, quarantined = [], []
    sums = PixelSums(task.image.size)
    partial = task.tar_path.with_suffix(".tar.tmp")
    index = []
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in task.samples:
            where = {"split": task.split, "source": sample.source}
            try:
                picture = read_picture(sample.read(task.source), Path(sample.source).suffix)
            except DataError as error:
                quarantined.append(where | {"reason": str(error)})
            else:
                repaired += [where | {"action": action} for action in picture.repairs]
                image = square(picture.image, task.image.size)
                sums.add(np.asarray(image))
                members = {"jpg": encode(image, task.image.quality), "cls": b"%0*d" % (task.label_width, sample.label)}
                index.append(" ".join(_add(tar, sample.key, ext, data) for ext, data in members.items()))
            progress(1)
    write_atomically(task.index_path, f"v1.2 {len(index)}\n{''.join(line + chr(10) for line in index)}".encode())
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    partial.replace(task.tar_path)
    shard = Shard(task.tar_path.name, len(index), task.tar_path.stat().st_size, digest)
    with task.pixels_path.open("wb") as file:
        np.savez(file, images=sums.images, pixels=sums.pixels, products=sums.products)
    record = {"shard": vars(shard), "repaired": repaired, "quarantined": quarantined}
    write_atomically(task.record_path, json.dumps(record).encode())


def encode(image: Image.Image, quality: int) -> bytes:
    """A baseline 4:2:0 JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> str:
    """Append a member without owner, mode or time of this machine; return its entry in the index."""
    member = tarfile.TarInfo(f"{key}.{extension}")
    member.size, member.mode = len(data), 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return f"{extension} {offset} {len(data)} {member.name}"
