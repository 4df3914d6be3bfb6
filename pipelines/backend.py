"""The contract between the loader and its backends: what a batch is, and what a backend must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipelines.shards.record import SampleError

if TYPE_CHECKING:
    import torch

Skip = Callable[[SampleError], None]  # what a backend calls for a sample that a batch lacks


class Batch(NamedTuple):
    """A batch: ``images`` N,3,H,W, channels-last, normalised, float16 on a GPU and float32 on a CPU; ``labels`` N int64
    on the same device; ``valid``, the number of leading rows that count (the others are padding).

    If requested, ``keys`` holds the name of each row's sample, and ``extras["json"]`` its member ``json``; the same for
    each extension. Rows of padding have the key "" and the member None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: int
    keys: list[str] | None = None
    extras: dict[str, list[Any]] | None = None


class Rows(NamedTuple):
    """The rows of a batch from a backend: ``images`` on the device, ``labels`` there or on the CPU."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: list[str] | None = None
    extras: dict[str, list[Any]] | None = None


class Backend(Protocol):
    """An endless source of batches, epoch after epoch. After any exception it is closed and never used again."""

    def next(self) -> Rows:
        """Return the next batch: images N,3,H,W, channels-last, and labels N int64. Raises DataError."""

    def checkpoint(self) -> bytes | None:
        """Return the position after the last batch that ``next`` returned, or None if counting samples gives it."""

    def close(self) -> None:
        """End the threads; no other method is called afterwards."""


class Ahead(Protocol):
    """Shards that are fetched before batches need them; places count in the epoch's order."""

    def begin(self, epoch: int, first: int) -> None:
        """Note that a batch from the place ``first`` on is about to be made."""

    def finish(self, epoch: int, first: int) -> None:
        """Note that the batch from the place ``first`` on is made, and all batches before it."""

    def close(self) -> None:
        """End the threads."""


class Start(NamedTuple):
    """The position at which a backend starts: ``taken`` samples into ``epoch``, counted over all ranks.

    ``checkpoint`` comes from ``Backend.checkpoint`` of a backend that was opened at the epoch ``opened_at``.
    """

    epoch: int
    taken: int = 0
    opened_at: int = 0
    checkpoint: bytes | None = None
