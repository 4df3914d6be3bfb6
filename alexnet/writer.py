"""Checkpoints written by a thread while training continues.

``python -m benchmarks checkpoint`` measures how much that slows a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import torch
from torch import Tensor

from alexnet import checkpoint
from alexnet.errors import AlexNetError


class Writer:
    """A writer of last.pt and best.pt in ``folder``, one checkpoint at a time. Leaving its context waits for the last.

    Weights and momentum, nearly all of a checkpoint, change only in the optimizer's step. On a CPU the thread copies
    them during the forward and backward pass after ``save``, and a hook makes the optimizer's step wait for the copies.
    On a GPU they are copied on the GPU, queued between two steps, and the thread fetches the copies on a stream of its
    own. Both need memory for one more set of tensors, which is reused.

    ``stalled_seconds`` is how long training has waited here, ``writing_seconds`` how long the thread has worked.
    """

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer, keep: int = 1, minutes: float = 0) -> None:
        """Register a hook on ``optimizer``. ``due`` becomes true ``minutes`` after the last checkpoint; 0: never."""
        self._folder, self._optimizer, self._keep, self._minutes = folder, optimizer, keep, minutes
        self._device = optimizer.param_groups[0]["params"][0].device
        self._copies: dict[str, Tensor] = {}
        self._to_copy: list[tuple[Tensor, Tensor]] = []
        self._copied = Event()
        self._copied.set()
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._began = time.monotonic()
        self.stalled_seconds = self.writing_seconds = 0.0
        self._hook = optimizer.register_step_pre_hook(lambda *_: self._wait_for_copies())

    @property
    def due(self) -> bool:
        return 0 < 60 * self._minutes <= time.monotonic() - self._began

    def save(self, described: dict[str, Any], progress: dict[str, Any], best: bool = False) -> None:
        """Start to write last.pt with both dicts and, before it, if this is the ``best``, best.pt with ``described``.

        Raises AlexNetError if the previous checkpoint could not be written.
        """
        with self._stall():
            self.finish()
            by_steps = self._changed_by_steps() if self._device.type == "cpu" else set()
            state = self._snapshot({"described": described, "progress": progress}, by_steps)
            self._copied.clear()
            on_gpu = torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None
            self._thread = Thread(target=self._work, args=(state, best, on_gpu), name="checkpoint", daemon=True)
            self._thread.start()
        self._began = time.monotonic()

    def finish(self) -> None:
        """Wait until the checkpoint under way is on the disk. Raises AlexNetError if it could not be written."""
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._hook.remove()
        if kind is None:
            self.finish()
        elif self._thread:  # its content was complete before the run failed
            self._thread.join()

    def _changed_by_steps(self) -> set[int]:
        """Return the addresses of the tensors that only the optimizer changes."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        return {tensor.data_ptr() for tensor in parameters + states if isinstance(tensor, Tensor)}

    def _snapshot(self, value: Any, later: set[int], name: str = "") -> Any:
        """Return ``value`` with copies of its tensors. Those at addresses ``later`` are left for the thread to copy."""
        if isinstance(value, dict):
            return {key: self._snapshot(part, later, f"{name}.{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._snapshot(part, later, f"{name}.{i}") for i, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        copy = self._copies.get(name)
        if copy is None or copy.shape != value.shape:
            copy = self._copies[name] = torch.empty_like(value)
        if value.data_ptr() in later:
            self._to_copy.append((copy, value))
        else:
            copy.copy_(value, non_blocking=True)
        return copy

    def _work(self, state: dict[str, Any], best: bool, copied_on_gpu: torch.cuda.Event | None) -> None:
        start = time.perf_counter()
        try:
            while self._to_copy:
                copy, value = self._to_copy.pop()
                copy.copy_(value)
            self._copied.set()
            if copied_on_gpu:
                state = self._fetched(state, copied_on_gpu)
            _check_finite(state)
            if best:  # first, because last.pt says how good it is
                checkpoint.save(self._folder / "best.pt", state["described"])
            checkpoint.save(self._folder / "last.pt", state["described"] | state["progress"], self._keep)
        except Exception as error:  # raised by ``finish``
            self._error = error
        finally:
            self._copied.set()
            self.writing_seconds += time.perf_counter() - start

    def _fetched(self, state: dict[str, Any], copied: torch.cuda.Event) -> dict[str, Any]:
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):  # the training's own stream would wait for the transfer
            stream.wait_event(copied)
            return _mapped(state, Tensor.cpu)  # waits for the GPU, in this thread only

    def _wait_for_copies(self) -> None:
        if not self._copied.is_set():
            with self._stall():
                self._copied.wait()

    @contextmanager
    def _stall(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stalled_seconds += time.perf_counter() - start


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with ``change`` applied to its tensors."""
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    return change(value) if isinstance(value, Tensor) else value


def _check_finite(state: dict[str, Any]) -> None:
    """Raise AlexNetError if weights are not finite: a step can spoil them although its own loss was finite."""
    for part in ("model", "trained"):
        for name, weights in {**state["described"], **state["progress"]}.get(part, {}).items():
            if weights.is_floating_point() and not torch.isfinite(weights.sum()):
                raise AlexNetError(f"{name} is no longer finite: lower --learning-rate; last.pt, if any, is sound")
