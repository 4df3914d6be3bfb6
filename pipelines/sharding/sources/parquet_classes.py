"""The classes that the labels of Hugging Face's parquet files stand for."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import sorted_classes
from pipelines.sharding.sources.spool import open_parquet
from pipelines.untrusted import parse_json

WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Row:
    file: str  # below SOURCE
    number: int
    name: str  # the image's own file name
    label: int
    wnid: str | None  # from the image's name


@dataclass(frozen=True)
class Classes:
    wnids: list[str]  # by index
    index: dict[int, int]  # label in the files -> index
    words: dict[str, str]


def class_names(path: Path) -> list[str]:
    """Return the class names that the datasets library stored in the schema, or none."""
    metadata = open_parquet(path).schema_arrow.metadata or {}
    try:
        return [str(name) for name in parse_json(metadata[b"huggingface"])["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def index_labels(folder: Path, rows: dict[str, list[Row]], names: list[str]) -> Classes:
    """Assign class indices by sorted wnids if image names or class names give wnids, else by labels.

    Raises DataError if labels, image names and class names contradict each other.
    """
    highest = max((row for split in rows.values() for row in split), key=lambda row: row.label)
    if names and highest.label >= len(names):
        where = f"{folder / highest.file}, row {highest.number}"
        raise DataError(f"{where}, has the label {highest.label}, but only {len(names)} classes have names")
    if all(row.wnid for row in next(iter(rows.values()))):
        known = _wnids_of_labels(folder, rows)
    elif names and all(WNID.fullmatch(name) for name in names) and len(set(names)) == len(names):
        known = dict(enumerate(names))
    else:
        names = names or [f"class{label}" for label in range(highest.label + 1)]
        wnids = [f"class{label}" for label in range(len(names))]
        return Classes(wnids, {label: label for label in range(len(names))}, dict(zip(wnids, names, strict=True)))
    present = {split: {known.get(row.label, f"label {row.label}") for row in found} for split, found in rows.items()}
    wnids = sorted_classes(present, folder)
    index = {label: wnids.index(wnid) for label, wnid in known.items() if wnid in present[next(iter(rows))]}
    return Classes(wnids, index, {known[label]: names[label] for label in index} if names else {})


def _wnids_of_labels(folder: Path, rows: dict[str, list[Row]]) -> dict[int, str]:
    known: dict[int, str] = {}
    labels: dict[str, int] = {}
    for row in (row for split in rows.values() for row in split if row.wnid):
        assert row.wnid is not None
        if known.setdefault(row.label, row.wnid) != row.wnid or labels.setdefault(row.wnid, row.label) != row.label:
            raise DataError(
                f"{folder / row.file}, row {row.number}: {row.name} is of {row.wnid} and has the label {row.label}, "
                "which other images contradict: download the files again"
            )
    return known
