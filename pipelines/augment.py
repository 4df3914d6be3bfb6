"""Preprocessing and augmentation as data: an ``Augment`` says what every backend does to an image after decoding."""

import math
import operator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.shards.manifest import Manifest, Statistics
from pipelines.shards.npy import read_npy
from pipelines.untrusted import MAX_FILE_BYTES, read_limited

RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


Crop = Literal["random", "resized", "center", "ten"]
Normalisation = Literal["mean_image", "mean", "mean_std", "none"]


@dataclass(frozen=True)
class Jitter:
    """A random change of colours, drawn for each image, as DALI's ``color_twist`` does it.

    Brightness, contrast and saturation are multiplied by a factor uniform within 1 - x to 1 + x; contrast is taken
    about 128. The hue is rotated by up to ``hue`` of the circle either way. Values are clipped to 0 to 255.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to {most}")


@dataclass(frozen=True)
class Augment:
    """A recipe of preprocessing; its fields stand in the order in which they apply. Raises ValueError if they clash.

    ``crop`` gives ``size`` x ``size`` pixels: ``random``, a window anywhere, not resized; ``resized``, a window with
    the fraction ``scale`` of the image's area and a width of ``ratio`` times its height, resized (Szegedy 2014, as
    torchvision's RandomResizedCrop); ``center``; ``ten``, the four corners and the centre, then the same five
    mirrored (section 4.1 of the paper), in consecutive rows of the batch.
    ``flip`` mirrors half of the images left to right.
    ``lighting`` is the standard deviation of the factors on the principal components of colour (section 4.1).
    ``normalise`` subtracts the ``mean_image``, cropped as the image was, or the ``mean`` colour; ``mean_std`` also
    divides by the standard deviations of the channels; ``none`` keeps uint8 pixels. With ``mean_image`` and ``mean``
    pixels stay on the 0..255 scale that the paper's initial weights expect. If there is ``lighting``, the result is
    divided by ``lit_divisor``.
    ``mean`` and ``std``, by default those of the train images, are given for red, green and blue on the 0..1 scale, as
    for torchvision's Normalize, for networks that were trained elsewhere: (0.485, 0.456, 0.406) and (0.229, 0.224,
    0.225) for ``mean_std``, or only a ``mean``.
    """

    crop: Crop = "random"
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: Jitter | None = None
    lighting: float = 0.0
    normalise: Normalisation = "mean_std"
    lit_divisor: float = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, known in (("crop", get_args(Crop)), ("normalise", get_args(Normalisation)), ("flip", (True, False))):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} {getattr(self, name)!r}, only {', '.join(map(str, known))}")
        if not isinstance(self.jitter, Jitter | None):
            raise ValueError(f"jitter is {self.jitter!r}: it must be a Jitter or None")
        for name in ("scale", "ratio"):
            low, high = self._numbers(name, 2)
            if not 0 < low <= high or (name == "scale" and high > 1):
                most = " and at most 1" * (name == "scale")
                raise ValueError(f"{name} is {low} to {high}: it must be ascending and above 0{most}")
        object.__setattr__(self, "size", operator.index(self.size))
        if self.size < 1 or not 0 <= self.lighting < math.inf or not 0 < self.lit_divisor < math.inf:
            raise ValueError("size must be at least 1, lighting at least 0, and lit_divisor above 0")
        if self.crop == "resized" and self.normalise == "mean_image":
            raise ValueError("resized crops cannot subtract a mean image: normalise by mean or mean_std")
        if self.normalise == "none" and self.lighting:
            raise ValueError("pixels that are not normalised stay uint8, which lighting cannot be added to")
        self._check_mean_and_std()

    def _numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return the field as ``count`` floats. Raises ValueError if it does not hold as many numbers."""
        value: Any = getattr(self, name)
        try:
            numbers = tuple(map(float, value))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count:
            raise ValueError(f"{name} is {value!r}: it must be {count} numbers")
        object.__setattr__(self, name, numbers)
        return numbers

    def _check_mean_and_std(self) -> None:
        given = [name for name in ("mean", "std") if getattr(self, name) is not None]
        if given and given != {"mean": ["mean"], "mean_std": ["mean", "std"]}.get(self.normalise):
            raise ValueError(
                f"{' and '.join(given)} given with normalise={self.normalise!r}: give a mean for 'mean', "
                "a mean and a std for 'mean_std', and neither otherwise"
            )
        values = [value for name in given for value in self._numbers(name, 3)]
        if not all(0 <= value <= 1 for value in values) or 0 in (self.std or ()):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}: they must be on the 0..1 scale, as for torchvision's "
                "Normalize, and the std above 0; divide those of the 0..255 scale by 255"
            )

    @property
    def crops(self) -> int:
        """Number of crops, which are rows of the batch, for each image."""
        return 10 if self.crop == "ten" else 1

    def for_evaluation(self, crops: int = 1) -> "Augment":
        """Return the same normalisation with the center crop, or ten crops, and nothing random."""
        crop: Literal["ten", "center"] = "ten" if crops == 10 else "center"
        return replace(self, crop=crop, flip=False, jitter=None, lighting=0.0)

    def mean_and_std(self, statistics: Statistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per RGB channel on the 0..255 scale: an image becomes (image - mean) / std.

        A mean image is subtracted apart; the mean is 0 then. Raises DataError if a channel would be divided by 0.
        """
        mean = statistics.mean_rgb if self.normalise in ("mean", "mean_std") else (0.0, 0.0, 0.0)
        std = statistics.std_rgb if self.normalise == "mean_std" else (1.0, 1.0, 1.0)
        mean = mean if self.mean is None else tuple(255 * value for value in self.mean)
        std = std if self.std is None else tuple(255 * value for value in self.std)
        if not all(value > 0 for value in std):
            raise DataError(
                f"the train images have a standard deviation of {std} in red, green and blue: choose an augment that "
                "subtracts a mean only"
            )
        return mean, tuple(value * (self.lit_divisor if self.lighting else 1.0) for value in std)


PAPER = Augment(lighting=0.1, normalise="mean_image")
SOURCE2012 = replace(PAPER, lit_divisor=1.1)  # keeps the variance of the data as it was, as the authors' source does
AUGMENTS = {
    "paper": PAPER,
    "source2012": SOURCE2012,
    "source2012_quiet": replace(SOURCE2012, lighting=0.0),
    "torchvision": Augment(crop="resized"),
    "modern": Augment(crop="resized", scale=(0.25, 1.0), jitter=Jitter(0.2, 0.2, 0.2)),
    "strong": Augment(crop="resized", jitter=Jitter(0.4, 0.4, 0.4)),
    "crop_flip": Augment(),
}


def load_mean_image(manifest: Manifest) -> np.ndarray:
    """Return size,size,3 float32: the per-pixel mean of the train images. Raises DataError if there is none."""
    name = manifest.statistics.mean_image
    if name is None:
        raise DataError(
            f"{manifest.location} has no mean image, as its images differ in size: choose an augment that does not "
            "subtract one (crop_flip), or shard with --resize square"
        )
    size, path = manifest.image.size, manifest.folder / name
    try:
        image = read_npy(read_limited(path, MAX_FILE_BYTES), (size, size, 3), np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): restore it, or make the shards again") from error
    if not ((image >= 0) & (image <= 255)).all():
        raise DataError(f"{path} holds values outside 0 to 255: restore it, or make the shards again")
    return image


def lighting_matrix(statistics: Statistics) -> tuple[tuple[float, ...], ...]:
    """Return 3,3: times three standard normal factors it is the RGB colour to add to an image, on the 0..255 scale.

    The paper multiplies by eigenvalues; its source by standard deviations, their square roots, and so do we.
    """
    deviations = [math.sqrt(value) for value in statistics.eigenvalues]
    return tuple(tuple(v * d for v, d in zip(row, deviations, strict=True)) for row in statistics.eigenvectors)


def colour_matrix(
    brightness: npt.ArrayLike, contrast: npt.ArrayLike, saturation: npt.ArrayLike, hue: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Return the jitter ``clip(matrix @ rgb + offset, 0, 255)`` as a matrix 3,3 and an offset 3, float64.

    It is DALI's ``color_twist`` (dali/operators/image/color/color_twist.h): saturation scales and hue, in turns,
    rotates the chroma of YIQ; contrast is taken about 128; brightness scales the result. N factors each give N,3,3 and
    N,3.
    """
    brightness, contrast, saturation, hue = np.broadcast_arrays(brightness, contrast, saturation, hue)
    twist = np.zeros((*hue.shape, 3, 3))
    twist[..., 0, 0] = 1
    twist[..., 1, 1] = twist[..., 2, 2] = saturation * np.cos(2 * np.pi * hue)
    twist[..., 1, 2] = saturation * np.sin(2 * np.pi * hue)
    twist[..., 2, 1] = -twist[..., 1, 2]
    gain = (brightness * contrast)[..., None, None]
    matrix = gain * (np.linalg.inv(RGB_TO_YIQ) @ twist @ RGB_TO_YIQ)
    return matrix, np.repeat((brightness * (1 - contrast) * 128.0)[..., None], 3, axis=-1)
