"""A random forest on hand-made features of pictures, to compare networks with."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines import Augment, load_manifest, open_loader


def forest(shards: Path, seed: int) -> dict[str, Any]:
    """Return the accuracy of a random forest of 500 trees on ``features`` of whole pictures."""
    from sklearn.ensemble import RandomForestClassifier

    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    augment = Augment(size=load_manifest(shards).image.size, normalise="none")
    for split in ("train", "val"):
        found = list(open_loader(shards, split, 1, augment, training=False, threads=1))
        images[split] = np.stack([features(batch.images[0].permute(1, 2, 0).numpy()) for batch in found])
        labels[split] = np.array([int(batch.labels[0]) for batch in found])
    trees = RandomForestClassifier(500, random_state=seed).fit(images["train"], labels["train"])
    return {
        "top1": round(float(trees.score(images["val"], labels["val"])), 4),
        "train": len(labels["train"]),
        "val": len(labels["val"]),
    }


def features(pixels: np.ndarray) -> np.ndarray:
    """Return hand-made features of an image, H,W,3 uint8: colours, local binary patterns, orientations of gradients."""
    from skimage import color, feature

    grey = color.rgb2gray(pixels)
    parts = [np.histogram(c, 16, (0, 1), density=True)[0] for c in np.moveaxis(color.rgb2hsv(pixels), -1, 0)]
    parts += [pixels.mean((0, 1)), pixels.std((0, 1))]
    for radius in (1, 2, 4):
        patterns = feature.local_binary_pattern((grey * 255).astype(np.uint8), 8, radius, "uniform")
        parts.append(np.histogram(patterns, 10, (0, 10), density=True)[0])
    cells = feature.hog(grey, 9, (grey.shape[0] // 8,) * 2, (1, 1), feature_vector=False).reshape(-1, 9)
    slopes = np.hypot(*np.gradient(grey))
    parts += [cells.mean(0), cells.std(0), np.quantile(slopes, (0.1, 0.25, 0.5, 0.75, 0.9)), np.array([slopes.std()])]
    return np.concatenate(parts)
