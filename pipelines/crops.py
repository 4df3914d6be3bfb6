"""Boxes of the crops, computed from sizes and random draws; no pixels are touched."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def shorter_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width after the shorter side is resized to ``size``, as ``images.resize.shorter`` does."""
    if min(height, width) == size:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def random_box(down: float, across: float, height: int, width: int, size: int) -> Box:
    """Return a uniformly placed box of ``size`` x ``size``. ``down`` and ``across`` are draws in [0, 1)."""
    return Box(int(down * (height - size + 1)), int(across * (width - size + 1)), size, size)


def resized_box(
    draws: Sequence[float], shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Return a box with a random area and ratio: the first of ten attempts that fits, else one in the centre.

    The area and the logarithm of the ratio are uniform (Szegedy 2014, as torchvision's RandomResizedCrop).
    """
    (height, width), low, high = shape, math.log(ratio[0]), math.log(ratio[1])
    for i in range(0, len(draws), 4):
        area = height * width * (scale[0] + draws[i] * (scale[1] - scale[0]))
        chosen = math.exp(low + draws[i + 1] * (high - low))
        w, h = round(math.sqrt(area * chosen)), round(math.sqrt(area / chosen))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws[i + 2] * (height - h + 1)), int(draws[i + 3] * (width - w + 1)), h, w)
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def center_box(height: int, width: int, size: int) -> Box:
    """Return the centre box. Half pixels are rounded up, as by DALI; torchvision's center_crop rounds half to even."""
    return Box((height - size + 1) // 2, (width - size + 1) // 2, size, size)


def ten_boxes(height: int, width: int, size: int) -> list[Box]:
    """Return top left, top right, bottom left, bottom right and centre; then the same five again, to be mirrored."""
    bottom, right = height - size, width - size
    corners = [Box(top, left, size, size) for top in (0, bottom) for left in (0, right)]
    return [*corners, center_box(height, width, size)] * 2


def in_source(box: Box, height: int, width: int, resized_height: int, resized_width: int) -> Box:
    """Map ``box``, in the resized image, back to the image of height x width. Return whole pixels."""
    top, left = box.top * height / resized_height, box.left * width / resized_width
    h = min(height, max(1, round(box.height * height / resized_height)))
    w = min(width, max(1, round(box.width * width / resized_width)))
    return Box(min(round(top), height - h), min(round(left), width - w), h, w)


def shrink_to(box: Box, least: int) -> int:
    """Return 8, 4, 2 or 1: the most that a JPEG can shrink in decoding and keep ``least`` pixels a side of the box."""
    return next((times for times in (8, 4, 2) if min(box.height, box.width) >= times * least), 1)
