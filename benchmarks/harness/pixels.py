"""Pixels compared with a reference's, image by image; and work that keeps a GPU busy meanwhile.

A decoder that writes into the wrong image, or hands out a batch before it is finished, may do so only under load.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# nvJPEG interpolates colours differently from libjpeg-turbo: by 1 in the mean, of 255, and far more at a few edges.
WRONG = 12.0


def compare(pairs: Iterable[tuple[np.ndarray, np.ndarray]], most: float | None = None) -> dict[str, Any]:
    """Compare pairs of decoded images with the reference's pixels, both H,W,C in steps of 0 to 255.

    Return the number of images, the mean and the highest difference, the highest mean of an image, and the number of
    ``wrong`` images: of another shape, or with a mean above WRONG, or with any difference above ``most``.
    """
    means, highest, wrong = [], 0.0, 0
    for found, expected in pairs:
        if found.shape != expected.shape:
            means.append(255.0)
            wrong, highest = wrong + 1, 255.0
            continue
        differences = np.abs(found.astype(np.float32) - expected)
        means.append(float(differences.mean()))
        highest = max(highest, float(differences.max()))
        wrong += means[-1] > WRONG or (most is not None and float(differences.max()) > most)
    return {
        "compared": len(means),
        "mean_difference": round(float(np.mean(means)), 3) if means else None,
        "max_difference": round(highest, 1),
        "worst_image": round(max(means, default=0.0), 3),
        "wrong": wrong,
    }


@contextmanager
def busy(gpu: bool) -> Iterator[Callable[[], None]]:
    """Give a function that queues some 20 ms of products on the current stream and as much on another one.

    It does nothing without a GPU.
    """
    if not gpu:
        yield lambda: None
        return
    import torch

    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    other = torch.cuda.Stream()

    def queue() -> None:
        for stream in (torch.cuda.current_stream(), other):
            with torch.cuda.stream(stream):
                for _ in range(14):  # 1.1e12 operations each
                    torch.mm(factor, factor)

    yield queue
    torch.cuda.synchronize()
