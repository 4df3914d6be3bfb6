"""The gpu backend: the host reads JPEGs, and the GPU decodes, crops and normalises them.

The order, the draws and so the batches are turbo's. Threads read the files of a batch into pinned memory; one copy
takes them to the GPU, on a stream of the loader's own, and the kernels of decoder.py make the batch of them. What the
GPU does not decode (a file with another header, a crop that libjpeg would shrink in decoding, a damaged sample) is left
to turbo's CPU code, row by row. If the split is resident, the host sends only the places of the samples.
"""

import logging
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.crops import ten_boxes
from pipelines.errors import DataError
from pipelines.gpu.arrays import Pieces, PieceWork, layout_for, room_for
from pipelines.gpu.decoder import PROBLEMS, PieceDecoder
from pipelines.gpu.gather import PLACE, Gatherer
from pipelines.gpu.resident import Resident
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import Records
from pipelines.turbo.buffers import PinnedBuffers, Tensors
from pipelines.turbo.copies import Copied, DeviceStream
from pipelines.turbo.ordered import AHEAD, CHUNK, OrderedBatches

DECODED_AHEAD = 2  # batches on the GPU behind the one that is handed out, so that its status is there already
LOG = logging.getLogger(__name__)


class Source(NamedTuple):
    """The files of a split, or its bytes in memory, and the decoder of their batches."""

    records: Records
    gatherer: Gatherer
    decoder: PieceDecoder
    mean_bytes: float  # of a sample in its shard
    resident: Resident | None = None


