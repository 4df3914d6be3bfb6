"""Images that can be recognised in any crop: red grows along x, green along y, and blue is the number of the image.

So a batch of random resized crops shows whether each label belongs to its pixels, whether a crop was really taken and
resized, and whether an epoch has each image at most once.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.pixels import compare

COUNT, STEP, SIDE = 32, 8, 256  # images, difference in blue from one to the next, pixels
LEAST_SIDE, SLACK = 0.2, 0.03  # of the image, that a crop of 8 % of its area with ratio 3/4 to 4/3 has; JPEG's rounding


def write_ramps(folder: Path) -> list[tuple[str, int]]:
    """Write COUNT JPEGs. Return the path and number of each."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    files = []
    for number in range(COUNT):
        path = folder / f"{number:02d}.jpg"
        pixels = np.stack((x, y, np.full_like(x, number * STEP)), -1).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=98, subsampling=0)
        files.append((str(path), number))
    return files


def check_epochs(batches: Iterable[tuple[Any, Any]], batch_size: int, epochs: int = 2) -> dict[str, Any]:
    """Load some epochs of random resized crops: N,3,H,W float32 from 0 to 1, and N numbers.

    Return how the pixels compare with those expected. Raises ValueError if an image has another's number, a crop no
    possible place, or an epoch an image twice, or the order of the one before.
    """
    pairs, orders = [], []
    for _ in range(epochs):
        order = []
        for images, numbers in batches:
            order += list(numbers)
            pairs += [(image, expected(image, number)) for image, number in zip(255 * images, numbers, strict=True)]
        if len(set(order)) != len(order) or len(order) != COUNT // batch_size * batch_size:
            raise ValueError(f"an epoch of {COUNT} images in batches of {batch_size} has the images {order}")
        orders.append(order)
    if any(one == other for one, other in pairwise(orders)):
        raise ValueError("two epochs have the same order")
    return compare((found.transpose(1, 2, 0), wanted.transpose(1, 2, 0)) for found, wanted in pairs)


def expected(image: np.ndarray, number: int) -> np.ndarray:
    """Return the crop of that image that begins and ends where 3,H,W ``image`` does. Raises ValueError."""
    red, green = image[0].mean(0), image[1].mean(1)
    blue = float(image[2].mean())
    if abs(blue - number * STEP) > STEP / 3:
        raise ValueError(f"image {number} has the pixels of image {blue / STEP:.1f}")
    for ends in (red[[0, -1]], green[[0, -1]]):
        if not LEAST_SIDE - SLACK < abs(ends[1] - ends[0]) / SIDE < 1 + SLACK:
            raise ValueError(f"a crop of image {number} goes from {ends[0]:.0f} to {ends[1]:.0f} of {SIDE} pixels")
    wanted = np.empty_like(image)
    wanted[0] = np.linspace(red[0], red[-1], image.shape[2])
    wanted[1] = np.linspace(green[0], green[-1], image.shape[1])[:, None]
    wanted[2] = number * STEP
    return wanted
