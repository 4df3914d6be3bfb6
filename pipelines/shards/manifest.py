"""The manifest of a shard folder: what the folder holds, and errors if it does not.

``manifest.json`` is written last, so a folder that has one is complete. ``load_manifest`` checks everything that can
be checked without reading the shards; ``python tools/shard_imagenet.py --verify FOLDER`` reads everything.
A manifest at a URL is read through a cache, see pipelines/remote/.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.remote.url import remote_url
from pipelines.shards.checks import check_distinct, check_members, check_shard, check_split, first_repeated
from pipelines.untrusted import COMMANDS, coerce, printable, read_json, shown

FORMAT = 1
ENCODINGS = ("jpeg", "raw", "any")
RESIZES = ("square", "shorter", "none")
MEAN_IMAGE = "mean.npy"
MAX_SIZE = 4096  # pixels of the side that images are resized to
MAX_CLASSES = 100_000  # a network's last layer has 4096 weights for each


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, and what it must hold.

    ``index_sha256`` is that of the index, if another program wrote the tar: not every header tells its member's name.
    """

    path: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str = ""


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

    ``encoding``: ``jpeg``, or ``raw`` for ``.npy`` members of H,W,3 uint8 (only with ``square``: one shape for all), or
    ``any`` in shards that another program wrote: files of every format that ``read_picture`` reads (only ``none``).
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
        if self.encoding == "any" and self.resize != "none":
            raise ValueError(f"images of any encoding are as they came, not resized {self.resize}")
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

    ``checksums``: each image's tar header holds the CRC-32 of the sample. ``labels`` says what a label is: ``cls``,
    ``json:FIELD`` (a path with dots) or ``none``. ``extras`` are the extensions of the samples' other members.
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
    labels: str = "cls"
    extras: tuple[str, ...] = ()

    @cached_property
    def class_numbers(self) -> dict[str, int]:
        """The number of each class, by its wnid."""
        return {entry.wnid: number for number, entry in enumerate(self.classes)}

    @property
    def plain(self) -> bool:
        """True for shards of ``tools/shard_imagenet.py``: an image and a ``.cls`` of fixed width in each sample. False
        if another program wrote the tars, which ``--index`` then read."""
        return self.image.encoding != "any"

    @property
    def location(self) -> str:
        """The folder, or the URL of shards that are read through a cache."""
        return str(self.folder)

    @property
    def local(self) -> bool:
        """True if all shards are in ``folder``."""
        return True

    @property
    def fits(self) -> bool:
        """True if all shards are in ``folder``, or can be at a time."""
        return True

    def fetch(self, split: str) -> None:
        """Fetch all shards of a split that are not yet in ``folder``. Raises DataError."""

    def window(self, split: str) -> int | None:
        """Return how many shards an epoch's order mixes at a time; None if it mixes all."""
        return None

    def open_shard(self, shard: Shard, stopped: Callable[[], bool]) -> int:
        """Return a file descriptor of a shard. Raises OSError, and DataError if fetching it fails or is ``stopped``."""
        return os.open(self.folder / shard.path, os.O_RDONLY)

    def retry(self) -> None:
        """Forget which shards could not be fetched."""

    def close_shard(self, shard: Shard, file: int) -> None:
        """Close what ``open_shard`` returned."""
        os.close(file)

    def index_text(self, shard: Shard) -> bytes:
        """Return the index of a shard. Raises OSError, and DataError if it cannot be fetched."""
        return (self.folder / shard.path).with_suffix(".idx").read_bytes()

    @contextmanager
    def holding(self, shard: Shard) -> Iterator[Path]:
        """Yield the path of a shard, which stays in its place meanwhile, with its index beside it.

        A shard at a URL is fetched again, to be compared with what is there now.
        """
        yield self.folder / shard.path

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
        if self.plain:  # as before these fields existed
            del content["labels"], content["extras"]
            for shard in (shard for split in content["splits"].values() for shard in split["shards"]):
                del shard["index_sha256"]
        write_atomically(self.folder / "manifest.json", json.dumps(content, indent=1).encode() + b"\n")


def load_manifest(
    folder: str | Path, check_shards: bool = True, *, cache: str | Path | None = None, cache_gb: float | None = None
) -> Manifest:
    """Read FOLDER/manifest.json and check that each shard has its full length and an index. Raises DataError.

    A URL, and any folder if ``cache`` is given, is read through that cache (pipelines/remote/manifest.py); its shards
    are checked when they are fetched.
    """
    if cache or remote_url(folder):
        from pipelines.remote.manifest import load_remote

        return load_remote(folder, cache, cache_gb)
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        if (folder / ".work").is_dir():
            raise DataError(f"{folder} is unfinished: run the same tools/shard_imagenet.py command again to finish it")
        made = command("tools/shard_imagenet.py", "SOURCE", folder)
        indexed = command("tools/shard_imagenet.py", "--index", folder)
        raise DataError(f"no shards at {folder}: make them: {made}; if it holds tars that webdataset wrote: {indexed}")
    manifest = read_manifest(folder)
    if check_shards:
        for split in manifest.splits.values():
            for shard in split.shards:
                check_shard(folder, shard, manifest.plain)
    return manifest


def read_manifest(folder: Path, shown_as: str = "") -> Manifest:
    """Read FOLDER/manifest.json alone; in messages the folder is ``shown_as``, if given. Raises DataError."""
    path = folder / "manifest.json"
    try:
        return _parse(folder, read_json(path))
    except ValueError as error:
        raise DataError(
            f"{shown_as or folder}/manifest.json is damaged ({printable(str(error))[:300]}): make the shards again or "
            "restore the file"
        ) from error


def _parse(folder: Path, content: Any) -> Manifest:
    """Convert the manifest's JSON and check it. Raises ValueError."""
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT or found is True:
        raise ValueError(f"format is {shown(found)}, this version reads {FORMAT}")
    manifest: Manifest = coerce(content | {"folder": str(folder)}, Manifest, "manifest")
    check_members(manifest)
    if not (manifest.labels != "none") <= len(manifest.classes) <= MAX_CLASSES:
        raise ValueError(f"it lists {len(manifest.classes) or 'no'} classes; from 1 to {MAX_CLASSES} are allowed")
    odd = next((name for entry in manifest.classes for name in vars(entry).values() if COMMANDS.search(name)), None)
    if odd is not None:
        raise ValueError(f"the class name {odd[:40]!r} has control characters, which would reach a terminal")
    if not all({"split", "source"} <= entry.keys() for entry in (*manifest.repaired, *manifest.quarantined)):
        raise ValueError("it lists repaired or quarantined images without their split or source")
    wnids = [entry.wnid for entry in manifest.classes]
    if twice := first_repeated(wnids):
        raise ValueError(f"two classes are called {twice[:40]!r}")
    for name, split in manifest.splits.items():
        check_split(name, split, manifest.plain)
    check_distinct(manifest.splits)
    return manifest
