"""How the samples of a split fall into batches, over ranks: numbers only.

``taken`` counts the samples of an epoch that all ranks together have taken. In training the ranks cut the epoch's
order batch by batch: of every ``step`` samples in it each rank has a batch. So what is left of an epoch is a number,
and other ranks and batch sizes can go on from there. In evaluation each rank has a contiguous range. (DALI's reader
shuffles within such ranges in training, too.)
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How ``samples`` fall into the batches of one rank."""

    samples: int
    batch_size: int
    rank: int
    world_size: int
    training: bool

    @property
    def step(self) -> int:
        """Rows of a batch on all ranks together."""
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
        """Batches that hold the largest rank's samples; every rank makes as many."""
        return math.ceil(self.samples / self.step)

    @property
    def batches(self) -> int:
        """Batches given out in an epoch, equal on every rank: only full ones in training, all in evaluation."""
        return self.batches_after(0)

    def batches_after(self, taken: int) -> int:
        """Batches left of an epoch."""
        if self.training:
            return (self.samples - taken) // self.step
        return self.padded_batches - taken // self.step

    def first(self, taken: int) -> int:
        """The place in the epoch's order of the first row of the batch that follows ``taken`` samples."""
        if self.training:
            return taken + self.rank * self.batch_size
        return self.own_start + taken // self.step * self.batch_size

    def valid(self, batch: int) -> int:
        """How many rows of this batch are samples that no other batch holds."""
        if self.training:
            return self.batch_size
        return max(0, min(self.batch_size, self.own_samples - batch * self.batch_size))
