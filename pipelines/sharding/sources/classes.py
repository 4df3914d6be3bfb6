"""SOURCE/<class>/: folders of classes without splits. ``val_share`` divides them, or --splits names the one they are.

ImageNetV2, whose folders are numbers, is ``--splits val``.
"""

from collections import Counter
from pathlib import Path

from pipelines.errors import DataError
from pipelines.images.walk import holds_pictures, leave_out_beside, some, subfolders
from pipelines.sharding.sources.folders import NAME_FILES, list_class_folders, listing_of
from pipelines.sharding.sources.sample import Listing
from pipelines.sharding.sources.splits import split_in

LOOKED_FOR = "<class>/*.jpg"


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    """Return true if there are two folders with pictures that are no splits, and that hold none."""
    names = [name for name in subfolders(folder) if holds_pictures(folder / name)]
    plain = [name for name in names if split_in(name) is None]
    no_splits = len({split_in(name) for name in names}) <= 2  # a class may be called train, but not another one test
    return no_splits and len(plain) >= 2 and not any(_holds_splits(folder / name) for name in plain)


def _holds_splits(folder: Path) -> bool:
    return len({split_in(name) for name in subfolders(folder)} - {None}) > 1


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    if len(splits) > 1 and set(splits) != {"train", "val"}:
        raise DataError(
            f"{folder} has folders of classes but none of splits: --splits takes train val, or the one split they are"
        )
    left_out: Counter[str] = Counter()
    split = "train" if "train" in splits else splits[0]
    pictures = list_class_folders(folder, "", left_out)
    leave_out_beside(folder, {*NAME_FILES, *pictures}, left_out)
    names = [name for name, found in pictures.items() if found]
    note = f"the folders in {folder} are taken as classes: {len(names)} ({some(names)})"
    return listing_of(folder, {split: pictures}, (note,), left_out)
