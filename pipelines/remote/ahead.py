"""Shards fetched ahead of the batches that need them, and given up once an epoch is done with them."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

from pipelines.identity import Identity
from pipelines.plan import Plan
from pipelines.remote.manifest import MOST_HELD, RemoteManifest
from pipelines.shards.manifest import Manifest
from pipelines.shards.records import Records
from pipelines.turbo.ordered import AHEAD
from pipelines.turbo.randomness import epoch_order, windowed_order

THREADS = 4  # that fetch, each one shard at a time
WAIT_SECONDS = 0.5  # until there is a look for room again


@dataclass(eq=False)
class Need:
    """A shard that an epoch reads between two places of its order. ``file`` keeps it in the cache."""

    epoch: int
    first: int
    last: int
    shard: int
    file: int | None = None
    taken: bool = False  # a thread fetches it, or has done so


class ReadAhead:
    """Threads that fetch the shards of a backend's next batches as far as the cache has room.

    ``order`` returns an epoch's order in training. Where every shard fits, they are fetched and left to themselves.
    The backend calls ``begin`` before it makes a batch and ``finish`` when it is made.
    """

    def __init__(
        self, manifest: RemoteManifest, split: str, records: Records, plan: Plan, order: Callable[[int], np.ndarray]
    ) -> None:
        assert manifest.cache
        self._cache, self._shards = manifest.cache, manifest.split(split).shards
        self._records, self._plan, self._order = records, plan, order
        self._ends = list(accumulate(shard.samples for shard in self._shards))
        self._stays = manifest.window(split) is None
        self._needs: deque[Need] = deque()
        self._planned = self._now = -1  # the last epoch in ``_needs``, and of a batch that was begun
        self._closed = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def begin(self, epoch: int, first: int) -> None:
        """Fetch what follows the place ``first`` of an epoch's order, from the first call on."""
        self._now = epoch
        if self._closed or (self._threads and self._stays):
            return
        self._plan_epoch(epoch, first)
        if not self._threads:
            self._cache.failed.clear()  # of an earlier try
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
            for thread in self._threads:
                thread.start()

    def finish(self, epoch: int, first: int) -> None:
        """Give up the shards that no batch needs after the one that begins at ``first``."""
        if self._stays:
            return
        plan = self._plan
        after = first + (plan.step if plan.training else plan.batch_size)
        with self._changed:
            over = [need for need in self._needs if (need.epoch, need.last) < (epoch, after)]
            if not over:
                return
            self._needs = deque(need for need in self._needs if (need.epoch, need.last) >= (epoch, after))
            soon = (AHEAD + 1) * plan.step  # the batches that may be under way
            still = {n.shard for n in self._needs if n.first < soon + (after if n.epoch == epoch else 0)}
        for need in over:
            if need.file is not None:
                self._cache.close(self._shards[need.shard], need.file)
                need.file = None
            if need.shard not in still:
                self._records.release(need.shard)
        with self._changed:
            self._changed.notify(len(over))  # there is room for as many; all threads at once would be in turbo's way

    def close(self) -> None:
        """Let the threads end, after a piece of a shard at most."""
        with self._changed:
            self._closed = True
            for need in self._needs:
                if need.file is not None:
                    self._cache.close(self._shards[need.shard], need.file)
                    need.file = None
            self._needs.clear()
            self._changed.notify_all()

    def _plan_epoch(self, epoch: int, start: int) -> None:
        with self._changed:
            if self._planned < epoch:
                self._planned = epoch
                self._needs.extend(self._epoch_needs(epoch, start))

    def _epoch_needs(self, epoch: int, start: int) -> Sequence[Need]:
        """Return what an epoch needs from the place ``start`` on, in the order of need."""
        plan = self._plan
        order = self._order(epoch)[start:] if plan.training else np.arange(start, plan.own_start + plan.own_samples)
        part = np.searchsorted(self._ends, order, side="right")
        numbers, firsts = np.unique(part, return_index=True)
        lasts = len(part) - 1 - np.unique(part[::-1], return_index=True)[1]
        rows = zip(firsts.tolist(), lasts.tolist(), numbers.tolist(), strict=True)
        return [Need(epoch, start + first, start + last, shard) for first, last, shard in sorted(rows)]

    def _work(self) -> None:
        while need := self._next():
            shard = self._shards[need.shard]
            file = self._cache.open_ahead(shard, lambda: self._closed)
            with self._changed:
                if file is None and shard.path not in self._cache.failed and not self._closed:
                    need.taken = False
                    self._changed.wait(WAIT_SECONDS)  # there is no room, or another process is fetching it
                elif file is not None and not self._stays and need in self._needs:
                    need.file, file = file, None
            if file is not None:
                self._cache.close(shard, file)

    def _next(self) -> Need | None:
        """Return the next shard to fetch; wait until there is one. Return None at the end."""
        with self._changed:
            while not self._closed:
                need = next((need for need in self._needs if not need.taken), None)
                if need and sum(need.file is not None for need in self._needs) < MOST_HELD:
                    need.taken = True
                    return need
                if not need and self._stays:
                    return None
                if not need and self._plan.training and not self._stays and self._planned <= self._now:
                    self._plan_epoch(self._planned + 1, 0)
                    continue
                self._changed.wait(1)
            return None


def order_of(manifest: Manifest, i: Identity) -> Callable[[int], np.ndarray]:
    """Return a function from epochs to their order in training. It keeps those of the last two."""
    counts = [shard.samples for shard in manifest.split(i.split).shards]
    if i.window is None:
        return lru_cache(2)(partial(epoch_order, i.seed, samples=sum(counts)))
    return lru_cache(2)(partial(windowed_order, i.seed, counts=counts, window=i.window))


def read_ahead(
    manifest: Manifest, i: Identity, records: Records, order: Callable[[int], np.ndarray]
) -> ReadAhead | None:
    """Return what fetches shards for a backend; None if they are all on this machine."""
    return ReadAhead(manifest, i.split, records, i.plan, order) if isinstance(manifest, RemoteManifest) else None
