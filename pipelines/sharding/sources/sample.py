"""What every layout gives: samples by file, offset and size, and the classes that they belong to."""

import importlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines.errors import DataError
from pipelines.images.picture import SUFFIXES
from pipelines.shards.records import read_at
from pipelines.untrusted import MAX_FILE_BYTES

MAX_KEY_LENGTH = 80  # a USTAR member's name has 100 bytes
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


class Sample(NamedTuple):
    """One source image: ``key`` names it in its shard, ``source`` tells a person where it comes from.

    Its bytes are the ``size`` bytes at ``offset`` of ``file``, a path below SOURCE; the whole file where size is None.
    In a layout that has to be spooled first, ``file`` is a parquet file and ``offset`` a row. (A tuple, because
    there are over a million: it takes a third of the time of a frozen dataclass to make.)
    """

    key: str
    source: str
    label: int
    file: str
    offset: int = 0
    size: int | None = None

    def read(self, folder: Path) -> bytes:
        """Read the sample's bytes. Raises DataError if they are too many or cut, OSError if they cannot be read."""
        file = os.open(f"{folder}/{self.file}", os.O_RDONLY | os.O_NONBLOCK)  # half the time of Path.open, and a pipe
        try:  # does not wait for its other end
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise DataError("it is no plain file")
            size = found.st_size if self.size is None else self.size
            if size > MAX_FILE_BYTES:
                raise DataError(f"its {size} bytes are more than the {MAX_FILE_BYTES} allowed")
            data = read_at(file, size, self.offset)
            if len(data) < size:
                raise DataError(f"it is cut off: {len(data)} of its {size} bytes are there")
            return data
        finally:
            os.close(file)


class Spool(Protocol):
    """For a source that cannot be read by offset."""

    def copy(self, samples: Sequence[Sample], work: Path) -> list[Sample]:
        """Copy the samples' bytes into plain files below ``work``; return the samples as found there, in this order."""

    def sizes(self, samples: Sequence[Sample]) -> list[int]:
        """Bytes of a few samples."""


@dataclass(frozen=True)
class Listing:
    """What a layout holds: its classes by index, their words, and the images of each split in any order."""

    wnids: Sequence[str]
    words: dict[str, str]
    splits: dict[str, list[Sample]]
    spool: Spool | None = None


def key_of(stem: str) -> str:
    """A webdataset key: its extension starts at the first dot, and an index separates fields by spaces."""
    return _NOT_IN_A_KEY.sub("_", stem)[:MAX_KEY_LENGTH]


def stem_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def is_image(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and dot + suffix.lower() in SUFFIXES


def image_names(folder: Path) -> Iterator[str]:
    """Names of the images in ``folder``, in the order of the disk. A dangling link counts: reading it will say so."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if is_image(entry.name) and not _is_folder(entry))


def class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return false also for a link that leads to itself, of which ``is_dir`` raises OSError."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def ranked(classes: Mapping[str, Collection[str]], folder: Path) -> list[str]:
    """Classes by index, sorted: those of the first split. Raises DataError where another split has others."""
    first, known = next((split, set(wnids)) for split, wnids in classes.items())
    for split, wnids in classes.items():
        unknown = sorted(set(wnids) - known)
        if unknown:
            raise DataError(
                f"{folder}: {split} has images of {unknown[0]}, a class that {first} does not have: "
                f"add it to {first}, or take {unknown[0]} out of {split}"
            )
    return sorted(known)


def read_words(path: Path) -> dict[str, str]:
    """Lines "wnid words", as in Kaggle's LOC_synset_mapping.txt."""
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def load_extra(module: str, wheel: str, why: str) -> Any:
    """Import what only one layout needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{why} takes {wheel}, which is not installed: pip install {wheel}") from None
