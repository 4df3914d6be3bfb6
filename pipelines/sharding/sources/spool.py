"""Parquet files copied into plain ones: FILE.bin has the chosen images end to end, FILE.npy their places in it.

Copying is one sequential pass. A file that has its FILE.npy is done; an interrupted file is copied again.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import Sample, load_extra

BATCH_ROWS = 64
IMAGE_BYTES = 32  # the smallest image has more


@dataclass(frozen=True)
class ParquetSpool:
    """A ``Spool`` of parquet files. Both methods raise DataError; ``copy`` raises OSError if writing fails."""

    folder: Path

    def copy(self, samples: Sequence[Sample], work: Path) -> list[Sample]:
        return _spool(self.folder, samples, work)

    def sizes(self, samples: Sequence[Sample]) -> list[int]:
        found: dict[tuple[str, int], int] = {}
        for file, wanted in _rows(samples).items():
            parquet = open_parquet(self.folder / file)
            chosen = np.isin(np.arange(parquet.metadata.num_rows), wanted)
            found |= {(file, row): len(data) for row, data in _images(parquet, self.folder / file, chosen)}
        return [found[sample.file, sample.offset] for sample in samples]


def _rows(samples: Sequence[Sample]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for sample in samples:
        rows.setdefault(sample.file, []).append(sample.offset)
    return rows


def _spool(folder: Path, samples: Sequence[Sample], work: Path) -> list[Sample]:
    rows = _rows(samples)
    work.mkdir(parents=True, exist_ok=True)
    places = {file: _load_places(work / Path(file).name, wanted) for file, wanted in rows.items()}
    todo = [file for file in rows if places[file] is None]
    _check_space(folder, {file: len(rows[file]) for file in todo}, work)
    done = sum(len(rows[file]) for file in rows if places[file] is not None)
    with tqdm(total=len(samples), initial=done, unit=" images", desc="spool") as bar:
        for file in sorted(todo):
            places[file] = _copy(folder / file, rows[file], work / Path(file).name, bar)
    return [_placed(sample, places[sample.file]) for sample in samples]


def _placed(sample: Sample, places: Any) -> Sample:
    offset, size = places[sample.offset].tolist()
    return sample._replace(file=f"{Path(sample.file).name}.bin", offset=offset, size=size)


def _check_space(folder: Path, rows: dict[str, int], work: Path) -> None:
    need = 0
    for file, wanted in rows.items():
        need += (folder / file).stat().st_size * wanted // max(1, open_parquet(folder / file).metadata.num_rows)
    free = shutil.disk_usage(work).free
    if need > free:
        raise DataError(
            f"the images of {folder} take about {need / 1e9:.1f} GB more below {work} while shards are written, and "
            f"{free / 1e9:.1f} GB are free: make room, or take part of the images with --classes and --per-class"
        )


def _load_places(target: Path, wanted: list[int]) -> np.ndarray | None:
    """Return rows,2 int64: offset and size of each row's image; None unless all wanted rows have been copied."""
    try:
        places = np.load(target.with_name(f"{target.name}.npy"), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if places.dtype != np.int64 or places.ndim != 2 or places.shape[1] != 2 or max(wanted) >= len(places):
        return None
    offsets, sizes = places[wanted].T
    images = target.with_name(f"{target.name}.bin")
    there = images.stat().st_size if images.is_file() else 0
    return places if (offsets >= 0).all() and (sizes >= 0).all() and (offsets + sizes).max() <= there else None


def _copy(source: Path, wanted: list[int], target: Path, bar: tqdm) -> np.ndarray:
    images, index = target.with_name(f"{target.name}.bin"), target.with_name(f"{target.name}.npy")
    index.unlink(missing_ok=True)
    file = open_parquet(source)
    places = np.full((file.metadata.num_rows, 2), -1, np.int64)
    with images.open("wb") as out:
        for row, data in _images(file, source, np.isin(np.arange(len(places)), wanted)):
            places[row] = out.tell(), len(data)
            out.write(data)
            bar.update(1)
        out.flush()
        os.fsync(out.fileno())
    with index.with_suffix(".tmp").open("wb") as out:
        np.save(out, places)
        out.flush()
        os.fsync(out.fileno())
    index.with_suffix(".tmp").replace(index)
    return places


def _images(file: Any, path: Path, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield row and image of the wanted rows, in order; row groups without any are not read."""
    row = 0
    for group in range(file.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        if not wanted[row:end].any():
            row = end
            continue
        batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=["image.bytes"], use_threads=False)
        while (batch := _next(batches, path)) is not None:
            for data in batch.column(0).field("bytes"):
                if wanted[row]:
                    yield row, data.as_py() or b""
                row += 1


def _next(batches: Iterator, path: Path) -> Any:
    with readable(path):
        return next(batches, None)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise pyarrow's errors about a damaged file as DataError."""
    pyarrow = load_extra("pyarrow", "parquet", f"reading {path.name}")
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a parquet file, or is damaged ({error}): download it again") from None


def open_parquet(path: Path) -> Any:
    """Open a pyarrow ParquetFile. Raises DataError unless it has the columns that we need."""
    parquet = load_extra("pyarrow.parquet", "parquet", f"reading {path.name}")
    with readable(path):
        file = parquet.ParquetFile(path)
        fields = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
    if file.metadata.num_rows * IMAGE_BYTES > path.stat().st_size:
        raise DataError(f"{path} claims {file.metadata.num_rows} images, more than it has room for: download it again")
    types, image = load_extra("pyarrow.types", "parquet", f"reading {path.name}"), fields.get("image")
    inside = {image.field(i).name for i in range(image.num_fields)} if image and types.is_struct(image) else set()
    if not inside >= {"bytes", "path"} or "label" not in fields or not types.is_integer(fields["label"]):
        columns = ", ".join(f"{name} {kind}" for name, kind in fields.items())
        raise DataError(f"{path} has the columns {columns}; needed are image (bytes, path) and an integer label")
    return file
