"""Hugging Face's parquet files, ``train-00000-of-00294.parquet`` and ``validation-...``, in SOURCE or SOURCE/data.

An image can only be read together with its whole row group, but the global permutation needs images from everywhere
at once. So names and labels are read first, which is quick. Then ``ParquetSpool`` copies the chosen images, in one
sequential pass, into plain files that are read by offset. These take as much disk as the images, about 150 GB for all
of ImageNet, under OUT/.work/spool until the shards are done.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.errors import DataError
from pipelines.sharding.sources.parquet_classes import Row, class_names, index_labels
from pipelines.sharding.sources.sample import Listing, Sample, key_of, stem_of
from pipelines.sharding.sources.spool import ParquetSpool, open_parquet, readable

LOOKED_FOR = "train-*.parquet and validation-*.parquet, there or in data/"
SPLIT_NAMES = {"val": "val|valid|validation"}
PART = re.compile(r"-\d{5}-of-(\d{5})")
WNID_BEHIND = re.compile(r"_(n\d{8})$")
WNID_IN_FRONT = re.compile(r"(n\d{8})_")


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    return any(_files(folder / place, split) for place in ("", "data") for split in splits)


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    files = {split: _split_files(folder, split) for split in splits}
    rows = {split: [row for path in paths for row in _read_rows(folder, path)] for split, paths in files.items()}
    for split, found_rows in rows.items():
        if not found_rows:
            raise DataError(f"{files[split][0]} and the files beside it have no rows: download {split} again")
    classes = index_labels(folder, rows, class_names(files[splits[0]][0]))
    samples = {split: [_sample(row, classes.index[row.label]) for row in rows.pop(split)] for split in splits}
    return Listing(classes.wnids, classes.words, samples, ParquetSpool(folder))


def _sample(row: Row, label: int) -> Sample:
    return Sample(key_of(stem_of(row.name)), f"{row.file}/{row.number}/{row.name}", label, row.file, offset=row.number)


def _files(folder: Path, split: str) -> list[Path]:
    name = re.compile(rf"(?:{SPLIT_NAMES.get(split, split)})(?:-[\w-]*)?\.parquet")
    return sorted(path for path in folder.glob("*.parquet") if name.fullmatch(path.name))


def _split_files(folder: Path, split: str) -> list[Path]:
    """List the files of a split. Raises DataError unless all are in one place and none is missing."""
    places = [files for place in ("", "data") if (files := _files(folder / place, split))]
    if not places:
        raise DataError(f"{folder} has no parquet files of {split}: download them, or leave {split} out with --splits")
    if len(places) > 1:
        raise DataError(f"{folder} has parquet files of {split} both there and in data/: move one set away")
    files = places[0]
    stems = {path.name.partition("-")[0].removesuffix(".parquet") for path in files}
    totals = {int(part[1]) if (part := PART.search(path.name)) else len(files) for path in files}
    if len(stems) > 1 or totals != {len(files)}:
        raise DataError(
            f"{files[0].parent} has {len(files)} parquet files of {split}, {files[0].name} to {files[-1].name}, which "
            "are not one whole set: download those that are missing and move others away"
        )
    return files


def _read_rows(folder: Path, path: Path) -> Iterator[Row]:
    """Yield name and label of each row; the images are not read. Raises DataError."""
    relative = path.relative_to(folder).as_posix()
    file = open_parquet(path)
    with readable(path):
        table = file.read(columns=["image.path", "label"])
    paths = table.column("image").combine_chunks().field("path").to_pylist()
    for number, (image, label) in enumerate(zip(paths, table.column("label").to_pylist(), strict=True)):
        if label is None or label < 0:
            raise DataError(f"{path}, row {number}, has the label {label}: only images with a class can be sharded")
        name = PurePosixPath((image or "").replace("\\", "/")).name or f"{path.stem}_{number:06d}.JPEG"
        stem, behind = stem_of(name), WNID_BEHIND.search(stem_of(name))
        wnid = behind or WNID_IN_FRONT.match(stem)
        if behind:  # Hugging Face appends it
            name = stem[: behind.start()] + name[len(stem) :]
        yield Row(relative, number, name, label, wnid=sys.intern(wnid[1]) if wnid else None)
