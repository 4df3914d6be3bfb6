"""SOURCE/{train,val}/<class>/: ImageNet unpacked, Imagenette, Tiny ImageNet, ``make demo``, and most others.

The folders of splits may be called Training, valid, test and the like. A split may also be flat, with a text file of
labels: see ``flat``. If there is no val, ``val_share`` makes one of train.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.picture import SUFFIXES
from pipelines.images.walk import counted, leave_out_beside, pictures_below, some, subfolders
from pipelines.sharding.sources.flat import Pictures, is_flat, labels_file, list_flat
from pipelines.sharding.sources.sample import Listing, in_order, read_words, samples_of, sorted_classes
from pipelines.sharding.sources.splits import split_folders, split_in

LOOKED_FOR = "train/<class>/*.JPEG and val/<class>/*.JPEG"
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")  # lines "wnid words"; Kaggle, Caffe, WordNet
OTHER_FILES = ("wnids.txt",)  # Tiny ImageNet's list of class folders


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    """Return true if one of the splits has a folder, unless this holds just pictures, as that of a class does."""
    paths = split_folders(folder, splits)
    return any(not is_flat(folder / path) or labels_file(folder, path, split) for split, path in paths.items())


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    left_out: Counter[str] = Counter()
    paths, notes = _usable(folder, split_folders(folder, splits))
    for split in splits:
        if split not in paths and not (split == "val" and "train" in paths):
            raise DataError(f"no folder {folder / split}: make it, or leave {split} out with --splits")
    files = {split: labels_file(folder, path, split) for split, path in paths.items() if is_flat(folder / path)}
    pictures = {
        split: list_class_folders(folder, path, left_out) for split, path in paths.items() if not files.get(split)
    }
    for split, file in files.items():
        if file:
            known = in_order(next(iter(pictures.values()))) if pictures else None
            pictures[split], said = list_flat(folder, paths[split], file, known, left_out)
            notes += said
    used = {*NAME_FILES, *OTHER_FILES, *(file.name for file in files.values() if file)}
    leave_out_beside(folder, used | {path.partition("/")[0] for path in paths.values()}, left_out)
    return listing_of(folder, {split: pictures[split] for split in splits if split in paths}, notes, left_out)


def _usable(folder: Path, paths: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the paths without a test that is to be val but has none of train's classes, and notes on the choice."""
    val, notes = paths.get("val", ""), []
    if split_in(val) == "test" and "train" in paths and labels_file(folder, val, "val") is None:
        if not {*subfolders(folder / val)} & {*subfolders(folder / paths["train"])}:
            notes.append(f"{val}/ is left out: it has none of the class folders of {paths['train']}/")
            paths = {split: path for split, path in paths.items() if split != "val"}
    elif split_in(val) == "val" and "test" not in paths:
        tests = [name for name in subfolders(folder) if split_in(name) == "test"]
        notes += [f"{name}/ is left out; --splits train val test takes it too" for name in tests]
    return paths, notes + [f"{path}/ is taken as {split}" for split, path in paths.items() if path != split]


def list_class_folders(folder: Path, path: str, left_out: Counter[str]) -> Pictures:
    """Return the pictures below each folder of ``folder``/``path``, by its name; none for an empty one.

    Raises DataError if there is no folder, or none with pictures.
    """
    names = subfolders(folder / path)
    pictures = {name: pictures_below(folder, f"{path}/{name}" if path else name, left_out) for name in names}
    if not names or [name for name in names if pictures[name]] == ["images"]:  # with labels/, as YOLO has them
        raise DataError(
            f"{folder / path} has no class folders: expected {folder / path}/<class>/*.JPEG, or a file of labels, "
            f"{folder / path}.txt (Kaggle: name the parent of ILSVRC/)"
        )
    if path:
        leave_out_beside(folder / path, names, left_out)
    if not any(pictures.values()):
        holds = f", only {counted(left_out)}" if left_out else ""
        raise DataError(f"{folder / path} has no images ({', '.join(SUFFIXES)}){holds}")
    return pictures


def listing_of(folder: Path, splits: dict[str, Pictures], notes: Iterable[str], left_out: Counter[str]) -> Listing:
    """Return the listing of each split's pictures by class. A class without pictures is left out and named."""
    taken = {split: {name: paths for name, paths in found.items() if paths} for split, found in splits.items()}
    wnids = sorted_classes(taken, folder)
    empty = {name for found in splits.values() for name in found} - {*wnids}
    said = [f"class folders without pictures are left out: {len(empty)} ({some(empty)})"] if empty else []
    samples = {split: samples_of(found, wnids) for split, found in taken.items()}
    return Listing(wnids, class_names(folder), samples, notes=(*notes, *said), left_out=left_out)


def class_names(folder: Path) -> dict[str, str]:
    for name in NAME_FILES:
        if (folder / name).is_file():
            return read_words(folder / name)
    return {}
