"""A step of the caller's own on a batch, between decoding and normalisation, repeatable though it draws at random."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class SeededTransform:
    """A transform of images N,3,size,size uint8 and labels N int64, both on the device of the loader.

    It returns as many images of the same size, uint8 or floating on the 0..255 scale, and labels of any type. What it
    draws by torch's default generators is a function of (seed, epoch, place in the epoch) alone. The state of these
    generators is not changed.
    """

    transform: Transform
    seed: int

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the transformed batch. Raises ValueError if it is none."""
        devices = [images.device] if images.device.type == "cuda" else []
        seed = int(np.random.SeedSequence([self.seed, epoch, first]).generate_state(1, np.uint64)[0])
        with torch.random.fork_rng(devices):
            torch.random.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            transformed, labels = self.transform(images, labels)
        kinds = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
        if transformed.shape != images.shape or transformed.dtype not in kinds:
            raise ValueError(
                f"transform returned {transformed.dtype} images of the shape {tuple(transformed.shape)}: they must be "
                f"uint8 or floating, of the shape {tuple(images.shape)}"
            )
        return transformed, labels
