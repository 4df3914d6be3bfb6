"""Runners that write the shards: processes of this machine, or workers of a Dask cluster. The bytes are the same."""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import replace
from itertools import islice
from typing import Any

from tqdm import tqdm

from pipelines.errors import DataError
from pipelines.sharding.folder import SPOOL
from pipelines.sharding.processes import WorkerPool, spawning
from pipelines.sharding.sources import Source
from pipelines.sharding.writer import WORK, ShardTask, read_record, write_shard
from pipelines.untrusted import read_json

LINE_SECONDS = 30.0  # between two lines of progress if there is no terminal
HANDFUL = 5  # bad images, of however few


def allowed(total: int, max_bad: float) -> int:
    """Return how many of ``total`` images may be bad: the share ``max_bad``, but at least a HANDFUL, or half of a few.

    None may be if ``max_bad`` is 0.
    """
    return max(int(max_bad * total), min(HANDFUL, total // 2)) if max_bad > 0 else 0


def _next_share(bad: int, total: int) -> str:
    """Return a round share that allows at least twice as many bad images: 0.02, 0.05, 0.1, ..."""
    shares = (digit * 10.0**power for power in range(-6, 0) for digit in (1, 2, 5))
    return f"{next((share for share in shares if int(share * total) >= 2 * bad), 1.0):g}"


class ShardingProgress:
    """A report of images, source bytes and bad images so far: a bar on a terminal, else a line every LINE_SECONDS.

    An earlier run wrote ``done`` of the ``total`` images. The fraction ``max_bad`` of them may be bad, see ``allowed``.
    """

    def __init__(self, total: int, done: int, max_bad: float) -> None:
        self._total, self._done, self._allowed = total, done, allowed(total, max_bad)
        self._bad: list[dict[str, str]] = []
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit=" images", desc="shard", disable=not sys.stderr.isatty())

    def quarantine(self, entry: dict[str, str]) -> None:
        """Record a bad image. Raises DataError if there are more than allowed."""
        self._bad.append(entry)
        if len(self._bad) > self._allowed:
            named = "".join(f"\n  {bad['source']}: {bad['reason']}" for bad in self._bad[:5])
            raise DataError(
                f"more than {self._allowed} of {self._total} images cannot be used: repair the source, or run the "
                f"same command again with --max-bad {_next_share(len(self._bad), self._total)}. The first:{named}"
            )

    def show(self, images: int, source_bytes: int) -> None:
        """Show the progress of this run over all workers."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = f"{source_bytes / 1e6 / seconds:.1f} MB/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{speed}, {len(self._bad)} quarantined", refresh=False)
            self._bar.update(self._done + images - self._bar.n)
        elif time.monotonic() - self._last_line >= LINE_SECONDS and images:
            self._last_line = time.monotonic()
            minutes = (self._total - self._done - images) * seconds / images / 60
            print(
                f"shard: {self._done + images} of {self._total} images, {images / seconds:.0f} images/s, {speed}, "
                f"{minutes:.0f} minutes left, {len(self._bad)} quarantined",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()


def write_shards(
    source: Source, tasks: Sequence[ShardTask], *, workers: int, cluster: str | None, max_bad: float
) -> None:
    """Write the shards that are missing or not as recorded. Raises DataError, OSError."""
    earlier = {task.name: record for task in tasks if (record := read_record(task))}
    todo = _spooled([task for task in tasks if task.name not in earlier], source)
    total, left = (sum(len(task.samples) for task in some) for some in (tasks, todo))
    progress = ShardingProgress(total, total - left, max_bad)
    try:
        for entry in (entry for record in earlier.values() for entry in record.quarantined):
            progress.quarantine(entry)
        if cluster:
            write_on_cluster(todo, cluster, progress)
        else:
            write_on_this_machine(todo, workers, progress)
    finally:
        progress.close()


def _spooled(tasks: list[ShardTask], source: Source) -> list[ShardTask]:
    """Return the tasks with samples that can be read by offset. Call it under the lock: it may copy the source."""
    if source.spool is None or not tasks:
        return tasks
    work = tasks[0].out / WORK / SPOOL
    placed = iter(source.spool.copy([sample for task in tasks for sample in task.samples], work))
    return [replace(task, source=work, samples=tuple(islice(placed, len(task.samples)))) for task in tasks]


def write_on_this_machine(tasks: Sequence[ShardTask], workers: int, progress: ShardingProgress) -> None:
    """Write each shard in one of ``workers`` processes. Raises DataError, OSError."""
    context = spawning()
    counts = context.Array("q", 2)  # images, source bytes
    bad = context.SimpleQueue()
    with WorkerPool(workers, _start_worker, counts, bad) as pool:
        futures = {pool.submit(_write_in_worker, task) for task in tasks}
        while futures:
            done, futures = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            while not bad.empty():
                progress.quarantine(bad.get())
            progress.show(*counts.get_obj())  # without the lock: a killed worker may hold it
            for future in done:
                future.result()


_counts: Any = None  # in a worker process: the counts of all workers
_bad: Any = None


def _start_worker(counts: Any, bad: Any) -> None:
    global _counts, _bad
    _counts, _bad = counts, bad
    os.environ["OMP_NUM_THREADS"] = "1"  # torch, once it is imported, resizes on the worker's own core


def _write_in_worker(task: ShardTask) -> None:
    def note(source_bytes: int, bad: dict[str, str] | None) -> None:
        with _counts.get_lock():
            _counts[0] += 1
            _counts[1] += source_bytes
        if bad:
            _bad.put(bad)

    write_shard(task, note)


def write_on_cluster(tasks: Sequence[ShardTask], address: str, progress: ShardingProgress) -> None:
    """Write the shards on the workers of the Dask scheduler at ``address``, which must see the same files.

    If a worker dies, another one writes its shard. Raises DataError, OSError.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise DataError(f"a cluster needs Dask: pip install 'alexnet-pipelines[cluster]' ({error})") from error
    try:
        client = Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise DataError(f"no Dask scheduler answers at {address}: {error}") from error
    images = source_bytes = 0
    with client:
        named = {client.submit(write_shard, task, pure=False): task for task in tasks}
        for future in as_completed(named, loop=client.loop):
            try:
                future.result()
            except KilledWorker as error:
                raise DataError(f"workers of the cluster died repeatedly: {error}") from error
            record = read_json(named[future].record_path)
            for entry in record["quarantined"]:
                progress.quarantine(entry)
            images += len(named[future].samples)
            source_bytes += record["source_bytes"]
            progress.show(images, source_bytes)
