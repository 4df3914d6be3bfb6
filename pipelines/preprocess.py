"""Preprocessing of a single picture, the same as the loaders' for evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.augment import AUGMENTS, Augment
from pipelines.crops import center_box
from pipelines.errors import DataError
from pipelines.images.resize import square
from pipelines.shards.manifest import MAX_SIZE, Statistics
from pipelines.untrusted import coerce, shown


class Preparation:
    """The preprocessing that a checkpoint's network expects: ``augment``, a name in AUGMENTS, ``image_size``,
    ``statistics``, and ``mean_image``, size,size,3, which an augment may subtract. ``normalise``, if given, replaces
    the augment's own. Raises DataError if one of them is missing or impossible.

    An image becomes (crop - ``mean``) / ``std``; both are float32, of shape 3 or of the crop's shape.
    """

    def __init__(self, augment: Any, image_size: Any, statistics: Any, mean_image: Any, normalise: Any = None) -> None:
        """Check the entries of a checkpoint, which may have any type. Raises DataError."""
        if not isinstance(augment, str) or augment not in AUGMENTS:
            raise DataError(f"the checkpoint's augment is {shown(augment)}; known are {', '.join(AUGMENTS)}")
        self._augment = AUGMENTS[augment].for_evaluation()
        if normalise is not None:
            self._augment = _normalised(self._augment, normalise=normalise)
        if type(image_size) is not int or not self._augment.size <= image_size <= MAX_SIZE:
            sizes = f"it must be from {self._augment.size} to {MAX_SIZE}"
            raise DataError(f"the checkpoint's image_size is {shown(image_size)}; {sizes}")
        self._image_size = image_size
        try:
            self.statistics = coerce(statistics, Statistics, "statistics")
        except ValueError as error:
            raise DataError(f"the checkpoint's statistics are damaged: {error}") from error
        mean, std = self._augment.mean_and_std(self.statistics)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        if self._augment.normalise == "mean_image":
            self.mean = self._centre(self._checked(mean_image))

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> "Preparation":
        """Return the preprocessing that the checkpoint was trained with. Older checkpoints have no mean image."""
        names = ("augment", "image_size", "statistics", "mean_image", "normalise")
        return cls(*(checkpoint.get(name) for name in names))

    def onto(self, augment: Augment) -> Augment:
        """Return ``augment``, normalised as for this network. A mean image counts as its mean colour."""
        kind = {"mean_image": "mean"}.get(self._augment.normalise, self._augment.normalise)
        mean, std = ([value / 255 for value in v] for v in (self.statistics.mean_rgb, self.statistics.std_rgb))
        given = {"mean": {"mean": mean}, "mean_std": {"mean": mean, "std": std}}.get(kind, {})
        return _normalised(augment, normalise=kind, **given)

    def evaluation(self, crops: int = 1) -> Augment:
        """Return the augment with which a loader prepares images, of any shards, for this network."""
        augment = self._augment.for_evaluation(crops)
        return augment if augment.normalise == "mean_image" else self.onto(augment)

    def _checked(self, mean_image: Any) -> np.ndarray:
        size = self._image_size
        if mean_image is None:
            raise DataError("the checkpoint lacks the mean image that its augment subtracts")
        if not isinstance(mean_image, torch.Tensor) or mean_image.shape != (size, size, 3):
            raise DataError(f"the checkpoint's mean image is not a tensor of {size},{size},3")
        pixels = mean_image.float().numpy()
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise DataError("the checkpoint's mean image holds values outside 0 to 255")
        return pixels

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Return the center crop, size,size,3, of an H,W,3 uint8 image after resizing it."""
        return self._centre(square(pixels, self._image_size))

    def tensor(self, view: np.ndarray) -> torch.Tensor:
        """Return the network's input: 3,size,size float32, normalised, channels-last."""
        return torch.from_numpy((view - self.mean) / self.std).permute(2, 0, 1)

    @property
    def box(self) -> tuple[int, int, int]:
        """Top, left and size of the crop in the square image."""
        box = center_box(self._image_size, self._image_size, self._augment.size)
        return box.top, box.left, box.height

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        top, left, size = self.box
        return pixels[top : top + size, left : left + size]


def _normalised(augment: Augment, **fields: Any) -> Augment:
    """Return ``augment`` with other fields of normalisation. Raises DataError if they are impossible."""
    try:
        return replace(augment, **fields)
    except (ValueError, TypeError) as error:
        raise DataError(f"the checkpoint's normalisation is impossible: {error}") from error
