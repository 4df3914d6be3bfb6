"""SOURCE/{train,val}/<wnid>/*.JPEG: ImageNet unpacked, Imagenette, ``make demo``."""

from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.picture import SUFFIXES
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

LOOKED_FOR = "train/<class>/*.JPEG and val/<class>/*.JPEG"
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")  # lines "wnid words"; Kaggle, Caffe, WordNet


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    return any((folder / split).is_dir() for split in splits)


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    wnids = sorted_classes({split: _classes(folder / split, split) for split in splits}, folder)
    images = {split: list_class_folders(folder, split, wnids) for split in splits}
    return Listing(wnids, class_names(folder), images)


def _classes(folder: Path, split: str) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: make it, or leave {split} out with --splits")
    wnids = class_folders(folder)
    if not wnids:
        raise DataError(
            f"{folder} has no class folders: expected {folder}/<class>/*.JPEG (Kaggle: name the parent of ILSVRC/)"
        )
    return wnids


def class_names(folder: Path) -> dict[str, str]:
    for name in NAME_FILES:
        if (folder / name).is_file():
            return read_words(folder / name)
    return {}


def list_class_folders(folder: Path, split: str, wnids: list[str]) -> list[Sample]:
    """List the images below ``folder``/``split``/<wnid>/; a class may have none. Raises DataError if all have none."""
    samples = []
    for label, wnid in enumerate(wnids):
        if (folder / split / wnid).is_dir():
            for name in image_names(folder / split / wnid):
                path = f"{split}/{wnid}/{name}"
                samples.append(Sample(key_of(stem_of(name)), path, label, path))
    if not samples:
        raise DataError(f"{folder / split} has no images ({', '.join(SUFFIXES)})")
    return samples
