"""What happens to an image between the shard and the network, as data. Every backend does the same by it."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.shards import Statistics


@dataclass(frozen=True)
class Augment:
    """Fields in the order in which the image meets them.

    ``crop`` random or center, of ``size`` x ``size`` pixels; ``flip`` left to right for half of the images;
    ``lighting``, the deviation of the factors on the principal components of colour (section 4.1 of the paper);
    ``scaled``, whether pixels are divided by their deviation after the mean is subtracted, or stay on the 0..255 scale
    that the paper's initial weights expect.
    """

    crop: Literal["random", "center"] = "random"
    size: int = 224
    flip: bool = True
    lighting: float = 0.0
    scaled: bool = True

    def for_evaluation(self) -> "Augment":
        """The centre of the image and the same normalisation, nothing random."""
        return replace(self, crop="center", flip=False, lighting=0.0)

    def mean_and_std(self, statistics: Statistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per RGB channel on the 0..255 scale: an image becomes (image - mean) / std."""
        return statistics.mean_rgb, statistics.std_rgb if self.scaled else (1.0, 1.0, 1.0)


AUGMENTS = {
    "paper": Augment(lighting=0.1, scaled=False),
    "crop_flip": Augment(),
}


def lighting_matrix(statistics: Statistics) -> tuple[tuple[float, ...], ...]:
    """3,3: multiplied by three standard normal factors it is the colour to add to an image, RGB on the 0..255 scale.

    The paper says "eigenvalues"; its source multiplies by deviations, their square roots, and so do we.
    """
    deviations = [math.sqrt(value) for value in statistics.eigenvalues]
    return tuple(tuple(v * d for v, d in zip(row, deviations, strict=True)) for row in statistics.eigenvectors)
