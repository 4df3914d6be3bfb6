"""The manifest of a shard folder: what the folder holds, and errors if it does not.

``manifest.json`` is written last, so a folder that has one is complete. ``load_manifest`` checks everything that can
be checked without reading the shards; ``python tools/shard_imagenet.py --verify FOLDER`` reads everything.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.untrusted import COMMANDS, coerce, printable, read_json, shown

FORMAT = 1
ENCODINGS = ("jpeg", "raw")
RESIZES = ("square", "shorter", "none")
SPLIT_NAME = re.compile(r"[a-z]{1,40}")
SHARD_NAME = re.compile(r"[a-z]+-[0-9]{6}\.tar")
MEAN_IMAGE = "mean.npy"
MAX_SIZE = 4096  # pixels of the side that images are resized to
MAX_CLASSES = 100_000  # a network's last layer has 4096 weights for each
SAMPLE_BYTES = 2048  # a sample's least size in a tar: two headers, an image and a label
NEVER_ALIKE = 16  # samples; a random order of so many is sorted once in 10**13 times
INDEX_LINE_BYTES = 300  # at most: two names of 100 bytes, four numbers


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, and what it must hold."""

    path: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    samples: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class ImageClass:
    wnid: str
    name: str


@dataclass(frozen=True)
class ImageFormat:
    """The format in which the images were written.

    ``encoding``: ``jpeg``, or ``raw`` for ``.npy`` members of H,W,3 uint8 (only with ``square``: one shape for all).
    ``resize`` and ``size``, in pixels: ``square``, images are size x size; ``shorter``, their shorter side is size;
    ``none``, they keep the size of the source, and loaders resize the shorter side to size.
    ``quality`` is that of the JPEGs that were encoded: all of them, or under ``none`` the repaired ones; 0 for
    ``raw``. ``restarts``: the JPEGs have restart markers, which let turbo skip parts of an image.
    """

    encoding: str
    resize: str
    size: int
    quality: int
    restarts: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS or self.resize not in RESIZES:
            raise ValueError(f"this version does not read {self.encoding} images resized {self.resize}")
        if self.encoding == "raw" and self.resize != "square":
            raise ValueError("raw images must be square, so that all have one shape")
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"images of {self.size} pixels a side; the size must be from 1 to {MAX_SIZE}")

    @property
    def extension(self) -> str:
        """File name extension of the image members, without a dot."""
        return "npy" if self.encoding == "raw" else "jpg"

    @property
    def mean_image_size(self) -> int | None:
        """Width and height of the mean image; None if there is none because the images differ in size."""
        return self.size if self.resize == "square" else None


@dataclass(frozen=True)
class Statistics:
    """Statistics over every pixel of ``images`` train images, before encoding, on the 0..255 scale.

    These are all train images, except under ``resize`` none, which decodes only a random few of them.

    ``eigenvalues`` (descending) and ``eigenvectors[channel][component]`` are those of the RGB covariance;
    ``mean_image`` names the file with the per-pixel mean (size,size,3 float32), if images are square.
    """

    mean_rgb: tuple[float, ...]
    std_rgb: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    eigenvectors: tuple[tuple[float, ...], ...]
    mean_image: str | None
    images: int = 0  # 0: an earlier version did not record it

    def __post_init__(self) -> None:
        colours = (*self.mean_rgb, *self.std_rgb)
        if len(self.mean_rgb) != 3 or len(self.std_rgb) != 3 or not all(0 <= value <= 255 for value in colours):
            raise ValueError(f"mean {self.mean_rgb} and deviation {self.std_rgb} cannot be those of RGB pixels")
        if len(self.eigenvalues) != 3 or not all(0 <= value < math.inf for value in self.eigenvalues):
            raise ValueError(f"eigenvalues {self.eigenvalues} cannot be those of a covariance")
        if [len(row) for row in self.eigenvectors] != [3] * 3 or not all(
            -2 < v < 2 for r in self.eigenvectors for v in r
        ):
            raise ValueError("the eigenvectors are not three by three numbers from -1 to 1")
        if self.mean_image not in (None, MEAN_IMAGE):
            raise ValueError(f"the mean image is called {self.mean_image!r} instead of {MEAN_IMAGE!r}")


@dataclass(frozen=True)
class Manifest:
    """A shard folder's contents. ``repaired`` and ``quarantined`` list source images by split, source and reason.

    ``checksums``: each image's tar header holds the CRC-32 of the sample.
    """

    folder: Path
    seed: int
    image: ImageFormat
    classes: tuple[ImageClass, ...]
    splits: dict[str, Split]
    statistics: Statistics
    repaired: tuple[dict[str, str], ...] = ()
    quarantined: tuple[dict[str, str], ...] = ()
    checksums: bool = False

    @property
    def label_width(self) -> int:
        """Number of digits in every ``.cls`` member."""
        return len(str(len(self.classes) - 1))

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise DataError(f"{self.folder} has no split {name!r}, only {', '.join(self.splits)}")
        return self.splits[name]

    def save(self) -> None:
        """Write ``manifest.json``, whole or not at all."""
        content = {"format": FORMAT} | dataclasses.asdict(self)
        del content["folder"]
        write_atomically(self.folder / "manifest.json", json.dumps(content, indent=1).encode() + b"\n")


