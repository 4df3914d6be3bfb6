"""The folders and words that stand for train, val and test."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import holds_pictures, subfolders

WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}


def split_in(name: str) -> str | None:
    """Return the one split that is a word of this name: train for Training, seg_train or train-images; else None."""
    found = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def split_folders(folder: Path, splits: Sequence[str]) -> dict[str, str]:
    """Return, for each of ``splits`` that has one, the path of its folder below ``folder``.

    That is the folder of this very name, else one of the same meaning in any case (Training, valid), else one that has
    such a word in its name (seg_train), if its pictures are in class folders; as a last resort, that of test for val.
    Raises DataError if there are two.
    """
    names = subfolders(folder)
    taken = {split: split for split in splits if split in names}
    for split, meaning in (*((split, split) for split in splits), ("val", "test")):
        for candidates in _candidates(folder, names, meaning):
            free = [name for name in candidates if name not in taken.values()]
            if split in taken or split not in splits or not free:
                continue
            if len(free) > 1:
                raise DataError(f"{folder} has {free[0]}/ and {free[1]}/: call the one to take {split}/")
            taken[split] = free[0]
    return {split: _inner(folder, name) for split, name in taken.items()}


def _candidates(folder: Path, names: Sequence[str], meaning: str) -> list[list[str]]:
    """Return the names that may stand for a split, the best first."""
    ranks = [[name for name in names if name.lower() == word] for word in WORDS.get(meaning, ())]
    return [*ranks, [name for name in names if split_in(name) == meaning and not holds_pictures(folder / name, 0)]]


def _inner(folder: Path, name: str) -> str:
    """Return the path of ``name``, or of its only folder if that is of the same split: train/train, as in some zips."""
    inner = subfolders(folder / name)
    same = len(inner) == 1 and split_in(inner[0]) is not None and split_in(inner[0]) == split_in(name)
    return f"{name}/{inner[0]}" if same else name
