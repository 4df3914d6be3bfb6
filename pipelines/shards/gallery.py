"""The images of a split as the network sees them, one at a time: to be shown."""

from pathlib import Path

import numpy as np

from pipelines import Manifest, load_manifest
from pipelines.preprocess import Preparation
from pipelines.shards.records import Records
from pipelines.turbo.decode import read_member


class Gallery:
    """``len`` images, by their number in the split's order. Raises DataError."""

    def __init__(self, data: Path, split: str, preparation: Preparation) -> None:
        self.manifest: Manifest = load_manifest(data)
        self._records, self._preparation = Records(self.manifest, split), preparation

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        """size,size,3 uint8, and the class."""
        record = self._records.read(number)
        return self._preparation.view(read_member(bytes(record.data), self.manifest.image)), record.label

    def name(self, label: int) -> str:
        return self.manifest.classes[label].name

    def various(self, count: int) -> list[int]:
        """The same random numbers of images each time: where there are enough classes, each of another one."""
        drawn = np.random.default_rng(0).permutation(len(self)).tolist()[: 100 * count]
        labels = [self._records.read(number).label for number in drawn]
        rounds = [labels[:i].count(label) for i, label in enumerate(labels)]  # 0: the first of its class
        return [drawn[i] for i in np.argsort(rounds, kind="stable")[:count]]
