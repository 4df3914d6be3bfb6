"""A val for datasets without one: a share of each class's train images, drawn with the seed.

Each image has a place by a digest of seed and path, and the first of a class are its val. So neither the order of the
disk nor other classes matter, and a new image moves at most one other. Files of the same bytes stay together.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import some
from pipelines.sharding.sources.sample import Sample

VAL_SHARE = 0.1
BLOCK = 4096  # bytes in the middle of files of one size, which are compared first


def divide(
    folder: Path, samples: Sequence[Sample], share: float, seed: int, wnids: Sequence[str]
) -> tuple[list[Sample], list[Sample], list[str]]:
    """Return train, val and notes on the division. Each image is in one of the two. Raises DataError if val is empty.

    A class of n images gives ``share`` * n of them, rounded, at least one and at most n - 1. Files of the same bytes
    in one class are on one side; those in several classes, whose labels contradict each other, are in train.
    """
    units: dict[int, list[list[Sample]]] = defaultdict(list)  # of each class: images that stay together
    contradictory = []
    for unit in together(folder, samples):
        if len({sample.label for sample in unit}) > 1:
            contradictory += unit
        else:
            units[unit[0].label].append(unit)
    sizes: dict[int, int] = defaultdict(int)
    for sample in samples:
        sizes[sample.label] += 1
    val = [sample for label in sorted(units) for sample in _first(units[label], _wanted(sizes[label], share), seed)]
    if not val:
        raise DataError(f"{folder} has no class with two pictures to divide into train and val: give --splits train")
    without = [wnids[label] for label in sizes if label not in {sample.label for sample in val}]
    notes = [f"val is {share:.3g} of the pictures of each class, drawn with seed {seed} (--val-share, --seed)"]
    if without:
        notes.append(f"classes with too few pictures to give one to val: {len(without)} ({some(without)})")
    if contradictory:
        named = some([sample.source for sample in contradictory], 4)
        notes.append(f"the same bytes in several classes, kept in train: {len(contradictory)} pictures ({named})")
    chosen = {sample.source for sample in val}
    return [sample for sample in samples if sample.source not in chosen], val, notes


def _wanted(images: int, share: float) -> int:
    return min(images - 1, max(1, int(images * share + 0.5)))


def _first(units: Iterable[list[Sample]], wanted: int, seed: int) -> list[Sample]:
    """Return up to ``wanted`` samples: those of the first units by digest that are not too large."""

    def place(unit: list[Sample]) -> bytes:
        names = (f"{seed}/val/{sample.source}".encode(errors="surrogateescape") for sample in unit)
        return min(hashlib.sha256(name).digest() for name in names)

    taken: list[Sample] = []
    for unit in sorted(units, key=place):
        if len(taken) + len(unit) <= wanted:
            taken += unit
    return taken


def together(folder: Path, samples: Sequence[Sample]) -> list[list[Sample]]:
    """Group the files of the same bytes; most groups are of one. Only files of one size are opened.

    Of these, a block in the middle is compared first, and all bytes only if that is the same.
    """
    alike: list[Callable[[Path], Hashable]] = [_size, _middle, _digest]
    alone, groups = [], [list(samples)]
    for same in alike:
        finer: dict[Hashable, list[Sample]] = defaultdict(list)
        for number, group in enumerate(groups):
            for sample in group:
                try:
                    finer[number, same(folder / sample.file)].append(sample)
                except OSError:  # it will be quarantined
                    alone.append([sample])
        alone += [group for group in finer.values() if len(group) == 1]
        groups = [group for group in finer.values() if len(group) > 1]
    return alone + groups


def _size(path: Path) -> int:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no plain file")
    return found.st_size


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        return file.read(BLOCK)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
