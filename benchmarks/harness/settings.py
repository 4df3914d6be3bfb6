"""The settings of our_loaders.py and decoders.py, given as JSON on their command line."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines import load_manifest
from pipelines.shards.records import Records


@dataclass(frozen=True)
class LoaderSettings:
    """A measurement's settings. ``work`` names it; a round makes ``batches`` batches."""

    work: str
    data: Path
    batch_size: int
    batches: int
    threads: int
    device: str

    @classmethod
    def from_command_line(cls) -> Self:
        given = json.loads(sys.argv[1])
        return cls(**given | {"data": Path(given["data"])})

    @property
    def images(self) -> int:
        """Images in a round."""
        return self.batch_size * self.batches

    def files(self) -> list[bytes]:
        """Read a round's images into memory as they are stored."""
        records = Records(load_manifest(self.data), "train")
        return [bytes(records.read(sample % len(records)).data) for sample in range(self.images)]
