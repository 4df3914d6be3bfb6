"""Sources of images: ImageNet's four layouts, recognised by their files.

``official``: the archives of image-net.org, read in place; ``folders``: train/<wnid>/ and val/<wnid>/; ``kaggle``;
``parquet``: Hugging Face's files. The same images, seed and options give the same samples under the same keys in the
same order, whatever the layout.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources import folders, kaggle, official, parquet, selection
from pipelines.sharding.sources.sample import Listing, Sample, Spool
from pipelines.shards.manifest import ImageClass
from pipelines.untrusted import COMMANDS, printable

__all__ = ["LAYOUTS", "Sample", "Source", "find_images"]

LAYOUTS = {"official": official, "folders": folders, "kaggle": kaggle, "parquet": parquet}


@dataclass(frozen=True)
class Source:
    """A selection of images. If there is a ``spool``, it must first make the samples readable: see ``Spool``."""

    folder: Path
    classes: tuple[ImageClass, ...]
    splits: dict[str, tuple[Sample, ...]]
    spool: Spool | None = None

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
    md5: bool = False,
    classes: str | None = None,
    per_class: int | None = None,
) -> Source:
    """List the images of each split, train in a global permutation drawn from ``seed``, others by key.

    A class's index is its place among the sorted wnids taken: all, the first N or those in a file (``classes``).
    ``per_class`` takes that many train images of each class, the first in the permutation. ``md5`` first compares the
    official archives with the published digests. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: name the one that holds train/ and val/, or ImageNet's archives")
    name = _recognise(folder, splits) if layout == "auto" else layout
    if md5:
        if name != "official":
            raise DataError(f"--md5 checks the archives of image-net.org, but {folder} holds the layout {name}")
        official.check_md5(folder, splits)
    with _no_garbage_collection():
        return _select(folder, LAYOUTS[name].listing(folder, splits), seed, classes=classes, per_class=per_class)


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


def _recognise(folder: Path, splits: tuple[str, ...]) -> str:
    names = [name for name, layout in LAYOUTS.items() if layout.found(folder, splits)]
    if not names:
        wanted = "; ".join(f"{layout.LOOKED_FOR} ({name})" for name, layout in LAYOUTS.items())
        raise DataError(f"{folder} holds no images in a known layout; looked for: {wanted}")
    if len(names) > 1:
        raise DataError(
            f"{folder} holds {len(names)} layouts, {' and '.join(names)}: say which with --layout {names[0]}"
        )
    return names[0]


def _select(folder: Path, listing: Listing, seed: int, classes: str | None, per_class: int | None) -> Source:
    wnids = listing.wnids
    found = {split: selection.distinct(samples, wnids) for split, samples in listing.splits.items()}
    if classes is not None:
        labels = selection.chosen_classes(wnids, classes)
        found = {split: selection.of_classes(samples, labels, split) for split, samples in found.items()}
        wnids = [wnids[label] for label in labels]
    found = {split: selection.ordered(samples, split, seed) for split, samples in found.items()}
    if per_class is not None and "train" in found:
        found["train"] = selection.first_of_each_class(found["train"], per_class, wnids)
    odd = next((wnid for wnid in wnids if COMMANDS.search(wnid)), None)
    if odd is not None:
        raise DataError(f"{folder} has a class {odd!r}, whose name holds control characters: rename it")
    taken = tuple(ImageClass(wnid, printable(listing.words.get(wnid, wnid))) for wnid in wnids)
    return Source(folder, taken, {split: tuple(samples) for split, samples in found.items()}, listing.spool)
