"""Synthetic batches, with every loader's contract: they show the trainer's speed when it never waits for data."""

import torch

from pipelines.augment import Augment
from pipelines.backend import Rows
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest


class SyntheticBatches:
    """A backend that repeats one batch: noise, and random labels of the manifest's classes."""

    def __init__(self, manifest: Manifest, plan: Plan, augment: Augment, *, device: torch.device, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed * 4096 + plan.rank)
        shape = (plan.batch_size * augment.crops, 3, augment.size, augment.size)
        if augment.normalise == "none":
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        else:  # standard normal, about as normalised images are
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            images = torch.randn(shape, generator=generator).to(dtype)
        self._images = images.to(device, memory_format=torch.channels_last)
        self._labels = torch.randint(len(manifest.classes), (plan.batch_size,), generator=generator)

    def next(self) -> Rows:
        """Return the batch: images N,3,H,W, channels-last, and labels N int64."""
        return Rows(self._images, self._labels)

    def checkpoint(self) -> None:
        """Return None: there is no position besides the number of batches."""

    def close(self) -> None:
        """Do nothing: no threads were started."""
