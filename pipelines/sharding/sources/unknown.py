"""A description of a folder in no known layout, and the command that takes it or a part of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.images.walk import counted, pictures_below, subfolders
from pipelines.sharding.sources.finder import Finder
from pipelines.sharding.sources.splits import split_in
from pipelines.sharding.sources.table import read_table

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def describe(folder: Path, out: Path, looked_for: str, recognise: Callable[[Path], list[str]]) -> str:
    """Return what ``folder`` holds and the command that takes it with ``out``. ``recognise`` lists a folder's layouts.

    Tries the folders in it and in these, and the CSV files.
    """
    others: Counter[str] = Counter()
    pictures = pictures_below(folder, "", others)
    places = {path.rpartition("/")[0] for path in pictures}
    where = f" in {len(places)} folder{'s' if len(places) > 1 else ''}" if pictures else ""
    held = [f"{len(pictures)} pictures{where}"] if pictures else []
    held += [counted(others)] if others else []
    found = f"{folder} holds {' and '.join(held) or 'no files'}, in no layout that is known"
    for inner in _folders(folder):
        try:
            layouts = recognise(inner)
        except DataError:
            continue
        if len(layouts) == 1:
            return f"{found}; {inner} has the layout {layouts[0]}: {_command(inner, out)}"
    if pictures and (table := _table(folder, pictures)):
        return f"{found}; {table.name} has their labels: {_command(folder, out, '--labels', table)}"
    if not pictures and any(others[suffix] for suffix in ARCHIVES):
        found += "; unpack the archives first, unless they are ImageNet's own"
    if not pictures and others[".tar"]:
        found += f", or webdataset wrote them: {command('tools/shard_imagenet.py', '--index', folder)}"
    if pictures:
        return (
            f"{found}: a picture's class is the name of its folder; make {folder}/<class>/, or "
            f"{folder}/train/<class>/ and {folder}/val/<class>/, or a CSV file with the columns filename,label and "
            f"run {_command(folder, out, '--labels', 'labels.csv')}"
        )
    return f"{found}; looked for: {looked_for}"


def _command(folder: Path, out: Path, *arguments: object) -> str:
    return command("tools/shard_imagenet.py", folder, out, *arguments)


def _folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, and in these, except those in a split's."""
    first = [folder / name for name in subfolders(folder)]
    return first + [path / name for path in first if split_in(path.name) is None for name in subfolders(path)]


def _table(folder: Path, pictures: Sequence[str]) -> Path | None:
    """Return the CSV file in ``folder``, or in the folders in it, that has the labels of most of the pictures."""
    finder, best = Finder(pictures), (0, folder)
    for file in sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")]):
        try:
            table = read_table(file)
        except (DataError, OSError):
            continue
        hits = sum(len(finder.find(name)) == 1 for rows in table.rows.values() for _, name, _ in rows)
        if hits > best[0]:
            best = hits, file
    return best[1] if best[0] else None
