"""The pictures in and below a folder, and a count by kind of the files that are left out."""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.picture import SUFFIXES

# Folders that systems and programs make, in small letters, besides those whose names begin with a dot
JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
DEEPEST = 30  # folders in folders: a link to a folder above it would never end
KINDS_SHOWN = 12


def is_image(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and dot + suffix.lower() in SUFFIXES


def is_junk(name: str) -> bool:
    """Return true for a folder that belongs to a system or a program, such as __MACOSX, @eaDir or .git."""
    return name.startswith(".") or name.lower() in JUNK


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return true for a folder, and false also for a link to itself, for which ``is_dir`` raises OSError."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted, without those of systems and programs."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_junk(entry.name))


def pictures_below(folder: Path, path: str, left_out: Counter[str], depth: int = 0) -> list[str]:
    """Return the paths below ``folder`` of the pictures in ``folder``/``path`` and its sub-folders, and count the rest.

    Dangling links count as pictures: reading them will fail. Raises DataError for a link that leads in a circle.
    """
    if depth > DEEPEST:
        raise DataError(f"{folder / path}: folders are nested {DEEPEST} deep; is one a link to a folder above it?")
    pictures, inner, start = [], [], f"{path}/" if path else ""
    with os.scandir(f"{folder}/{path}") as entries:
        for entry in entries:
            name = entry.name
            if is_folder(entry):
                inner.append(name)
            elif is_image(name):
                pictures.append(start + name)
            else:
                left_out[kind(name)] += 1
    for name in inner:
        if is_junk(name):
            leave_out(folder / path / name, left_out)
        else:
            pictures += pictures_below(folder, start + name, left_out, depth + 1)
    return pictures


def holds_pictures(folder: Path, depth: int = DEEPEST) -> bool:
    """Return true if there is a picture in ``folder`` or, at most ``depth`` folders deeper, below it."""
    with os.scandir(folder) as entries:
        inner = []
        for entry in entries:
            if is_folder(entry):
                inner.append(entry.name)
            elif is_image(entry.name):
                return True
    return depth > 0 and any(holds_pictures(folder / name, depth - 1) for name in inner if not is_junk(name))


def leave_out(folder: Path, left_out: Counter[str]) -> None:
    """Count all files below ``folder`` as left out in it."""
    if files := sum(len(names) for _, _, names in os.walk(folder)):
        left_out[f"in {folder.name}/"] += files


def leave_out_beside(folder: Path, used: Collection[str], left_out: Counter[str]) -> None:
    """Count what is in ``folder`` besides the files and folders in ``used``."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in used:
                continue
            if is_folder(entry):
                leave_out(folder / entry.name, left_out)
            else:
                left_out[f"{kind(entry.name)} in no class folder" if is_image(entry.name) else kind(entry.name)] += 1


def kind(name: str) -> str:
    """Return what a file that is left out is counted as: its suffix, in small letters."""
    if name.startswith("."):
        return "hidden"
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower()[:20] if dot else "without a suffix"


def counted(left_out: Counter[str]) -> str:
    """Return a text such as "12 .txt, 3 in __MACOSX/", the most frequent kinds first."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in kinds[KINDS_SHOWN:])
    shown = [f"{count} {name}" for name, count in kinds[:KINDS_SHOWN]]
    return ", ".join([*shown, f"{rest} of {len(kinds) - KINDS_SHOWN} other kinds"] if rest else shown)


def some(names: Collection[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
