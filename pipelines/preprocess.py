"""One picture, prepared as the loaders prepare the images of a shard folder for evaluation."""

from typing import Any

import numpy as np
import torch

from pipelines.augment import AUGMENTS
from pipelines.resize import square
from pipelines.shards import Statistics


class Preparation:
    """What a checkpoint says about its input: ``augment``, a name in AUGMENTS, ``image_size`` and ``statistics``."""

    def __init__(self, augment: str, image_size: int, statistics: dict[str, Any]) -> None:
        self._augment, self._image_size = AUGMENTS[augment].for_evaluation(), image_size
        mean, std = self._augment.mean_and_std(Statistics(**statistics))
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)

    def view(self, pixels: np.ndarray) -> np.ndarray:
        """The part of an H,W,3 uint8 image that the network sees, size,size,3."""
        edge = (self._image_size - self._augment.size) // 2
        inner = slice(edge, edge + self._augment.size)
        return square(pixels, self._image_size)[inner, inner]

    def tensor(self, view: np.ndarray) -> torch.Tensor:
        """What the network is given: 3,size,size float32, normalised, channels-last."""
        return torch.from_numpy((view - self._mean) / self._std).permute(2, 0, 1)
