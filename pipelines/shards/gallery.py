"""Single images of a split, cropped as the network sees them, for pictures and reports."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines import Manifest, load_manifest
from pipelines.preprocess import Preparation
from pipelines.shards.records import Records
from pipelines.turbo.decode import read_member


class Gallery:
    """A sequence of a split's images, in the split's order. Raises DataError."""

    def __init__(self, data: Path, split: str, preparation: Preparation, **cache: Any) -> None:
        """Open the images of ``data``, through a cache as in ``open_loader``."""
        self.manifest: Manifest = load_manifest(data, **cache)
        self._records, self._preparation = Records(self.manifest, split, keep=self.manifest.local), preparation

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        """Return the image, size,size,3 uint8, and its label."""
        record = self._records.read(number)
        return self._preparation.crop(read_member(bytes(record.data), self.manifest.image)), record.label

    def name(self, label: int) -> str:
        return self.manifest.classes[label].name if label >= 0 else "no label"

    def various(self, count: int) -> list[int]:
        """Return the numbers of ``count`` random images, the same each time, of as many classes as possible."""
        drawn = np.random.default_rng(0).permutation(len(self)).tolist()[: 100 * count]
        labels = [self._records.read(number).label for number in drawn]
        rounds = [labels[:i].count(label) for i, label in enumerate(labels)]  # 0: the first of its class
        return [drawn[i] for i in np.argsort(rounds, kind="stable")[:count]]
