"""Where images come from: SOURCE/{train,val}/<wnid>/*.JPEG, the layout of ImageNet and of Imagenette."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.images import MAX_FILE_BYTES, SUFFIXES
from pipelines.shards import DataError, ImageClass

NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")  # lines "wnid words"; Kaggle, Caffe, WordNet
MAX_KEY_LENGTH = 80  # a USTAR member's name has 100 bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One source image: ``key`` names it in its shard, ``source`` tells a person where it comes from.

    Its bytes are the ``size`` bytes at ``offset`` of ``file``, a path below SOURCE; the whole file where size is None.
    """

    key: str
    source: str
    label: int
    file: str
    offset: int = 0
    size: int | None = None

    def read(self, folder: Path) -> bytes:
        """Raises DataError where there is more than an image has, OSError where the file cannot be read."""
        with open(f"{folder}/{self.file}", "rb", buffering=0) as file:  # noqa: PTH123  half the time of Path.open
            size = os.fstat(file.fileno()).st_size if self.size is None else self.size
            if size > MAX_FILE_BYTES:
                raise DataError(f"its {size} bytes are more than the {MAX_FILE_BYTES} allowed")
            return os.pread(file.fileno(), size, self.offset)


@dataclass(frozen=True)
class Source:
    classes: tuple[ImageClass, ...]
    splits: dict[str, tuple[Sample, ...]]


def find_images(folder: Path, splits: tuple[str, ...], seed: int) -> Source:
    """List the images of each split, train in a global permutation drawn from ``seed``, others by key.

    A class's index is the rank of its folder's name. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: name the one that holds train/ and val/")
    wnids = _class_folders(folder, splits)
    names = _class_names(folder)
    found = {split: _ordered(_list_split(folder, split, wnids), split, seed) for split in splits}
    return Source(tuple(ImageClass(wnid, names.get(wnid, wnid)) for wnid in wnids), found)


def _class_folders(folder: Path, splits: tuple[str, ...]) -> list[str]:
    """The class folders of the first split; the other splits may have no others."""
    found: dict[str, list[str]] = {}
    for split in splits:
        if not (folder / split).is_dir():
            raise DataError(f"no folder {folder / split}: make it, or leave {split} out with --splits")
        found[split] = sorted(p.name for p in (folder / split).iterdir() if p.is_dir() and not p.name.startswith("."))
        if not found[split]:
            raise DataError(f"{folder / split} has no class folders: expected {folder / split}/<class>/*.JPEG")
        unknown = sorted(set(found[split]) - set(found[splits[0]]))
        if unknown:
            raise DataError(f"{folder / split / unknown[0]} is a class that {splits[0]} does not have")
    return found[splits[0]]


def _class_names(folder: Path) -> dict[str, str]:
    for name in NAME_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            return dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    return {}


def _list_split(folder: Path, split: str, wnids: list[str]) -> list[Sample]:
    paths = [
        (path, label)
        for label, wnid in enumerate(wnids)
        if (folder / split / wnid).is_dir()
        for path in (folder / split / wnid).iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not paths:
        raise DataError(f"{folder / split} has no images ({', '.join(SUFFIXES)})")
    samples = []
    for path, label in paths:
        source = path.relative_to(folder).as_posix()
        samples.append(Sample(_key(path.stem), source, label, source))
    return _distinct(samples, wnids)


def _key(stem: str) -> str:
    """A webdataset key: its extension starts at the first dot, and an index separates fields by spaces."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:MAX_KEY_LENGTH]


def _distinct(samples: list[Sample], wnids: list[str]) -> list[Sample]:
    """Keys that occur more than once get their class in front, and where that is not enough a digest of the path."""
    for tell_apart in (
        lambda sample: _key(f"{wnids[sample.label]}_{sample.key}"),
        lambda sample: sample.key[: MAX_KEY_LENGTH - 9] + "_" + hashlib.sha256(sample.source.encode()).hexdigest()[:8],
    ):
        counts = Counter(sample.key for sample in samples)
        samples = [replace(s, key=tell_apart(s)) if counts[s.key] > 1 else s for s in samples]
    return samples


def _ordered(samples: list[Sample], split: str, seed: int) -> tuple[Sample, ...]:
    """Sorting by a digest is a permutation that no library's version can change."""
    if split != "train":
        return tuple(sorted(samples, key=lambda sample: sample.key))
    return tuple(sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest()))
