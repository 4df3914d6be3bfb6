"""The turbo backend: libjpeg-turbo on host threads that write pixels straight into the batch.

For a GPU pixels are copied and normalised there one batch ahead, beside the caller's kernels; for a CPU the thread that
decoded them normalises them, while they are in its cache.
"""

import importlib
from typing import Any

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.errors import DataError
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import Records
from pipelines.turbo.buffers import Layout, LentBuffers, Tensors
from pipelines.turbo.copies import DeviceCopies
from pipelines.turbo.ordered import AHEAD, OrderedBatches
from pipelines.turbo.work import Work


def require_turbo() -> None:
    """Raise DataError that names the wheels if one is missing."""
    for module in ("simplejpeg", "cv2"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DataError(
                f"the turbo backend needs two packages: pip install simplejpeg opencv-python-headless ({error})"
            ) from error


class TurboBatches(OrderedBatches):
    """Ordered batches, decoded by libjpeg-turbo on host threads."""

    def __init__(
        self, manifest: Manifest, records: Records, plan: Plan, augment: Augment, *, device: torch.device, **given: Any
    ) -> None:
        super().__init__(manifest, records, plan, augment, device=device, **given)
        layout = Layout(plan.batch_size, plan.batch_size * augment.crops, augment.size)
        early = self._normalise.batch if self._normalise.normalises and not self._transform else None  # before ``next``
        self._copies = DeviceCopies(layout, device, early, AHEAD + 2) if device.type == "cuda" else None
        dtype = np.float32 if early and not self._copies else np.uint8  # float32: threads normalise each image
        self._buffers = self._copies.buffers if self._copies else LentBuffers(layout, dtype)

    def _prepare(self, numbers: np.ndarray, **about: Any) -> Work:
        images, labels, crops, colours, memory = self._buffers.take()
        labels[:] = crops[:] = 0
        colours[:] = self._colours(about["draws"].lights)
        return Work(images=images, memory=memory, labels=labels, crops=crops, colours=colours, **about)

    def _tensors(self, work: Work) -> Tensors:
        """Return a batch on its device. Begin to copy the next one to a GPU, unless threads are still filling it."""
        if self._copies is None:
            return Tensors(work.memory, *map(torch.from_numpy, (work.labels, work.crops, work.colours)))
        tensors = self._copies.hand_out(work.copied or self._copies.begin(work.memory))
        if self._made and self._made[0].whole:
            self._made[0].copied = self._copies.begin(self._made[0].memory)
        return tensors

    def _make_compiled(self, work: Work, rows: range) -> list[int]:
        """Fill the rows that the compiled part can render. Return the others, which are left to Python."""
        if not self._native:
            return list(rows)
        left, pixels, some = [], self._pixels(work, rows), slice(rows.start, rows.stop)
        draws = work.draws.of(some)
        rendered = self._renderer.render_natively(self._worker(), work.samples[some], draws, pixels)
        work.crops[some, :2], work.crops[some, 2] = rendered["crop_at"], draws.flips
        work.labels[some] = rendered["label"]
        for row, image, done in zip(rows, pixels, rendered["done"].tolist(), strict=True):
            if done:
                self._normalise_place(work, row, image)
            else:
                left.append(row)
        return left
