"""The division of a split's samples into batches, over ranks: arithmetic only.

``taken`` counts the samples of an epoch that all ranks together have taken. In training every ``step`` consecutive
samples of the epoch's order are divided into one batch for each rank. So one number says what is left of an epoch,
and it can be resumed with another batch size and number of ranks. In evaluation each rank has a contiguous range.
(DALI's reader shuffles within such ranges in training, too.)
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The division of ``samples`` into the batches of one rank."""

    samples: int
    batch_size: int
    rank: int
    world_size: int
    training: bool

    @property
    def step(self) -> int:
        """Rows of a batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def own_start(self) -> int:
        return self.samples * self.rank // self.world_size

    @property
    def own_samples(self) -> int:
        """This rank's share in evaluation: a contiguous range, as DALI's reader cuts it."""
        return self.samples * (self.rank + 1) // self.world_size - self.own_start

    @property
    def padded_batches(self) -> int:
        """Number of batches that hold the samples of the rank with most; every rank makes as many."""
        return math.ceil(self.samples / self.step)

    @property
    def batches(self) -> int:
        """Number of batches in an epoch, equal on every rank: only full ones in training, all in evaluation."""
        return self.batches_after(0)

    def batches_after(self, taken: int) -> int:
        """Return the number of batches left in the epoch after ``taken`` samples."""
        if self.training:
            return (self.samples - taken) // self.step
        return self.padded_batches - taken // self.step

    def first(self, taken: int) -> int:
        """Return the position in the epoch's order of the first row of the batch that follows ``taken`` samples."""
        if self.training:
            return taken + self.rank * self.batch_size
        return self.own_start + taken // self.step * self.batch_size

    def valid(self, batch: int) -> int:
        """Return the number of leading rows of this batch that are samples; the others are padding."""
        if self.training:
            return self.batch_size
        return max(0, min(self.batch_size, self.own_samples - batch * self.batch_size))
