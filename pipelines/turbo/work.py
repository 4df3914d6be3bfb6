"""A batch while threads are filling it."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipelines.shards.record import SampleError
from pipelines.turbo.copies import Copied
from pipelines.turbo.randomness import Draws


@dataclass
class Work:
    """A batch that threads are filling. ``samples`` has a few more than its rows, which replace damaged ones."""

    epoch: int
    first: int  # the place of its first row in the epoch's order
    valid: int  # leading rows that are samples; the others are padding, left black
    samples: list[int]
    draws: Draws
    images: np.ndarray  # N,H,W,3
    memory: torch.Tensor  # the same; for a GPU with the three arrays below in it
    labels: np.ndarray  # N int64
    crops: np.ndarray  # N,3 int64: top and left of each crop, and if it is flipped
    colours: np.ndarray  # N,3 float32
    keys: list[str]
    extras: dict[str, list[Any]]
    parts: list[Future] = field(default_factory=list)
    lost: list[tuple[int, SampleError]] = field(default_factory=list)
    copied: Copied | None = None  # to the GPU, perhaps not yet completely

    @property
    def whole(self) -> bool:
        """True if all rows are there: threads have filled them, each with its own sample."""
        return all(part.done() and part.exception() is None for part in self.parts) and not self.lost

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that have a part for each row."""
        return self.images, self.labels, self.crops, self.colours

    def move_to_the_end(self, lost: set[int]) -> None:
        """Move these rows behind the others, where they are padding."""
        rows = sorted(range(len(self.labels)), key=lambda row: row in lost)
        self.samples = [self.samples[row] for row in rows] + self.samples[len(rows) :]
        self.draws = self.draws.of(np.array(rows))
        self.keys = ["" if row in lost else self.keys[row] for row in rows]
        self.extras = {n: [None if row in lost else v[row] for row in rows] for n, v in self.extras.items()}
        for array in self.arrays:
            by_row = array.reshape(len(rows), -1)
            by_row[:] = by_row[rows]
