"""Kaggle's layout: SOURCE/ILSVRC/Data/CLS-LOC/{train/<wnid>/,val/}, val flat, its labels in LOC_val_solution.csv."""

import csv
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.folders import list_class_folders
from pipelines.sharding.sources.sample import (
    Listing,
    Sample,
    class_folders,
    image_names,
    key_of,
    read_words,
    sorted_classes,
    stem_of,
)

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
    solution = _read_solution(folder / LABELS) if "val" in splits else {}
    classes = {"train": class_folders(folder / DATA / "train") if "train" in splits else [], "val": solution.values()}
    wnids = sorted_classes({split: classes[split] for split in splits}, folder)
    images = {"train": lambda: _list_train(folder, wnids), "val": lambda: _list_val(folder, wnids, solution)}
    words = read_words(folder / WORDS) if (folder / WORDS).is_file() else {}
    return Listing(wnids, words, {split: images[split]() for split in splits})


def _list_train(folder: Path, wnids: list[str]) -> list[Sample]:
    return list_class_folders(folder, f"{DATA}/train", wnids)


def _list_val(folder: Path, wnids: list[str], solution: dict[str, str]) -> list[Sample]:
    val, label = folder / DATA / "val", {wnid: index for index, wnid in enumerate(wnids)}
    names = sorted(image_names(val))
    without_row = next((name for name in names if stem_of(name) not in solution), None)
    if without_row:
        raise DataError(f"{folder / LABELS} has no row for {val / without_row}: download both again")
    without_image = sorted(solution.keys() - {stem_of(name) for name in names})
    if without_image:
        raise DataError(
            f"{folder / LABELS} has a row for {without_image[0]}, but there is no such image in {val} "
            f"({len(without_image)} such rows): download both again"
        )
    paths = {name: f"{DATA}/val/{name}" for name in names}
    return [Sample(key_of(stem_of(n)), path, label[solution[stem_of(n)]], path) for n, path in paths.items()]


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
