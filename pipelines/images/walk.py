"""The pictures in and below a folder, and the other files there, counted by kind so that none is left out silently."""

import os
from collections import Counter
from pathlib import Path, PurePath

from pipelines.images.picture import SUFFIXES

# Copies, thumbnails and waste that macOS, NAS boxes and Windows put beside pictures.
JUNK_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"})


def kind_left_out(path: str) -> str | None:
    """Return None if a file of this name or relative path is taken for a picture, else its kind: ``.txt``,
    ``__MACOSX/``, ``hidden`` or ``without a suffix``."""
    *folders, name = PurePath(path).parts
    if junk := next(filter(is_junk_folder, folders), None):
        return f"{junk}/"
    if name.startswith("."):
        return "hidden"
    suffix = PurePath(name).suffix.lower()
    return None if suffix in SUFFIXES else suffix or "without a suffix"


def is_junk_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def walk(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return the pictures in and below ``folder``, as sorted paths relative to it, and the number of other files by
    kind.

    Links are followed, but no folder is read twice. Links that lead nowhere are listed: reading them fails, with a
    message. A sub-folder that cannot be read counts as a kind. Raises OSError if ``folder`` cannot be read.
    """
    found: list[str] = []
    left_out: Counter[str] = Counter()
    os.scandir(folder).close()  # os.walk reports no error by itself
    unreadable: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        below = os.path.relpath(place, folder)
        for name in files:
            path = name if below == "." else f"{below}/{name}"
            kind = kind_left_out(path)
            if kind is None:
                found.append(path)
            else:
                left_out[kind] += 1
    left_out.update({"unreadable folders": len(unreadable)} if unreadable else {})
    return sorted(found), left_out


def describe(left_out: Counter[str]) -> str:
    """Return the kinds and their numbers in words, the commonest first: "3 .txt, 2 hidden, 1 in __MACOSX/"."""
    return ", ".join(f"{count} {'in ' * kind.endswith('/')}{kind}" for kind, count in left_out.most_common())
