"""Mean, standard deviation and principal components of the train pixels, summed shard by shard in integers."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.shards.manifest import MEAN_IMAGE, Statistics

PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of channels


class PixelSums:
    """A set of integer sums over pixels, so that the order of adding changes no digit.

    ``size`` is the side of square images, which are also summed for the mean image; None if sizes differ.
    """

    def __init__(self, size: int | None) -> None:
        self.images = 0
        self.count = 0  # pixels
        self.totals = np.zeros(3, np.int64)  # sum of r, g, b over images and pixels
        self.products = np.zeros((3, 3), np.int64)  # sum of r*r, r*g, ..., the upper triangle
        self.image = None if size is None else np.zeros((size, size, 3))  # sum over images: integers too

    def add(self, pixels: np.ndarray) -> None:
        """Add the ``pixels`` of an image, H,W,3 uint8.

        OpenCV returns integers as floats far below 2**53, hence exactly. ``round`` is for builds of OpenCV that take a
        root and square it again.
        """
        self.images += 1
        if self.image is not None:
            cv2.accumulate(pixels, self.image)
        self.count += pixels.shape[0] * pixels.shape[1]
        self.totals += np.array(cv2.sumElems(pixels)[:3], np.int64)
        planes = cv2.split(pixels)
        squares = [round(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]
        for i, j in PAIRS:  # |a - b|^2 = a^2 + b^2 - 2ab, and OpenCV has a fast |a - b|^2
            apart = round(cv2.norm(planes[i], planes[j], cv2.NORM_L2SQR)) if i != j else 0
            self.products[i, j] += (squares[i] + squares[j] - apart) // 2

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value for name, value in vars(self).items() if value is not None})
        write_atomically(path, buffer.getvalue())

    def merge(self, path: Path) -> None:
        """Add the sums that another one saved. Raises DataError if the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as part:
                saved = {name: part[name] for name, value in vars(self).items() if value is not None}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is missing or damaged: run the same command again") from error
        self.add_sums(saved)

    def add_sums(self, sums: Mapping[str, Any]) -> None:
        """Add the attributes of another one."""
        for name, values in sums.items():
            if values is not None:
                setattr(self, name, getattr(self, name) + values)


def measured_samples(start: int, stop: int, total: int, wanted: int | None) -> range:
    """Return the samples of a shard, counted from its first, that enter the statistics.

    The shard has ``start`` to ``stop`` of ``total`` samples. They are in random order already, so evenly spaced ones
    are a random choice. At most ``wanted`` of all are taken, and more than half of ``wanted`` if there are that many;
    all are taken if ``wanted`` is None.
    """
    step = 1 if wanted is None else max(1, -(-total // wanted))
    return range(-start % step, stop - start, step)


def summarise(parts: Iterable[Path], size: int | None) -> tuple[Statistics, np.ndarray | None]:
    """Return the statistics of all ``parts`` and the mean image, size,size,3 float32, exact but for a last rounding.

    Raises DataError if a part is damaged, or if there is no image.
    """
    sums = PixelSums(size)
    for part in parts:
        sums.merge(part)
    if not sums.images:
        raise DataError("none of the images chosen for the statistics can be used: raise --statistics-images")
    return statistics_of(sums), None if sums.image is None else (sums.image / sums.images).astype(np.float32)


def statistics_of(sums: PixelSums) -> Statistics:
    """Return the statistics of the images that were added, at least one."""
    n = int(sums.count)
    totals = [int(total) for total in sums.totals]
    products = [[int(sums.products[min(i, j), max(i, j)]) for j in range(3)] for i in range(3)]
    covariance = np.array([[(n * products[i][j] - totals[i] * totals[j]) / n**2 for j in range(3)] for i in range(3)])
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])  # makes the sign reproducible
    return Statistics(
        mean_rgb=tuple(total / n for total in totals),
        std_rgb=tuple(float(value) for value in np.sqrt(np.diag(covariance))),
        eigenvalues=tuple(float(value) for value in values),
        eigenvectors=tuple(tuple(float(value) for value in row) for row in vectors),
        mean_image=None if sums.image is None else MEAN_IMAGE,
        images=int(sums.images),
    )
