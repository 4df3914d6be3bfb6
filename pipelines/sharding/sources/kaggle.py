"""Kaggle's layout: SOURCE/ILSVRC/Data/CLS-LOC/{train/<wnid>/,val/}, val flat, its labels in LOC_val_solution.csv."""

import csv
from collections import Counter
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import pictures_below
from pipelines.sharding.sources.flat import Pictures
from pipelines.sharding.sources.folders import list_class_folders, listing_of
from pipelines.sharding.sources.sample import Listing, stem_of

DATA = "ILSVRC/Data/CLS-LOC"
LABELS, WORDS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
LOOKED_FOR = f"{DATA}/ with {LABELS} beside ILSVRC/ (Kaggle)"


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    return (folder / DATA).is_dir()


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    for split in splits:
        if split not in ("train", "val"):
            raise DataError(f"{folder} has no labels for {split}, only for train and val: leave it out with --splits")
        if not (folder / DATA / split).is_dir():
            raise DataError(f"no folder {folder / DATA / split}: unpack it, or leave {split} out with --splits")
    left_out: Counter[str] = Counter()
    pictures = {split: (_list_train if split == "train" else _list_val)(folder, left_out) for split in splits}
    return listing_of(folder, pictures, (), left_out)


def _list_train(folder: Path, left_out: Counter[str]) -> Pictures:
    return list_class_folders(folder, f"{DATA}/train", left_out)


def _list_val(folder: Path, left_out: Counter[str]) -> Pictures:
    solution = _read_solution(folder / LABELS)
    paths = sorted(pictures_below(folder, f"{DATA}/val", left_out))
    stems = [stem_of(path.rpartition("/")[2]) for path in paths]
    without_row = next((path for stem, path in zip(stems, paths, strict=True) if stem not in solution), None)
    if without_row:
        raise DataError(f"{folder / LABELS} has no row for {folder / without_row}: download both again")
    without_image = sorted(solution.keys() - {*stems})
    if without_image:
        raise DataError(
            f"{folder / LABELS} has a row for {without_image[0]}, but there is no such image in "
            f"{folder / DATA / 'val'} ({len(without_image)} such rows): download both again"
        )
    pictures: Pictures = {}
    for stem, path in zip(stems, paths, strict=True):
        pictures.setdefault(solution[stem], []).append(path)
    return pictures


def _read_solution(path: Path) -> dict[str, str]:
    """Read ImageId -> wnid, the first word of PredictionString. Raises DataError."""
    if not path.is_file():
        raise DataError(f"no file {path}, which has the labels of val: download it, or leave val out with --splits")
    solution: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                image, boxes = row["ImageId"], row["PredictionString"].split()
                if image in solution:
                    raise DataError(f"{path}, line {rows.line_num}: a second row for {image}: download it again")
                solution[image] = boxes[0]
        except (KeyError, IndexError, AttributeError, csv.Error) as error:
            raise DataError(
                f"{path}, line {rows.line_num}: expected columns ImageId and PredictionString, a wnid and its boxes "
                f"({type(error).__name__}: {error}): download it again"
            ) from None
    if not solution:
        raise DataError(f"{path} has no rows: download it again")
    return solution
