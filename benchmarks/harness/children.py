"""Loaders in processes of their own, which take turns; see benchmarks/peers/serve.py for what they answer."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from pipelines import DataError

ROOT = Path(__file__).parents[2]


def with_project() -> dict[str, str]:
    """Return this process's environment, with the project first on Python's path."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def tree(pid: int) -> list[psutil.Process]:
    """Return the process's descendants and itself, or nothing if it has ended."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(pid)
        return [*own.children(recursive=True), own]
    return []


def kill(pid: int) -> None:
    """Kill the process and all its descendants."""
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Child:
    """A process of ``python`` with ``arguments``, measured by calling it. Raises DataError if it ends too early.

    It is killed if it has not answered after ``patience`` seconds: decoders have hung.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], python: str = sys.executable, patience: float = 600
    ) -> None:
        self.name, self._patience = name, patience
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        self._process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env=with_project(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        about = self._answer()
        self.batch: str = about["batch"]
        self.pixels: dict[str, Any] = about.get("pixels") or {}
        self.memory_mb: list[int] = []

    def __call__(self) -> tuple[int, float]:
        """Run an epoch, or a round's share of it. Return the number of images and the seconds."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # _answer raises DataError with the cause
            print(file=self._process.stdin, flush=True)
        answer = self._answer()
        self.memory_mb.append(self._memory_mb())
        return answer["images"], answer["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()

    def _kill(self) -> None:
        kill(self._process.pid)

    def _answer(self) -> dict:
        assert self._process.stdout
        alarm = threading.Timer(self._patience, self._kill)
        try:
            alarm.start()
            line = self._process.stdout.readline()
            if not line:
                self._process.wait()
        finally:
            alarm.cancel()  # also after Ctrl-C: its thread would keep this process alive
        if line:
            return json.loads(line)
        self._errors.seek(0)
        raise DataError(f"{self.name} ended with {self._process.returncode}: {self._errors.read().strip()[-800:]}")

    def _memory_mb(self) -> int:
        """Return the memory of the process and its descendants, shared memory counted once; 0 if it is unknown."""
        total = 0
        for process in tree(self._process.pid):
            with suppress(psutil.Error, AttributeError):  # it may have ended
                total += process.memory_full_info().pss
        return total >> 20
