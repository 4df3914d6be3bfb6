"""Sources of images: layouts, recognised by their files.

``official``: the archives of image-net.org, read in place; ``folders``: train/<class>/ and val/<class>/; ``kaggle``;
``parquet``: Hugging Face's files; ``classes``: <class>/ without splits, if it is none of these; and, by ``--labels``,
pictures with a CSV file. The same images, seed and options give the same samples under the same keys in the same
order, whatever the layout.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources import classes as class_folders
from pipelines.sharding.sources import folders, kaggle, official, parquet, selection, table, unknown
from pipelines.sharding.sources.sample import Listing, Sample, Spool
from pipelines.sharding.sources.val_share import VAL_SHARE, divide
from pipelines.shards.manifest import ImageClass
from pipelines.untrusted import COMMANDS, printable

__all__ = ["LAYOUTS", "Sample", "Source", "find_images"]

LAYOUTS = {"official": official, "folders": folders, "kaggle": kaggle, "parquet": parquet, "classes": class_folders}
LAST = "classes"  # any folders with pictures: looked for only if the folder has no other layout


@dataclass(frozen=True)
class Source:
    """A selection of images. If there is a ``spool``, it must first make the samples readable: see ``Spool``.

    ``notes`` and ``left_out`` are for the user: see ``Listing``.
    """

    folder: Path
    classes: tuple[ImageClass, ...]
    splits: dict[str, tuple[Sample, ...]]
    spool: Spool | None = None
    notes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    def sizes(self, samples: Sequence[Sample]) -> list[int]:
        """Return the sizes of a few samples in bytes, 0 for an unreadable one: it will be quarantined."""
        if self.spool:
            return self.spool.sizes(samples)
        return [_size(self.folder / s.file) if s.size is None else s.size for s in samples]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def find_images(
    folder: Path,
    splits: tuple[str, ...],
    seed: int,
    *,
    layout: str = "auto",
    labels: Path | None = None,
    md5: bool = False,
    classes: str | None = None,
    per_class: int | None = None,
    val_share: float | None = None,
    out: Path = Path("OUT"),
) -> Source:
    """List the images of each split, train in a global permutation drawn from ``seed``, others by key.

    A class's index is its place among the sorted names taken: all, the first N or those in a file (``classes``).
    ``per_class`` takes that many train images of each class, the first in the permutation. ``md5`` first compares the
    official archives with the published digests. ``labels`` is a CSV file. A source without val gives ``val_share`` of
    its train images to it. ``out`` is for the commands in messages. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: name the one that holds train/ and val/, or ImageNet's archives")
    name = "csv" if labels else _recognise(folder, splits, out) if layout == "auto" else layout
    if md5:
        if name != "official":
            raise DataError(f"--md5 checks the archives of image-net.org, but {folder} holds the layout {name}")
        official.check_md5(folder, splits)
    with _no_garbage_collection():
        listing = table.listing(folder, splits, labels) if labels else LAYOUTS[name].listing(folder, splits)
        return _select(folder, listing, splits, seed, classes=classes, per_class=per_class, val_share=val_share)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector, which takes half of the time while a million objects are made and none freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _recognise(folder: Path, splits: tuple[str, ...], out: Path) -> str:
    names = _layouts(folder, splits)
    if not names:
        wanted = "; ".join(f"{layout.LOOKED_FOR} ({name})" for name, layout in LAYOUTS.items())
        raise DataError(unknown.describe(folder, out, wanted, lambda inner: _layouts(inner, splits)))
    if len(names) > 1:
        raise DataError(
            f"{folder} holds {len(names)} layouts, {' and '.join(names)}: say which with --layout {names[0]}"
        )
    return names[0]


def _layouts(folder: Path, splits: tuple[str, ...]) -> list[str]:
    """Return the layouts that ``folder`` holds: ``LAST`` only if there is no other."""
    names = [name for name, layout in LAYOUTS.items() if name != LAST and layout.found(folder, splits)]
    return names or ([LAST] if LAYOUTS[LAST].found(folder, splits) else [])


def _select(
    folder: Path,
    listing: Listing,
    splits: tuple[str, ...],
    seed: int,
    *,
    classes: str | None,
    per_class: int | None,
    val_share: float | None,
) -> Source:
    wnids, notes = listing.wnids, listing.notes
    found = {split: selection.distinct(samples, wnids) for split, samples in listing.splits.items()}
    if classes is not None:
        labels = selection.chosen_classes(wnids, listing.words, classes)
        found = {split: selection.of_classes(samples, labels, split) for split, samples in found.items()}
        wnids = [wnids[label] for label in labels]
    if "val" in splits and "val" not in found:
        found["train"], found["val"], said = divide(folder, found["train"], val_share or VAL_SHARE, seed, wnids)
        notes += tuple(said)
    elif val_share is not None:
        raise DataError(f"{folder} has a val of its own, or --splits leaves it out: leave --val-share out")
    found = {split: selection.ordered(found[split], split, seed) for split in splits}
    if per_class is not None and "train" in found:
        found["train"] = selection.first_of_each_class(found["train"], per_class, wnids)
    odd = next((wnid for wnid in wnids if COMMANDS.search(wnid)), None)
    if odd is not None:
        raise DataError(f"{folder} has a class {odd!r}, whose name holds control characters: rename it")
    taken = tuple(ImageClass(wnid, printable(listing.words.get(wnid, wnid))) for wnid in wnids)
    chosen = {split: tuple(samples) for split, samples in found.items()}
    return Source(folder, taken, chosen, listing.spool, notes=notes, left_out=+listing.left_out)
