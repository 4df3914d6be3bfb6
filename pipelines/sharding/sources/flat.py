"""A split without class folders, whose labels are in a text file: val.txt, Tiny ImageNet's val_annotations.txt, or
ImageNet's ILSVRC2012_validation_ground_truth.txt with a number for each image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import holds_pictures, pictures_below, subfolders
from pipelines.sharding.sources.devkit import META, TRUTH, read_devkit, read_synsets
from pipelines.sharding.sources.finder import Row, located
from pipelines.sharding.sources.official import DEVKIT
from pipelines.untrusted import MAX_FILE_BYTES, read_limited

GROUND_TRUTH = TRUTH.rpartition("/")[2]
DEVKIT_FOLDER = DEVKIT.removesuffix(".tar.gz")

Pictures = dict[str, list[str]]  # of each class: paths below SOURCE


def is_flat(folder: Path) -> bool:
    """Return true if pictures are in ``folder`` itself and in none below it, or in its only folder, called images."""
    inner = subfolders(folder)
    if inner == ["images"]:
        return holds_pictures(folder / "images", 0)
    return holds_pictures(folder, 0) and not any(holds_pictures(folder / name) for name in inner)


def labels_file(folder: Path, path: str, split: str) -> Path | None:
    """Return the text file with the labels of ``folder``/``path``, the folder of ``split``, or None."""
    names = [f"{name}{end}" for name in dict.fromkeys((split, Path(path).name)) for end in ("_annotations.txt", ".txt")]
    names += [f"{split}_labels.txt", *([GROUND_TRUTH] if split == "val" else [])]
    places = (folder / path, folder, folder / DEVKIT_FOLDER / "data")
    return next((place / name for name in names for place in places if (place / name).is_file()), None)


def list_flat(
    folder: Path, path: str, file: Path, wnids: Sequence[str] | None, left_out: Counter[str]
) -> tuple[Pictures, list[str]]:
    """Return the pictures of ``folder``/``path`` by class, from the labels in ``file``, and notes on how it was read.

    ``wnids`` are the classes of another split, if there is one; numbers may stand for them. Raises DataError.
    """
    paths = sorted(pictures_below(folder, path, left_out))
    if file.parent == folder / path:
        left_out[".txt"] -= 1
    lines = _read_lines(file)
    if all(label is None for _, _, label in lines):
        labels = _ground_truth(folder, file, paths, [name for _, name, _ in lines])
        rows: list[Row] = [(i + 1, name, label) for i, (name, label) in enumerate(zip(paths, labels, strict=True))]
    else:
        bare = next((line for line, _, label in lines if label is None), None)
        if bare:
            raise DataError(f"{file}, line {bare}: expected the name of a picture and its label")
        rows = [(line, name, label) for line, name, label in lines if label is not None]
    taken, repeated = located(rows, paths, file, folder / path)
    left_out[f"repeated lines in {file.name}"] += len(repeated)
    if len(taken) < len(paths):
        left_out[f"without a line in {file.name}"] += len(paths) - len(taken)
    names, notes = _class_names({label for _, _, label in taken.values()}, wnids, file)
    pictures: Pictures = {}
    for found, (_, _, label) in taken.items():
        pictures.setdefault(names[label], []).append(found)
    return pictures, [f"the labels of {path}/ are those in {file}", *notes]


def _read_lines(file: Path) -> list[tuple[int, str, str | None]]:
    """Return number, name and label of each line, the label None if there is one word. Raises DataError."""
    try:
        text = read_limited(file, MAX_FILE_BYTES).decode("utf-8-sig", "replace")
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    lines: list[tuple[int, str, str | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = [word.strip() for word in (line.split("\t") if "\t" in line else line.strip().split(maxsplit=1))]
        if line.strip():
            lines.append((number, words[0], words[1] if len(words) > 1 else None))
    if not lines:
        raise DataError(f"{file} is empty: it should have a line for each picture, its name and its label")
    return lines


def _class_names(labels: set[str], wnids: Sequence[str] | None, file: Path) -> tuple[dict[str, str], list[str]]:
    """Return the class that each label stands for, by its name or by its place among the sorted classes."""
    if wnids is None or labels <= set(wnids):
        return {label: label for label in labels}, []
    unknown = sorted(label for label in labels if not (label.isdecimal() and int(label[:9]) < len(wnids)))
    if not unknown:
        note = f"the numbers in {file} are places in the sorted list of classes, from 0: {wnids[0]}"
        return {label: wnids[int(label)] for label in labels}, [note]
    unknown = [label for label in unknown if label not in wnids] or unknown
    raise DataError(
        f"{file}: the label {unknown[0]!r} is none of the {len(wnids)} classes of train, such as {wnids[0]}"
    )


def _ground_truth(folder: Path, file: Path, paths: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """Return the wnids that ImageNet's numbers stand for, one for each picture in the order of their names."""
    if len(numbers) != len(paths):
        raise DataError(f"{file} has {len(numbers)} lines without names for {len(paths)} pictures: get both again")
    if (folder / DEVKIT).is_file() and file.name == GROUND_TRUTH:
        labels = read_devkit(folder / DEVKIT).val_wnids
        if len(labels) == len(paths):
            return labels
    places = (file.parent, folder, folder / DEVKIT_FOLDER / "data")
    meta = next((path for path in (place / Path(META).name for place in places) if path.is_file()), None)
    if meta is None:
        raise DataError(
            f"{file} has only numbers, whose classes are in ImageNet's devkit: put {DEVKIT} (or its {META}) into "
            f"{folder}, or write lines 'NAME CLASS'"
        )
    wnids, _ = read_synsets(read_limited(meta, MAX_FILE_BYTES), meta)
    unknown = next((number for number in numbers if not number.isdecimal() or int(number[:9]) not in wnids), None)
    if unknown:
        raise DataError(f"{file}: {unknown[:40]!r} is not the number of a class in {meta}: download it again")
    return [wnids[int(number)] for number in numbers]
