"""Groups of a split's images, by properties that index and manifest tell without reading a shard."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from pipelines.shards.manifest import Manifest

Groups = list[tuple[str, np.ndarray]]  # names, and N bool: which images are in the group


def groups_of(
    manifest: Manifest, split: str, *, keys: Sequence[str], image_bytes: np.ndarray, labels: np.ndarray
) -> dict[str, Groups]:
    """Return the groups of N images by each property, from their keys, sizes (N int64) and labels (N int64).

    ``file size``: quarters by the bytes of the image in the shard, which grow with its detail. ``repair``: images that
    the manifest lists as repaired, and the others. ``class size``: classes with fewer images than the median class,
    and the others.
    """
    return {
        "file size": list(_quarters(image_bytes)),
        "repair": list(_repaired(manifest, split, keys)),
        "class size": list(_class_sizes(labels, len(manifest.classes))),
    }


def _quarters(sizes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    edges = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1))
    quarter = np.searchsorted(edges[1:4], sizes, side="left")
    for i in range(4):
        yield f"{edges[i] / 1000:.1f} to {edges[i + 1] / 1000:.1f} kB", quarter == i


def _repaired(manifest: Manifest, split: str, keys: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    sources = {PurePath(entry["source"]).stem for entry in manifest.repaired if entry["split"] == split}
    repaired = np.array([key in sources for key in keys])
    yield from (("repaired", repaired), ("as they came", ~repaired))


def _class_sizes(labels: np.ndarray, num_classes: int) -> Iterator[tuple[str, np.ndarray]]:
    images = np.bincount(labels, minlength=num_classes)
    median, own = np.median(images[images > 0]), images[labels]
    yield from ((f"below {median:g} images", own < median), (f"from {median:g} images", own >= median))
