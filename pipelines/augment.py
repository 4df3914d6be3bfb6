"""What happens to an image between the shard and the network, as data. Every backend does the same by it."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.shards.manifest import Manifest, Statistics
from pipelines.shards.npy import read_npy
from pipelines.untrusted import MAX_FILE_BYTES, read_limited

RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


@dataclass(frozen=True)
class Jitter:
    """Colours changed at random, each image by its own factors, in the manner of DALI's ``color_twist``.

    Brightness, contrast and saturation are multiplied by a factor uniform within 1 - x to 1 + x; contrast is taken
    about 128. The hue is turned by up to ``hue`` of the circle either way. Values are cut off at 0 and 255.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, it goes from 0 to {most}")


@dataclass(frozen=True)
class Augment:
    """Fields in the order in which the image meets them. Raises ValueError for what cannot be done.

    ``crop`` to ``size`` x ``size`` pixels: ``random``, from anywhere, as it is; ``resized``, of an area of ``scale``
    of the image and a width of ``ratio`` times the height, resized (Szegedy 2014, as torchvision's
    RandomResizedCrop); ``center``; ``ten``, the corners and the centre, and the five mirrored (section 4.1 of the
    paper), in consecutive rows of the batch.
    ``flip`` left to right for half of the images.
    ``lighting``, the deviation of the factors on the principal components of colour (section 4.1).
    ``normalise`` subtracts the ``mean_image``, of which the same part is cropped, or the ``mean`` colour; ``mean_std``
    divides by the deviations of the channels too, and ``none`` leaves uint8 pixels. What the others leave is on the
    0..255 scale that the paper's initial weights expect; what was lit is divided by ``lit_divisor`` last.
    """

    crop: Literal["random", "resized", "center", "ten"] = "random"
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: Jitter | None = None
    lighting: float = 0.0
    normalise: Literal["mean_image", "mean", "mean_std", "none"] = "mean_std"
    lit_divisor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ValueError(f"{name} is {low} to {high}: it must rise, from above 0{' to 1' * (name == 'scale')}")
        if self.size < 1 or self.lighting < 0 or self.lit_divisor <= 0:
            raise ValueError("size starts at 1, lighting at 0, and lit_divisor is above 0")
        if self.crop == "resized" and self.normalise == "mean_image":
            raise ValueError("no mean image belongs to crops that are resized: normalise by mean or mean_std")
        if self.normalise == "none" and self.lighting:
            raise ValueError("pixels that are not normalised stay uint8: there is no lighting")

    @property
    def crops(self) -> int:
        """Rows of a batch for each image."""
        return 10 if self.crop == "ten" else 1

    def for_evaluation(self, crops: int = 1) -> "Augment":
        """The centre of the image, or ten crops, and the same normalisation, nothing random."""
        crop: Literal["ten", "center"] = "ten" if crops == 10 else "center"
        return replace(self, crop=crop, flip=False, jitter=None, lighting=0.0)

    def mean_and_std(self, statistics: Statistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per RGB channel on the 0..255 scale: but for a mean image, an image becomes (image - mean) / std.

        Raises DataError where a channel would be divided by 0.
        """
        mean = statistics.mean_rgb if self.normalise in ("mean", "mean_std") else (0.0, 0.0, 0.0)
        std = statistics.std_rgb if self.normalise == "mean_std" else (1.0, 1.0, 1.0)
        if not all(value > 0 for value in std):
            raise DataError(
                f"the train images deviate by {std} in red, green and blue: choose an augment with a mean alone"
            )
        return mean, tuple(value * (self.lit_divisor if self.lighting else 1.0) for value in std)


PAPER = Augment(lighting=0.1, normalise="mean_image")
SOURCE2012 = replace(PAPER, lit_divisor=1.1)  # so that noise does not widen the data, as the authors' source does
AUGMENTS = {
    "paper": PAPER,
    "source2012": SOURCE2012,
    "source2012_quiet": replace(SOURCE2012, lighting=0.0),
    "torchvision": Augment(crop="resized"),
    "modern": Augment(crop="resized", scale=(0.25, 1.0), jitter=Jitter(0.2, 0.2, 0.2)),
    "crop_flip": Augment(),
}


def load_mean_image(manifest: Manifest) -> np.ndarray:
    """size,size,3 float32: the per-pixel mean of the train images. Raises DataError where there is none."""
    name = manifest.statistics.mean_image
    if name is None:
        raise DataError(
            f"{manifest.folder} has no mean image, as its images differ in size: choose an augment that does not "
            "subtract one (crop_flip), or shard with --resize square"
        )
    size, path = manifest.image.size, manifest.folder / name
    try:
        image = read_npy(read_limited(path, MAX_FILE_BYTES), (size, size, 3), np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): restore it, or make the shards again") from error
    if not ((image >= 0) & (image <= 255)).all():
        raise DataError(f"{path} holds other values than 0 to 255: restore it, or make the shards again")
    return image


def lighting_matrix(statistics: Statistics) -> tuple[tuple[float, ...], ...]:
    """3,3: multiplied by three standard normal factors it is the colour to add to an image, RGB on the 0..255 scale.

    The paper says "eigenvalues"; its source multiplies by deviations, their square roots, and so do we.
    """
    deviations = [math.sqrt(value) for value in statistics.eigenvalues]
    return tuple(tuple(v * d for v, d in zip(row, deviations, strict=True)) for row in statistics.eigenvectors)


def colour_matrix(
    brightness: npt.ArrayLike, contrast: npt.ArrayLike, saturation: npt.ArrayLike, hue: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Jitter of these factors as ``clip(matrix @ rgb + offset, 0, 255)``: matrix 3,3 and offset 3, float64.

    As DALI's ``color_twist`` (dali/operators/image/color/color_twist.h): saturation scales and hue, in turns, rotates
    the chroma of YIQ; contrast is taken about 128; brightness scales what comes out. Of N factors each: N,3,3 and N,3.
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
