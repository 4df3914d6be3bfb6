"""How the samples of a split fall into batches, over ranks: numbers only."""

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
    def own_samples(self) -> int:
        """This rank's share: a contiguous range, as DALI's reader cuts it."""
        return self.samples * (self.rank + 1) // self.world_size - self.samples * self.rank // self.world_size

    @property
    def padded_batches(self) -> int:
        """Batches that hold the largest rank's samples; every rank makes as many."""
        return math.ceil(math.ceil(self.samples / self.world_size) / self.batch_size)

    @property
    def batches(self) -> int:
        """Batches given out in an epoch, equal on every rank: only full ones in training, all in evaluation."""
        if self.training:
            return self.samples // self.world_size // self.batch_size
        return self.padded_batches

    def valid(self, batch: int) -> int:
        """How many rows of this batch are samples that no other batch holds."""
        return max(0, min(self.batch_size, self.own_samples - batch * self.batch_size))
