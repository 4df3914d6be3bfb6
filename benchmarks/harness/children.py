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
from typing import Self

import psutil

from pipelines import DataError

ROOT = Path(__file__).parents[2]


def with_project() -> dict[str, str]:
    """This process's environment; Python finds the project before whatever else it was told to look for."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def tree(pid: int) -> list[psutil.Process]:
    """What the process started, and itself; nothing where it has ended."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(pid)
        return [*own.children(recursive=True), own]
    return []


def kill(pid: int) -> None:
    """The process and all that it started."""
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Child:
    """``arguments`` follow ``python``. Raises DataError where the process ends before it is told to.

    One that has not answered after ``patience`` seconds is ended: decoders have hung.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], python: str = sys.executable, patience: float = 600
    ) -> None:
        self.name, self._patience = name, patience
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env=with_project(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.batch = self._answer()["batch"]
        self.memory_mb: list[int] = []

    def __call__(self) -> tuple[int, float]:
        """One epoch, or a round's share of it: the number of images, and seconds."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the answer will be that it has ended, and why
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
        alarm.start()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
        alarm.cancel()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        raise DataError(f"{self.name} ended with {self._process.returncode}: {self._errors.read().strip()[-800:]}")

    def _memory_mb(self) -> int:
        """Of the process and those it started, what they share counted once; 0 where the system does not tell."""
        total = 0
        for process in tree(self._process.pid):
            with suppress(psutil.Error, AttributeError):  # it may have ended
                total += process.memory_full_info().pss
        return total >> 20
