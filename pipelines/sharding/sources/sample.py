"""The listing that every layout returns: samples by file, offset and size, and their classes."""

import importlib
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines.errors import DataError
from pipelines.shards.records import read_at
from pipelines.untrusted import MAX_FILE_BYTES

MAX_KEY_LENGTH = 80  # a USTAR member's name has 100 bytes
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


class Sample(NamedTuple):
    """A source image: ``key`` names it in its shard, ``source`` names its origin for people.

    Its bytes are the ``size`` bytes at ``offset`` of ``file``, a path below SOURCE; the whole file if size is None.
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
        """Read the sample's bytes. Raises DataError if they are too many or cut off, OSError if unreadable."""
        file = os.open(f"{folder}/{self.file}", os.O_RDONLY | os.O_NONBLOCK)  # half the time of Path.open
        try:  # O_NONBLOCK: opening a pipe does not wait for a writer
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
    """A copier for a source that cannot be read by offset."""

    def copy(self, samples: Sequence[Sample], work: Path) -> list[Sample]:
        """Copy the samples' bytes into plain files below ``work``. Return the samples as found there, in this order."""

    def sizes(self, samples: Sequence[Sample]) -> list[int]:
        """Return the size of each of a few samples in bytes."""


@dataclass(frozen=True)
class Listing:
    """A layout's classes by index, their words, and the images of each split in any order.

    ``notes`` tell the user how the layout was understood; ``left_out`` counts the files that were not taken, by kind.
    """

    wnids: Sequence[str]
    words: dict[str, str]
    splits: dict[str, list[Sample]]
    spool: Spool | None = None
    notes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)


def key_of(stem: str) -> str:
    """Return a webdataset key: no dot, which would start the extension, and no space, which separates index fields."""
    return _NOT_IN_A_KEY.sub("_", stem)[:MAX_KEY_LENGTH]


def stem_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def in_order(names: Collection[str]) -> list[str]:
    """Return class names sorted, by number if all are numbers: 2 before 10."""
    numbers = all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def samples_of(pictures: Mapping[str, Sequence[str]], wnids: Sequence[str]) -> list[Sample]:
    """Return the samples of the ``pictures`` of each class, paths below SOURCE."""
    return [
        Sample(key_of(stem_of(path.rpartition("/")[2])), path, label, path)
        for label, wnid in enumerate(wnids)
        for path in pictures.get(wnid, ())
    ]


def sorted_classes(classes: Mapping[str, Collection[str]], folder: Path) -> list[str]:
    """Return the classes by index: the first split's, in order. Raises DataError if another split has others."""
    first, known = next((split, set(wnids)) for split, wnids in classes.items())
    for split, wnids in classes.items():
        unknown = sorted(set(wnids) - known)
        if unknown:
            raise DataError(
                f"{folder}: {split} has images of {unknown[0]}, a class that {first} does not have: "
                f"add it to {first}, or take {unknown[0]} out of {split}"
            )
    return in_order(known)


def read_words(path: Path) -> dict[str, str]:
    """Read lines "wnid words", as in Kaggle's LOC_synset_mapping.txt."""
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def load_extra(module: str, extra: str, why: str) -> Any:
    """Import a module that only one layout needs. Raises DataError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise DataError(f"{why} needs {package}: pip install 'alexnet-pipelines[{extra}]'") from None
