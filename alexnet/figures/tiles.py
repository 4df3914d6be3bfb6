"""Small pictures laid out in a grid."""

import math

import numpy as np


def tile(images: np.ndarray, columns: int, gap: int = 1, between: float = 1.0) -> np.ndarray:
    """Lay out N,H,W,3 images of values 0..1 in a grid, with gaps of ``gap`` pixels of brightness ``between``."""
    n, height, width, _ = images.shape
    rows = math.ceil(n / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), between)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        grid[y : y + height, x : x + width] = image
    return grid


def shortened(name: str, length: int = 24) -> str:
    """Return a class's first name, cut if it is too long for a label."""
    return plain(shortened_text(name, length))


def shortened_text(name: str, length: int = 24) -> str:
    """Return the same where matplotlib does not draw it."""
    first = name.split(",")[0]
    return first if len(first) <= length else first[: length - 1] + "…"


def plain(text: str) -> str:
    """Escape dollar signs, which would mark a formula for matplotlib."""
    return text.replace("$", r"\$")
