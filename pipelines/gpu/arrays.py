"""The arrays of a batch of JPEGs in one piece of memory, which one copy takes to the GPU."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.turbo.buffers import ALIGNED, Layout
from pipelines.turbo.work import Work


class Pieces(NamedTuple):
    """The arrays of a batch, N images, as tensors or as NumPy's arrays; see ``PieceDecoder``."""

    status: Any  # N int32: filled by the decoder
    labels: Any  # int64, for each row
    offsets: Any  # N int64
    sizes: Any  # N int32
    boxes: Any  # N,4 int32
    crops: Any  # N,3 int64
    colours: Any  # N,3 float32
    matrices: Any  # N,3,4 float32; empty without jitter
    data: Any  # the JPEGs; empty if all are resident


@dataclass(frozen=True)
class PieceLayout(Layout):
    """The layout of these arrays, and ``room`` bytes for JPEGs behind them."""

    jitter: bool
    room: int

    @property
    def head(self) -> int:
        """Bytes of the arrays before the JPEGs."""
        return super().nbytes

    @property
    def nbytes(self) -> int:
        return self.head + self.room

    def pieces(self, memory: torch.Tensor) -> Pieces:
        """Return views of ``memory``, uint8, which may end behind the JPEGs that are used."""
        return Pieces(**self.views(memory), data=memory[self.head :])

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        each = {"offsets": ((), torch.int64), "sizes": ((), torch.int32), "boxes": ((4,), torch.int32)}
        each |= {"crops": ((3,), torch.int64), "colours": ((3,), torch.float32)}
        return {
            "status": ((self.images,), torch.int32),
            "labels": ((self.rows,), torch.int64),
            **{name: ((self.images, *shape), dtype) for name, (shape, dtype) in each.items()},
            "matrices": ((self.images if self.jitter else 0, 3, 4), torch.float32),
        }


def room_for(rows: int, mean: float) -> int:
    """Return how many bytes a batch gets for samples of ``mean`` bytes: twice the mean, and more for a few rows.

    What does not fit, where large files lie together, is left to the CPU.
    """
    return -(-int((2 * rows + 4) * mean) // ALIGNED) * ALIGNED


@dataclass(kw_only=True)
class PieceWork(Work):
    """A batch of JPEGs. ``images`` holds the finished pixels of the rows that the CPU decodes, whose size is 0."""

    pieces: Pieces  # NumPy's views of ``memory``
    places: np.ndarray  # gather.PLACE of each row
    used: int  # bytes of ``memory``

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        given = self.pieces
        own = given.offsets, given.sizes, given.boxes, *([given.matrices] if len(given.matrices) else [])
        return *super().arrays, *own


def layout_for(rows: int, augment: Augment, room: int) -> PieceLayout:
    """Return the layout of batches of so many samples."""
    return PieceLayout(rows, rows * augment.crops, augment.size, jitter=augment.jitter is not None, room=room)
