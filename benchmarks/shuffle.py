"""The quality of an epoch's shuffle: the order of each backend compared with a true permutation.

    python -m benchmarks.shuffle [--json FILE]

Every image is the only one of its class, so that its label identifies it. Four figures of two epochs:

- moved: mean distance of a sample from its place in the shards, as a share of all; a third for a permutation.
- repeated: Spearman's correlation of a sample's places in the two epochs; 0 for permutations, 1 for the same order.
- neighbours: how often two neighbours in the shards are in one batch, as a multiple of chance; 1 for a permutation.
- unevenness: chi-square of a hundred classes' counts in a batch, divided by its degrees of freedom; 1 is chance, 0 the
  same mixture in each batch. (Each place in the shards is given one of the classes at random, as the shards of a real
  dataset are written in a random order.)
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines import Augment, open_loader
from pipelines.files import write_atomically
from pipelines.terminal import in_range, require, run_command
from tools import shard_imagenet

CLASSES = 100
SMALL_CACHES = {"a tenth": 1, "a half": 5}  # in tenths of the shards
SIDE = 32  # pixels of the images


@dataclass(frozen=True)
class Options:
    images: int = 20_000
    batch_size: int = 256
    seed: int = 0
    json: Path | None = None
    """Write the figures here too."""

    def __post_init__(self) -> None:
        in_range("images", self.images, 1000)
        require(2 <= self.batch_size <= self.images // 4, "--batch-size goes from 2 to a quarter of --images")


def main(options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    count = options.images // options.batch_size * options.batch_size
    places = {"a permutation": (rng.permutation(options.images)[:count], rng.permutation(options.images)[:count])}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # threads may still fetch
        shards = numbered_shards(Path(folder), options.images)
        for backend in ("turbo", "dali"):
            places[backend] = epochs(shards, backend, options)
        size = sum(path.stat().st_size for path in shards.glob("*.tar")) / 10
        for name, share in SMALL_CACHES.items():
            cache = {"cache": Path(folder, name), "cache_gb": size * share / 1e9}
            places[f"turbo, a cache of {name}"] = epochs(shards, "turbo", options, **cache)
    rows = [{"name": name} | figures(*orders, options.images, options.batch_size) for name, orders in places.items()]
    print(f"{'':<28}" + "".join(f"{name:>12}" for name in list(rows[0])[1:]))
    for row in rows:
        print(f"{row['name']:<28}" + "".join(f"{value:>12.3f}" for value in list(row.values())[1:]))
    if options.json:
        settings: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "benchmark": "shuffle"}
        settings |= {name: getattr(options, name) for name in ("images", "batch_size", "seed")}
        write_atomically(options.json, json.dumps(settings | {"rows": rows}, indent=1).encode() + b"\n")


def numbered_shards(folder: Path, images: int) -> Path:
    """Write a shard folder of ``images`` train images, each the only one of its class."""
    for number in tqdm(range(images), desc="images", unit=" images"):
        path = folder / "images" / "train" / f"c{number:07d}" / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (SIDE, SIDE), number % 256).save(path)
    raw: dict[str, Any] = {"encoding": "raw", "size": SIDE, "splits": ("train",), "shard_mb": 1}
    shard_imagenet.main(shard_imagenet.Options(folder / "images", folder / "shards", **raw))
    return folder / "shards"


def epochs(shards: Path, backend: Any, options: Options, **cache: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of two epochs in the order in which they came, each as its place in the shards."""
    stored = stored_labels(shards)
    place = np.empty(len(stored), np.int64)
    place[stored] = np.arange(len(stored))
    augment = Augment(size=SIDE, normalise="none")
    loader = open_loader(shards, "train", options.batch_size, augment, backend=backend, seed=options.seed, **cache)
    first, second = (place[np.concatenate([batch.labels.numpy() for batch in loader])] for _ in range(2))
    return first, second


def stored_labels(shards: Path) -> np.ndarray:
    """Return the labels in the order of the shards."""
    lines = [line for path in sorted(shards.glob("train-*.idx")) for line in path.read_text().splitlines()[1:]]
    return np.array([int(line.split()[3].removesuffix(".npy")) for line in lines])


def figures(first: np.ndarray, second: np.ndarray, images: int, batch_size: int) -> dict[str, float]:
    """Return the four figures. ``first`` and ``second`` are two epochs as places in the shards, in whole batches."""
    when = np.full((2, images), np.nan)
    for epoch, order in enumerate((first, second)):
        when[epoch, order] = np.arange(len(order))
    both = when[:, ~np.isnan(when).any(axis=0)]
    batch = when[0] // batch_size
    together = np.mean(batch[1:] == batch[:-1]) / ((batch_size - 1) / (images - 1))
    classes = np.random.default_rng(0).integers(CLASSES, size=images)[first].reshape(-1, batch_size)
    counts = np.stack([np.bincount(part, minlength=CLASSES) for part in classes])
    expected = batch_size / CLASSES
    return {
        "moved": float(np.abs(np.arange(len(first)) - first).mean() / images),
        "repeated": float(np.corrcoef(both)[0, 1]),  # Spearman's, as places are ranks but for samples left out
        "neighbours": float(together),
        "unevenness": float(((counts - expected) ** 2 / expected).sum(axis=1).mean() / (CLASSES - 1)),
    }


if __name__ == "__main__":
    run_command(main, Options, __doc__)
