"""Pictures in any folders below SOURCE, and a CSV file with the label of each (``--labels``).

The columns are found by their names in its first line: one with the pictures' names, with or without folders and
suffix, one with the labels and, if there is one, one with the splits.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import kind, pictures_below
from pipelines.sharding.sources.finder import Row, located
from pipelines.sharding.sources.flat import Pictures
from pipelines.sharding.sources.folders import listing_of
from pipelines.sharding.sources.sample import Listing
from pipelines.sharding.sources.splits import SPLIT_OF
from pipelines.untrusted import MAX_FILE_BYTES, read_limited

# Names of columns in small letters, without spaces, - and _, the first that is there is taken
FILES = (
    *("filename", "file", "filepath", "imagename", "imagefile", "imagepath", "image", "imageid", "img", "imgname"),
    *("imgpath", "imgid", "picture", "pictureid", "photo", "photoid", "path", "id", "uuid", "name"),
)
LABELS = (
    *("label", "labels", "class", "classname", "classlabel", "labelname", "category", "categoryname", "target"),
    *("breed", "species", "variety", "type", "diagnosis", "dx", "classid", "labelid", "categoryid"),
)
SPLITS = ("split", "subset", "partition", "usage", "dataset", "set", "fold")


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file by split: None if it has no column of splits. ``notes`` say which columns were taken."""

    rows: dict[str | None, list[Row]]
    notes: tuple[str, ...]
    left_out: Counter[str]


def listing(folder: Path, splits: tuple[str, ...], labels: Path) -> Listing:
    """List the pictures that have a row in ``labels``, a path of its own or below ``folder``. Raises DataError."""
    file = labels if labels.is_file() else folder / labels
    if not file.is_file():
        raise DataError(f"--labels {labels}: there is no such file, nor {file}")
    table = read_table(file)
    chosen, notes = _rows_of_splits(table, splits, file)
    left_out = table.left_out
    paths = pictures_below(folder, "", left_out)
    if file.resolve().is_relative_to(folder.resolve()):
        left_out[kind(file.name)] -= 1
    rows = [row for some in table.rows.values() for row in some]
    split_of = {row[0]: split for split, some in chosen.items() for row in some}
    taken, repeated = located(rows, sorted(paths), file, folder)
    for one, other in repeated:
        if split_of.get(one[0]) != split_of.get(other[0]):
            raise DataError(
                f"{file}, line {other[0]}: {other[1]} is in another split in line {one[0]}: keep one of the two"
            )
    left_out[f"repeated rows in {file.name}"] += len(repeated)
    left_out[f"pictures without a row in {file.name}"] += len(paths) - len(taken)
    pictures: dict[str, Pictures] = {split: {} for split in chosen}
    for path, (line, _, label) in taken.items():
        if line in split_of:
            pictures[split_of[line]].setdefault(label, []).append(path)
    return listing_of(folder, pictures, (*table.notes, *notes), +left_out)


def _rows_of_splits(table: Table, splits: Sequence[str], file: Path) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows of each split that is asked for, and notes on other rows. Raises DataError if there are none."""
    if None in table.rows:
        if len(splits) > 1 and set(splits) != {"train", "val"}:
            raise DataError(f"{file} has no column of splits: --splits takes train val, or the one split it is")
        return {"train" if "train" in splits else splits[0]: table.rows[None]}, []
    by_name = {str(name): rows for name, rows in table.rows.items()}
    notes = []
    if "val" in splits and "val" not in by_name and "test" in by_name and "test" not in splits:
        by_name["val"] = by_name.pop("test")
        notes.append("the rows of test are taken as val")
    missing = [split for split in splits if split not in by_name and not (split == "val" and "train" in by_name)]
    if missing:
        raise DataError(
            f"{file} has the splits {', '.join(sorted(by_name))}, but no {missing[0]}: give those to take with --splits"
        )
    for name, rows in sorted(by_name.items()):
        if name not in splits:
            notes.append(f"rows of the split {name!r} are left out: {len(rows)}")
    return {split: by_name[split] for split in splits if split in by_name}, notes


def read_table(file: Path) -> Table:
    """Read a CSV file whose first line names its columns. Raises DataError."""
    (_, header), *lines = [*_lines(file)] or [(0, [])]
    columns = find_columns(header)
    if columns is None:
        raise DataError(
            f"{file} has the columns {', '.join(header) or 'of an empty file'}: its first line must name one with the "
            "pictures, such as filename, and one with the labels, such as label; rename them there"
        )
    _fill(lines, len(header), file)
    picture, label, split = columns
    if split is not None and not any(cells[split].lower() in SPLIT_OF for _, cells in lines):
        split = None  # such as the column dataset, with names of hospitals
    rows: dict[str | None, list[Row]] = {} if split is not None else {None: []}
    left_out: Counter[str] = Counter()
    for number, cells in lines:
        if not cells[picture]:
            raise DataError(f"{file}, line {number}: the column {header[picture]!r} is empty")
        if not cells[label]:
            left_out[f"rows of {file.name} without a label"] += 1
            continue
        name = None if split is None else SPLIT_OF.get(cells[split].lower(), cells[split].lower())
        rows.setdefault(name, []).append((number, cells[picture], cells[label]))
    if not any(rows.values()):
        raise DataError(f"{file} has no rows with a label")
    note = f"{file}: the pictures are in its column {header[picture]!r}, the labels in {header[label]!r}"
    return Table(rows, (note if split is None else f"{note}, the splits in {header[split]!r}",), left_out)


def _fill(lines: Sequence[tuple[int, list[str]]], columns: int, file: Path) -> None:
    """Fill short lines with empty cells. Raises DataError for one that is too long."""
    for number, cells in lines:
        cells += [""] * (columns - len(cells))
        if any(cells[columns:]):
            raise DataError(f"{file}, line {number}: {len(cells)} cells for {columns} columns: is a quote missing?")


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line that is not empty. Raises DataError."""
    try:
        text = read_limited(file, MAX_FILE_BYTES).decode("utf-8-sig", "replace")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{file} is no table in text: {error}") from None


def find_columns(header: Sequence[str]) -> tuple[int, int, int | None] | None:
    """Return the places of the columns of pictures, labels and, or None, splits; None if there are no such columns.

    If only one column besides the others is left, it is the one that has no known name.
    """
    plain = [re.sub(r"[\s_-]", "", name.lower()) for name in header]
    split = _first(plain, SPLITS)
    picture, label = _first(plain, FILES), _first(plain, LABELS)
    rest = [place for place in range(len(plain)) if place not in (split, picture, label)]
    if len(rest) == 1 and (picture is None) != (label is None):
        picture, label = (rest[0] if picture is None else picture), (rest[0] if label is None else label)
    return None if picture is None or label is None else (picture, label, split)


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)
