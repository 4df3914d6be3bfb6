"""Batches in the order of (seed, epoch), filled by threads: what turbo and gpu share.

Each epoch is a full permutation of all samples, a function of (seed, epoch) alone, and the augmentation of a sample is
one of (seed, epoch, position in the epoch). So two numbers, epoch and position, are enough to resume. Threads take a
few samples of a batch at a time, up to ``AHEAD`` batches ahead.
"""

import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.backend import Ahead, Rows
from pipelines.errors import DataError
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import Records, SampleError
from pipelines.transform import SeededTransform, Transform
from pipelines.turbo.buffers import Tensors
from pipelines.turbo.native import Worker, renders_natively
from pipelines.turbo.normalise import Normalise
from pipelines.turbo.randomness import draw, epoch_order
from pipelines.turbo.renderer import Renderer, prepare_opencv
from pipelines.turbo.work import Work

AHEAD = 3  # batches
CHUNK = 16  # samples that a thread decodes at a time
MAX_REPLACEMENTS = 16  # tried for a sample that cannot be used; if all fail, the fault is not in single samples


class OrderedBatches(ABC):
    """An endless source of batches, starting ``taken`` samples into ``epoch``. Its threads end when it is closed or
    garbage-collected.

    A sample that cannot be used is replaced by the next in the order, or in evaluation by padding at the end; ``skip``
    is called with its error when ``next`` returns that batch. Without ``skip`` the first such error is raised.
    ``keys`` and ``extras``, extensions of members, come with each batch. ``transform`` is applied to the batch before
    normalisation, on the caller's stream, when ``next`` returns that batch. ``order`` returns an epoch's order of
    training in place of a full permutation; ``ahead`` fetches shards that are not on this machine.
    """

    chunk = CHUNK  # samples that a thread takes at a time

    def __init__(
        self,
        manifest: Manifest,
        records: Records,
        plan: Plan,
        augment: Augment,
        *,
        device: torch.device,
        seed: int,
        threads: int,
        epoch: int = 0,
        taken: int = 0,
        skip: Callable[[SampleError], None] | None = None,
        keys: bool = False,
        extras: tuple[str, ...] = (),
        transform: Transform | None = None,
        order: Callable[[int], np.ndarray] | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self._manifest, self._records, self._plan, self._augment = manifest, records, plan, augment
        records.closed = False
        self._seed, self._skip = seed, skip
        self._keys, self._extras = keys, extras
        self._transform = SeededTransform(transform, seed) if transform else None
        self._normalise, self._renderer = Normalise(manifest, augment, device), Renderer(manifest, augment)
        self._native = renders_natively(manifest, augment)
        self._batches = _endless(plan, epoch, taken)
        self._upcoming = next(self._batches)
        self._order_of = order or partial(epoch_order, seed, samples=plan.samples)
        self._order = -1, np.empty(0, np.int64)
        self._ahead = ahead
        if ahead:
            weakref.finalize(self, ahead.close)
        self._made: deque[Any] = deque()
        self._own = threading.local()
        self._threads = ThreadPoolExecutor(threads, "turbo", prepare_opencv)

    @abstractmethod
    def _prepare(self, numbers: np.ndarray, **about: Any) -> Work:
        """Return the work of a batch of these samples, with memory for it; ``about`` has the fields without memory."""

    @abstractmethod
    def _make_compiled(self, work: Any, rows: range) -> list[int]:
        """Fill the rows that the compiled part can make. Return the others, which are left to Python."""

    @abstractmethod
    def _tensors(self, work: Any) -> Tensors:
        """Return a batch whose rows are all there, on its device. Begin with the ones behind it."""

    def next(self) -> Rows:
        """Return the next batch: images N,3,H,W, channels-last, and labels N int64. Raises DataError."""
        self._begin_more()
        work = self._made.popleft()
        for part in work.parts:
            part.result()
        self._settle(work)
        if self._ahead:
            self._ahead.finish(work.epoch, work.first)
        images, labels, crops, colours = self._tensors(work)
        if self._transform:
            pixels = images.permute(0, 3, 1, 2)
            pixels, labels = self._transform(pixels, labels, epoch=work.epoch, first=work.first)
            images = pixels.permute(0, 2, 3, 1).contiguous()
            if self._normalise.normalises:
                images = self._normalise.batch(images, crops, colours)
        keys, extras = work.keys if self._keys else None, work.extras if self._extras else None
        return Rows(images.permute(0, 3, 1, 2), labels, keys, extras)

    def checkpoint(self) -> bytes | None:
        """Return None: the position is the epoch and the samples taken, which the Loader saves."""
        return None

    def close(self) -> None:
        """Let each thread end after the few samples it is working on."""
        self._records.closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ahead:
            self._ahead.close()

    def _begin_more(self) -> None:
        """Queue batches up to ``AHEAD``. Evaluation stops at the end of the epoch, as another may never be wanted."""
        while len(self._made) <= AHEAD:
            epoch, taken = self._upcoming
            if self._made and not self._plan.training and epoch != self._made[0].epoch:
                return
            self._made.append(self._begin(epoch, taken))
            self._upcoming = next(self._batches)

    def _begin(self, epoch: int, taken: int) -> Work:
        rows = self._plan.batch_size
        first = self._plan.first(taken)
        if self._ahead:
            self._ahead.begin(epoch, first)
        samples = self._samples(epoch, first)
        work = self._prepare(
            samples,
            epoch=epoch,
            first=first,
            valid=self._plan.valid(taken // self._plan.step),
            samples=samples.tolist(),
            draws=draw(self._seed, epoch, self._augment, first=first, count=rows),
            keys=[""] * rows,
            extras={name: [None] * rows for name in self._extras},
        )
        self._queue(work)
        return work

    def _queue(self, work: Work) -> None:
        """Give the rows to the threads."""
        rows = self._plan.batch_size
        for start in range(0, rows, self.chunk):
            chunk = range(start, min(start + self.chunk, rows))
            try:
                work.parts.append(self._threads.submit(self._make, work, chunk))
            except RuntimeError as error:  # another thread has closed it meanwhile
                raise DataError("the loader was closed while it made a batch") from error

    def _colours(self, lights: np.ndarray) -> np.ndarray:
        """Return the colour to add to each image of the rows with these factors."""
        return self._normalise.colours(lights).repeat(self._augment.crops, axis=0)

    def _samples(self, epoch: int, first: int) -> np.ndarray:
        places = np.arange(first, first + self._plan.batch_size + MAX_REPLACEMENTS)
        if not self._plan.training:
            return np.minimum(places, self._plan.samples - 1)
        if self._order[0] != epoch:
            self._order = epoch, self._order_of(epoch)
        return self._order[1][places % self._plan.samples]

    def _make(self, work: Work, rows: range) -> None:
        whole = range(rows.start, max(rows.start, min(rows.stop, work.valid)))
        work.images[self._places(range(whole.stop, rows.stop))] = 0
        left = self._make_compiled(work, whole)
        for row in whole if self._keys or self._extras else left:
            self._finish(work, row, row in left)

    def _finish(self, work: Work, row: int, left: bool) -> None:
        """Fill the row by Python, if it is ``left``, and describe it. Replace a sample that is damaged."""
        try:
            if left:
                self._fill(work, row, work.samples[row])
            self._describe(work, row, work.samples[row])
        except SampleError as error:
            if self._skip is None:
                raise
            work.lost.append((row, error))
            self._replace(work, row, error)

    def _replace(self, work: Work, row: int, error: SampleError) -> None:
        """Fill the row with the next usable sample in the order, or in evaluation with black. Raises DataError."""
        if not self._plan.training:
            work.images[self._places(range(row, row + 1))] = 0
            return None
        for sample in work.samples[row + 1 : row + 1 + MAX_REPLACEMENTS]:
            try:
                self._fill(work, row, sample)
                return self._describe(work, row, sample)
            except SampleError as another:
                work.lost.append((row, another))
        raise DataError(f"{MAX_REPLACEMENTS} samples in a row cannot be used. The first of them: {error}")

    def _fill(self, work: Work, row: int, sample: int) -> None:
        rows, record = range(row, row + 1), self._records.read(sample)
        pixels = self._pixels(work, rows)
        work.crops[self._places(rows)] = self._renderer.render(record, work.draws.at(row), pixels)
        work.labels[row] = record.label
        for place, image in enumerate(pixels, self._places(rows).start):
            self._normalise_place(work, place, image)

    def _describe(self, work: Work, row: int, sample: int) -> None:
        """Add the sample's key and extras to the batch, if requested. Raises SampleError."""
        if self._keys:
            work.keys[row] = self._records.key(sample)
        if self._extras:
            found = self._records.extras(sample)
            for name, column in work.extras.items():
                column[row] = found.get(name)

    def _normalise_place(self, work: Work, place: int, pixels: np.ndarray) -> None:
        """Normalise ``pixels`` into the batch, unless the batch is uint8: the device normalises it, or nothing does."""
        if work.images.dtype != np.uint8:
            self._normalise.one(pixels, work.crops[place], work.colours[place], work.images[place])

    def _pixels(self, work: Work, rows: range) -> np.ndarray:
        """Return N,size,size,3 uint8 to render the rows' crops into: the batch itself if it is uint8."""
        out = work.images[self._places(rows)]
        if out.dtype == np.uint8:
            return out
        if not hasattr(self._own, "pixels"):
            self._own.pixels = np.empty((CHUNK * self._augment.crops, *out.shape[1:]), np.uint8)
        return self._own.pixels[: len(out)]

    def _places(self, rows: range) -> slice:
        """Return the slice of ``images`` that holds the crops of these rows."""
        return slice(rows.start * self._augment.crops, rows.stop * self._augment.crops)

    def _worker(self) -> Worker:
        """Return this thread's worker; make it at the first call."""
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker(self._records, self._manifest, self._augment, CHUNK)
        return self._own.worker

    def _settle(self, work: Work) -> None:
        """Report the samples that were lost. In evaluation move their rows to the end, where they are padding."""
        lost, work.lost = sorted(work.lost, key=lambda entry: entry[0]), []
        if not lost or self._skip is None:
            return
        for _, error in lost:
            self._skip(error)
        if not self._plan.training:
            work.move_to_the_end({row for row, _ in lost})


def _endless(plan: Plan, epoch: int, taken: int) -> Iterator[tuple[int, int]]:
    """Yield (epoch, samples of it taken before) for each batch, without end."""
    while True:
        while plan.batches_after(taken) > 0:
            yield epoch, taken
            taken += plan.step
        epoch, taken = epoch + 1, 0
