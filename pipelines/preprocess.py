"""One picture, prepared as the loaders prepare the images of a shard folder for evaluation."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.augment import AUGMENTS
from pipelines.images import square
from pipelines.shards import Statistics


class Preparation:
    """What a checkpoint says about its input: ``augment``, a name in AUGMENTS, ``image_size`` and ``statistics``."""

    def __init__(self, augment: str, image_size: int, statistics: dict[str, Any]) -> None:
        self._augment, self._image_size = AUGMENTS[augment].for_evaluation(), image_size
        mean, std = self._augment.mean_and_std(Statistics(**statistics))
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)

    def view(self, image: Image.Image) -> Image.Image:
        """The part of an RGB image that the network sees, size x size pixels."""
        edge = (self._image_size - self._augment.size) // 2
        return square(image, self._image_size).crop((edge, edge, edge + self._augment.size, edge + self._augment.size))

    def tensor(self, view: Image.Image) -> torch.Tensor:
        """What the network is given: 3,size,size float32, normalised, channels-last."""
        pixels = (np.asarray(view, np.float32) - self._mean) / self._std
        return torch.from_numpy(pixels).permute(2, 0, 1)
