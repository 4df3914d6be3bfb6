"""Random numbers by position: the draws of any sample of an epoch can be made without those of earlier samples.

Order and augmentation are functions of (seed, epoch, position in the order) alone, so a loader can resume anywhere,
with any number of ranks and threads. Philox is counter-based (Salmon 2011): it can jump to any draw at once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.augment import Augment, Jitter, colour_matrix

ORDER, CROP, COLOUR = range(3)  # three independent streams of random numbers
ATTEMPTS = 10  # to find a resized crop that fits into the image, as torchvision
CROP_DRAWS = 1 + 4 * ATTEMPTS  # flip; area, ratio, down, across
COLOUR_DRAWS = 8  # four, which make three normal factors of light; brightness, contrast, saturation, hue


class SampleDraws(NamedTuple):
    """A sample's draws for its crop, flip and jitter."""

    crop_draws: list[float]
    flip: bool
    colour: np.ndarray | None


class Draws(NamedTuple):
    """A table of the draws of consecutive samples."""

    flips: np.ndarray  # N bool
    crop_draws: np.ndarray  # N,40 in [0, 1), from which crops are computed
    lights: np.ndarray  # N,3 standard normal
    colours: np.ndarray | None  # N,3,4: pixels (R, G, B, 1) to jittered pixels

    def of(self, rows: slice | np.ndarray) -> "Draws":
        """Return the draws of these samples alone."""
        colours = None if self.colours is None else self.colours[rows]
        return Draws(self.flips[rows], self.crop_draws[rows], self.lights[rows], colours)

    def at(self, row: int) -> SampleDraws:
        colour = None if self.colours is None else self.colours[row]
        return SampleDraws(self.crop_draws[row].tolist(), bool(self.flips[row]), colour)


def epoch_order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """Return a permutation of the samples, int64."""
    return np.random.Generator(_philox(seed, epoch, ORDER)).permutation(samples)


def windowed_order(seed: int, epoch: int, counts: Sequence[int], window: int) -> np.ndarray:
    """Return a permutation of the samples of shards with these ``counts``, int64, that mixes ``window`` shards.

    The shards come in a random order, one more for each that is used up. A sample's place is the number of its shard
    in that order plus a uniform draw from 0 to ``window``: so at any place the samples are of at most ``window``
    shards, and each shard is needed once. On the circle from 0 to ``window`` a draw is a quarter to three quarters
    beyond the one before it: neighbours in a shard do not meet in a batch, and all others are as good as independent.
    """
    random = np.random.Generator(_philox(seed, epoch, ORDER))
    turns = np.argsort(random.permutation(len(counts)))  # of each shard
    draws = (random.random() + np.cumsum(0.25 + 0.5 * random.random(sum(counts)))) % 1
    return np.argsort(np.repeat(turns, counts) + window * draws, kind="stable")


def draw(seed: int, epoch: int, augment: Augment, *, first: int, count: int) -> Draws:
    """Draw for ``count`` samples from the position ``first`` in the epoch's order."""
    crops = _uniform(_philox(seed, epoch, CROP), first, count, CROP_DRAWS)
    colours = _uniform(_philox(seed, epoch, COLOUR), first, count, COLOUR_DRAWS)
    flips = (crops[:, 0] < 0.5) & augment.flip
    jitter = _jitter(colours[:, 4:], augment.jitter) if augment.jitter else None
    return Draws(flips, crops[:, 1:], _normal(colours[:, :4]), jitter)


def _jitter(uniform: np.ndarray, jitter: Jitter) -> np.ndarray:
    spread = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    centre = np.array([1, 1, 1, 0])
    matrix, offset = colour_matrix(*(centre + spread * (2 * uniform - 1)).T)
    return np.concatenate([matrix, offset[:, :, None]], axis=2)


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Transform N,4 uniform to N,3 standard normal numbers (Box and Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, [0, 0, 2]])), 2 * math.pi * uniform[:, [1, 1, 3]]
    return radius * np.stack([np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 2])], 1)


def _uniform(stream: np.random.Philox, first: int, count: int, columns: int) -> np.ndarray:
    """Return count,columns float64 in [0, 1): rows of an endless table, beginning with the row ``first``."""
    blocks = -(-columns // 4)  # the counter increases by one for four draws
    table = np.random.Generator(stream.advance(first * blocks))
    return table.random((count, 4 * blocks))[:, :columns]


def _philox(seed: int, epoch: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed % (1 << 64), epoch * 4 + stream], np.uint64))