class GpuBatches(OrderedBatches):
    """Ordered batches, decoded on their device. On a CPU the same kernels are emulated, slowly."""

    chunk = 4 * CHUNK

    def __init__(
        self, manifest: Manifest, source: Source, plan: Plan, augment: Augment, *, device: torch.device, **given: Any
    ) -> None:
        super().__init__(manifest, source.records, plan, augment, device=device, **given)
        self._source, self._device = source, device
        room = 0 if source.resident else room_for(plan.batch_size, source.mean_bytes)
        self._layout = layout_for(plan.batch_size, augment, room)
        self._buffers = PinnedBuffers(self._layout, AHEAD + 2, device)
        self._stream = DeviceStream(device) if device.type == "cuda" else None
        self._views: dict[int, Pieces] = {}
        self._said: set[str] = set()

    def close(self) -> None:
        """End the threads. Wait for the batches on the GPU: the decoder's memory is used by the next backend."""
        super().close()
        if self._stream:
            self._stream.synchronize()

    def _prepare(self, numbers: np.ndarray, **about: Any) -> PieceWork:
        memory, draws, rows = self._buffers.take_memory(), about["draws"], self._plan.batch_size
        pieces = self._arrays(memory)
        pieces.labels[:] = pieces.sizes[:] = pieces.offsets[:] = 0
        pieces.colours[:] = self._colours(draws.lights)
        if draws.colours is not None:
            pieces.matrices[:] = draws.colours
        self._choose(draws.crop_draws, pieces)
        pieces.crops[:, 2] ^= draws.flips.repeat(self._augment.crops)
        places, used = np.zeros(rows, PLACE), 0
        if own := about["valid"]:  # the other rows, of padding, would be samples of the next rank
            places[:own], used = self._place(numbers[:own])
        if (places["file"] < 0).any():
            self._say("the CPU decodes the files of shards that cannot stay open: raise the limit, ulimit -n")
        if self._augment.crop != "ten":
            places["size"][self._shrunk(pieces)] = 0
        return PieceWork(
            images=np.zeros((self._layout.images, self._augment.size, self._augment.size, 3), np.uint8),  # untouched
            memory=memory,
            labels=pieces.labels,
            crops=pieces.crops,
            colours=pieces.colours,
            pieces=pieces,
            places=places,
            used=self._layout.head + used,
            **about,
        )

    def _shrunk(self, pieces: Pieces) -> np.ndarray:
        """Return which crops, N bool, libjpeg would shrink in decoding."""
        return (self._augment.crop == "resized") & (pieces.boxes[:, 2:].min(axis=1) >= 2 * self._augment.size)

    def _arrays(self, memory: torch.Tensor) -> Pieces:
        """Return the arrays in a buffer, the same ones whenever it is used."""
        address = memory.data_ptr()
        if address not in self._views:
            self._views[address] = Pieces(*(tensor.numpy() for tensor in self._layout.pieces(memory)))
        return self._views[address]

    def _choose(self, crop_draws: np.ndarray, pieces: Pieces) -> None:
        """Set the boxes to decode and where they lie in the image; mirrored crops are flipped."""
        if self._augment.crop != "ten":
            self._source.gatherer.choose(crop_draws, pieces.crops, pieces.boxes)
            pieces.crops[:, 2] = 0
            return
        side = self._manifest.image.size
        boxes = np.array(ten_boxes(side, side, self._augment.size))
        pieces.boxes.reshape(-1, 10, 4)[:] = boxes
        crops = np.column_stack([boxes[:, :2], np.arange(10) >= 5])
        pieces.crops.reshape(-1, 10, 3)[:] = crops

    def _place(self, numbers: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the place of each sample, and the bytes that they use of the batch's memory."""
        if self._source.resident:
            return self._source.resident.place(numbers), 0
        return self._source.gatherer.place(numbers, self._layout.room)

    def _queue(self, work: PieceWork) -> None:  # type: ignore[override]
        """Give the rows to the threads; of a resident split only those that the CPU decodes."""
        if self._source.resident is None or self._keys or self._extras:
            super()._queue(work)
            return
        self._note(work, range(work.valid))
        for start in range(0, work.valid, self.chunk):
            rows = range(start, min(start + self.chunk, work.valid))
            if not work.places["size"][rows.start : rows.stop].all():
                work.parts.append(self._threads.submit(self._make, work, rows))

    def _make_compiled(self, work: PieceWork, rows: range) -> list[int]:
        places = work.places[rows.start : rows.stop]
        if self._source.resident is None:
            self._source.gatherer.read(places, work.pieces.data)
        self._note(work, rows)
        left = [rows[row] for row in np.flatnonzero(places["size"] == 0).tolist()]
        return self._render(work, left) if self._native else left

    def _note(self, work: PieceWork, rows: range) -> None:
        """Write labels, offsets and sizes of rows that have been read."""
        some, places = self._places(rows), work.places[rows.start : rows.stop]
        work.labels[rows.start : rows.stop] = places["label"]
        work.pieces.offsets[some] = places["at"].repeat(self._augment.crops)
        work.pieces.sizes[some] = places["size"].repeat(self._augment.crops)

    def _render(self, work: PieceWork, rows: list[int]) -> list[int]:
        """Decode rows by turbo's compiled part. Return those that are left to Python."""
        left = []
        for some in (np.array(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)):
            pixels = np.empty((len(some), *work.images.shape[1:]), np.uint8)
            numbers = [work.samples[row] for row in some.tolist()]
            rendered = self._renderer.render_natively(self._worker(), numbers, work.draws.of(some), pixels)
            done = rendered["done"] != 0
            work.images[some[done]], work.labels[some[done]] = pixels[done], rendered["label"][done]
            left += some[~done].tolist()
            if not self._shrunk(work.pieces)[some[done]].all():
                where = self._manifest.location
                self._say(f"the CPU decodes some files of {where}: their header is not that of most, or large")
        return left

    def _fill(self, work: PieceWork, row: int, sample: int) -> None:  # type: ignore[override]
        super()._fill(work, row, sample)
        work.pieces.sizes[self._places(range(row, row + 1))] = 0

    def _replace(self, work: PieceWork, row: int, error: Any) -> None:  # type: ignore[override]
        work.pieces.sizes[self._places(range(row, row + 1))] = 0
        super()._replace(work, row, error)

    def _tensors(self, work: PieceWork) -> Tensors:
        """Return a batch on its device. Begin to decode the ones behind it, then look if all its rows are right."""
        decoded = work.copied or self._decode(work)
        for following in islice(self._made, DECODED_AHEAD if self._stream else 0):
            if not following.whole:
                break
            following.copied = following.copied or self._decode(following)
        if self._stream:
            decoded.done.synchronize()  # the host waits only if the GPU is not one batch ahead
        if wrong := np.flatnonzero(work.pieces.status).tolist():
            decoded = self._mend(work, wrong)
        self._buffers.give_back(work.memory, decoded.done)
        return self._stream.hand_out(decoded) if self._stream else decoded.tensors

    def _mend(self, work: PieceWork, wrong: list[int]) -> Copied:
        """Leave the samples of these images to Python, which replaces them or raises what turbo would. Decode again."""
        for row in sorted({image // self._augment.crops for image in wrong}):
            lost = len(work.lost)
            self._finish(work, row, True)
            if len(work.lost) == lost:
                status = int(work.pieces.status[row * self._augment.crops])
                self._say(f"the GPU left a file to the CPU: {PROBLEMS.get(status, status)}")
        self._settle(work)
        return self._decode(work)

    def _decode(self, work: PieceWork) -> Copied:
        """Begin to copy and decode a batch. Return at once; on a CPU, when it is done."""
        try:
            if self._stream:
                return self._stream.queue(lambda: self._decoded(work))
            return Copied(self._decoded(work), None)  # type: ignore[arg-type]  # nothing to wait for
        except OSError as error:
            raise DataError(str(error)) from error

    def _decoded(self, work: PieceWork) -> Tensors:
        given = self._layout.pieces(work.memory[: work.used].to(self._device, non_blocking=True))
        images, status = self._source.decoder(
            self._source.resident.data if self._source.resident else given.data,
            given.offsets,
            given.sizes,
            given.boxes,
            given.crops,
            given.colours,
            given.matrices if len(given.matrices) else None,
            self._others(work),
        )
        self._layout.pieces(work.memory).status.copy_(status, non_blocking=True)  # torch knows that memory as pinned
        return Tensors(images, *(tensor.clone() for tensor in (given.labels, given.crops, given.colours)))

    def _others(self, work: PieceWork) -> torch.Tensor | None:
        """Return the pixels of the rows that the CPU has decoded, N,size,size,3 uint8 on the device, if there are."""
        rows = np.flatnonzero(work.pieces.sizes == 0)
        if not len(rows):
            return None
        if self._stream is None:
            return torch.from_numpy(work.images)
        others = torch.empty(work.images.shape, dtype=torch.uint8, device=self._device)
        places, pixels = (torch.from_numpy(a).pin_memory() for a in (rows, work.images[rows]))
        others[places.to(self._device, non_blocking=True)] = pixels.to(self._device, non_blocking=True)
        return others

    def _say(self, what: str) -> None:
        """Warn of something once."""
        if what not in self._said:
            self._said.add(what)
            LOG.warning(what)
