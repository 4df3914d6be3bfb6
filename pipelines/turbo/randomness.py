"""Random numbers by place: those of any sample of an epoch can be drawn without those before it.

Order and augmentation are functions of (seed, epoch, place in the order) alone, so that a loader can go on anywhere,
on any number of ranks and threads. Philox counts (Salmon 2011): its state after any number of draws is known at once.
"""

import math
from typing import NamedTuple

import numpy as np

from pipelines.augment import Augment, Jitter, colour_matrix

ORDER, SHAPE, COLOUR = range(3)  # three streams of numbers that have nothing to do with each other
ATTEMPTS = 10  # at a resized crop that fits into the image, as torchvision
SHAPE_DRAWS = 1 + 4 * ATTEMPTS  # flip; area, ratio, down, across
COLOUR_DRAWS = 8  # four for three normal factors of light; brightness, contrast, saturation, hue


class SampleDraws(NamedTuple):
    """What it says of one sample's pixels."""

    shape: list[float]
    flip: bool
    colour: np.ndarray | None


class Draws(NamedTuple):
    """What chance says of some samples in a row."""

    flips: np.ndarray  # N bool
    shapes: np.ndarray  # N,40 from 0 to 1, of which crops are made
    lights: np.ndarray  # N,3 standard normal
    colours: np.ndarray | None  # N,3,4: pixels (R, G, B, 1) to jittered pixels

    def of(self, rows: slice) -> "Draws":
        """Of these samples alone."""
        colours = None if self.colours is None else self.colours[rows]
        return Draws(self.flips[rows], self.shapes[rows], self.lights[rows], colours)

    def at(self, row: int) -> SampleDraws:
        colour = None if self.colours is None else self.colours[row]
        return SampleDraws(self.shapes[row].tolist(), bool(self.flips[row]), colour)


def epoch_order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """samples int64: a permutation of all of them."""
    return np.random.Generator(_philox(seed, epoch, ORDER)).permutation(samples)


def draw(seed: int, epoch: int, augment: Augment, first: int, count: int) -> Draws:
    """For the samples at ``first`` to ``first + count`` in the order of the epoch."""
    shapes = _uniform(seed, epoch, SHAPE, first, count, SHAPE_DRAWS)
    colours = _uniform(seed, epoch, COLOUR, first, count, COLOUR_DRAWS)
    flips = (shapes[:, 0] < 0.5) & augment.flip
    jitter = _jitter(colours[:, 4:], augment.jitter) if augment.jitter else None
    return Draws(flips, shapes[:, 1:], _normal(colours[:, :4]), jitter)


def _jitter(uniform: np.ndarray, jitter: Jitter) -> np.ndarray:
    spread = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    centre = np.array([1, 1, 1, 0])
    matrix, offset = colour_matrix(*(centre + spread * (2 * uniform - 1)).T)
    return np.concatenate([matrix, offset[:, :, None]], axis=2)


def _normal(uniform: np.ndarray) -> np.ndarray:
    """N,4 uniform to N,3 standard normal (Box and Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, [0, 0, 2]])), 2 * math.pi * uniform[:, [1, 1, 3]]
    return radius * np.stack([np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 2])], 1)


def _uniform(seed: int, epoch: int, stream: int, first: int, count: int, columns: int) -> np.ndarray:
    """count,columns float64 in [0, 1): the rows from ``first`` on of an endless table."""
    blocks = -(-columns // 4)  # the counter goes up by one for four draws
    table = np.random.Generator(_philox(seed, epoch, stream).advance(first * blocks))
    return table.random((count, 4 * blocks))[:, :columns]


def _philox(seed: int, epoch: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed % (1 << 64), epoch * 4 + stream], np.uint64))
