"""Worker processes that end with the process that started them, however it ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from typing import Any

from pipelines import DataError
from pipelines.terminal import STOPS

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def spawning() -> SpawnContext:
    """Return the multiprocessing context for workers and the objects that they share.

    Python's resource tracker, which ends after the last process, is started with a closed terminal's SIGHUP blocked.
    """
    with _signals_held():
        resource_tracker.ensure_running()
    return multiprocessing.get_context("spawn")


class WorkerPool(ProcessPoolExecutor):
    """A pool of spawned processes. They end with this process, and with an exception that leaves the ``with`` block.

    ``start(*arguments)`` is called first in each process. Leaving the block raises DataError if a worker was killed.
    Use ``submit``: ``map`` cancels its futures in a way that makes Python 3.11 print a traceback.
    """

    def __init__(self, workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> None:
        super().__init__(workers, spawning(), _start_worker, (start, arguments))

    def submit(self, *arguments: Any, **options: Any) -> Future:
        with _signals_held():  # an interrupted start would leave a process without its task
            return super().submit(*arguments, **options)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        if error is not None:
            for process in [*self._processes.values()]:
                process.kill()  # a stopped run writes its shard again, so there is no use in finishing it
        super().__exit__(kind, error, trace)
        if isinstance(error, BrokenProcessPool):
            raise DataError(
                "a worker process died, perhaps for lack of memory: run the same command again, with fewer --workers"
            ) from None
        return None


@contextmanager
def _signals_held() -> Iterator[None]:
    """Defer signals that stop the run to the end of the block. Processes started in it inherit them blocked."""
    held = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}
    if not held or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    for number in held:
        signal.signal(number, lambda number, _: caught.append(number))  # another thread may still receive it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in held.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _start_worker(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """End this worker with its parent: by the kernel, on Linux, and by a thread that waits for the parent's end."""
    if sys.platform == "linux":  # ends stopped workers too, and calls that hold Python's lock
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # sent when the thread that submits ends
    threading.Thread(target=_end_with_parent, daemon=True).start()  # exits at once if the parent is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills its workers when it is interrupted
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    if start:
        start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])  # a pipe that closes when the parent ends, however it ends
    os._exit(1)