def load_manifest(folder: str | Path, check_shards: bool = True) -> Manifest:
    """Read FOLDER/manifest.json and check that each shard has its full length and an index. Raises DataError."""
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        if (folder / ".work").is_dir():
            raise DataError(f"{folder} is unfinished: run the same tools/shard_imagenet.py command again to finish it")
        made = command("tools/shard_imagenet.py", "SOURCE", folder)
        raise DataError(f"no shards at {folder}: make them: {made}")
    try:
        manifest = _parse(folder, read_json(path))
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({printable(str(error))[:300]}): make the shards again or restore the file"
        ) from error
    if check_shards:
        for split in manifest.splits.values():
            for shard in split.shards:
                check_shard(folder, shard)
    return manifest


def _parse(folder: Path, content: Any) -> Manifest:
    """Convert the manifest's JSON and check it. Raises ValueError."""
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT or found is True:
        raise ValueError(f"format is {shown(found)}, this version reads {FORMAT}")
    manifest: Manifest = coerce(content | {"folder": str(folder)}, Manifest, "manifest")
    if not 1 <= len(manifest.classes) <= MAX_CLASSES:
        raise ValueError(f"it lists {len(manifest.classes) or 'no'} classes; from 1 to {MAX_CLASSES} are allowed")
    odd = next((name for entry in manifest.classes for name in vars(entry).values() if COMMANDS.search(name)), None)
    if odd is not None:
        raise ValueError(f"the class name {odd[:40]!r} has control characters, which would reach a terminal")
    if not all({"split", "source"} <= entry.keys() for entry in (*manifest.repaired, *manifest.quarantined)):
        raise ValueError("it lists repaired or quarantined images without their split or source")
    wnids = [entry.wnid for entry in manifest.classes]
    if twice := _first_repeated(wnids):
        raise ValueError(f"two classes are called {twice[:40]!r}")
    for name, split in manifest.splits.items():
        _check_split(name, split)
    _check_distinct(manifest.splits)
    return manifest


def _first_repeated(values: Sequence[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _check_distinct(splits: dict[str, Split]) -> None:
    """Raise ValueError for a shard that is listed twice, under one name or as a copy.

    The keys within a split are distinct, so two of its shards differ. Two splits may hold the same few images. If
    there are many, the random order of train makes their shards differ.
    """
    shards = [shard for split in splits.values() for shard in split.shards]
    if twice := _first_repeated([shard.path for shard in shards]):
        raise ValueError(f"{twice} is listed twice")
    within = (split.shards for split in splits.values())
    for some in (*within, [shard for shard in shards if shard.samples >= NEVER_ALIKE]):
        if twice := _first_repeated([shard.sha256 for shard in some]):
            first, second = [shard.path for shard in some if shard.sha256 == twice][:2]
            raise ValueError(f"{first} and {second} are the same file, with one sha256")


def _check_split(name: str, split: Split) -> None:
    """Raise ValueError for names that are paths, and for impossible counts."""
    if not SPLIT_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a split's name")
    for shard in split.shards:
        if not SHARD_NAME.fullmatch(shard.path):
            raise ValueError(f"{shard.path[:80]!r} is not a shard's name")
    if split.samples < 1 or split.samples != sum(shard.samples for shard in split.shards):
        raise ValueError(f"{name} does not have the {split.samples} samples it claims")
    for shard in split.shards:
        if not 1 <= shard.samples <= shard.bytes // SAMPLE_BYTES:
            raise ValueError(f"{shard.path} of {shard.bytes} bytes cannot hold {shard.samples} samples")


def check_shard(folder: Path, shard: Shard) -> None:
    """Raise DataError unless the shard has its full length and an index of as many samples."""
    remedy = "restore it, or write it again with the command that made it and --repair"
    path = folder / shard.path
    if not path.is_file():
        raise DataError(f"shard {path} is missing: {remedy}")
    if path.stat().st_size != shard.bytes:
        raise DataError(f"shard {path} has {path.stat().st_size} bytes instead of {shard.bytes}: {remedy}")
    index = path.with_suffix(".idx")
    if not index.is_file():
        raise DataError(f"index {index} is missing: {remedy}")
    if index.stat().st_size > INDEX_LINE_BYTES * (shard.samples + 1):
        raise DataError(f"index {index} is longer than one of {shard.samples} samples can be: {remedy}")
    with index.open("rb") as file:
        header = file.readline(100)
    if header != b"v1.2 %d\n" % shard.samples:
        raise DataError(f"index {index} does not list the {shard.samples} samples of its shard: {remedy}")
