"""Accuracy by what the shards tell of an image without opening it."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from alexnet.metrics import Answers, wilson
from pipelines import Manifest


def accuracy_by_property(
    answers: Answers, manifest: Manifest, split: str, keys: Sequence[str], image_bytes: np.ndarray
) -> dict[str, list[dict[str, object]]]:
    """Groups of images, each with its count, top-1 and the 95 % interval of that; a property all share is left out.

    ``file size``: quarters by the bytes of the image in the shard, which grow with its detail. ``repair``: whether the
    manifest lists the image as repaired. ``class size``: classes of fewer and of more images than the median one.
    """
    found = {
        "file size": _quarters(image_bytes),
        "repair": _repaired(manifest, split, keys),
        "class size": _class_sizes(answers, len(manifest.classes)),
    }
    tables = {name: [_row(group, answers, members) for group, members in groups] for name, groups in found.items()}
    kept = {name: [row for row in rows if row["images"]] for name, rows in tables.items()}
    return {name: rows for name, rows in kept.items() if len(rows) > 1}


def _row(group: str, answers: Answers, members: np.ndarray) -> dict[str, object]:
    right, n = int(answers.right[members].sum()), int(members.sum())
    return {"group": group, "images": n} | ({"top1": right / n, "interval": wilson(right, n)} if n else {})


def _quarters(sizes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    edges = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1))
    quarter = np.searchsorted(edges[1:4], sizes, side="left")
    for i in range(4):
        yield f"{edges[i] / 1000:.1f} to {edges[i + 1] / 1000:.1f} kB", quarter == i


def _repaired(manifest: Manifest, split: str, keys: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    sources = {PurePath(entry["source"]).stem for entry in manifest.repaired if entry["split"] == split}
    repaired = np.array([key in sources for key in keys])
    yield from (("repaired", repaired), ("as they came", ~repaired))


def _class_sizes(answers: Answers, num_classes: int) -> Iterator[tuple[str, np.ndarray]]:
    images = np.bincount(answers.labels, minlength=num_classes)
    median, own = np.median(images[images > 0]), images[answers.labels]
    yield from ((f"below {median:g} images", own < median), (f"from {median:g} images", own >= median))
