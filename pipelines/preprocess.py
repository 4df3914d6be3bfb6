"""One picture, prepared as the loaders prepare the images of a shard folder for evaluation."""

from typing import Any

import numpy as np
import torch

from pipelines.augment import AUGMENTS
from pipelines.crops import center_box
from pipelines.resize import square
from pipelines.shards import DataError, Statistics


class Preparation:
    """What a checkpoint says about its input: ``augment``, a name in AUGMENTS, ``image_size`` and ``statistics``, and
    ``mean_image``, size,size,3, which an augment may subtract. Raises DataError where that is missing.

    An image becomes (view - ``mean``) / ``std``: float32 of 3, or of the view's size.
    """

    def __init__(
        self, augment: str, image_size: int, statistics: dict[str, Any], mean_image: torch.Tensor | None
    ) -> None:
        self._augment, self._image_size = AUGMENTS[augment].for_evaluation(), image_size
        mean, std = self._augment.mean_and_std(Statistics(**statistics))
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        if self._augment.normalise == "mean_image":
            if mean_image is None:
                raise DataError(f"the checkpoint lacks the mean image that the augment {augment} subtracts")
            self.mean = self._centre(mean_image.numpy())

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> "Preparation":
        """As the network of the checkpoint was trained. Older ones have no mean image."""
        image_size, statistics = checkpoint["image_size"], checkpoint["statistics"]
        return cls(checkpoint["augment"], image_size, statistics, checkpoint.get("mean_image"))

    def view(self, pixels: np.ndarray) -> np.ndarray:
        """The part of an H,W,3 uint8 image that the network sees, size,size,3."""
        return self._centre(square(pixels, self._image_size))

    def tensor(self, view: np.ndarray) -> torch.Tensor:
        """What the network is given: 3,size,size float32, normalised, channels-last."""
        return torch.from_numpy((view - self.mean) / self.std).permute(2, 0, 1)

    @property
    def box(self) -> tuple[int, int, int]:
        """Where the view lies in the square image: top, left and size."""
        box = center_box(self._image_size, self._image_size, self._augment.size)
        return box.top, box.left, box.height

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        top, left, size = self.box
        return pixels[top : top + size, left : left + size]
