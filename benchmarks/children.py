"""Loaders in processes of their own, which take turns; see benchmarks/peers/serve.py for what they answer."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from pipelines import DataError

ROOT = Path(__file__).parents[1]


class Child:
    """``arguments`` follow ``python``. Raises DataError where the process ends before it is told to."""

    def __init__(self, name: str, arguments: Sequence[str], python: str = sys.executable) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
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
        for process in self._tree():
            process.kill()
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        own = psutil.Process(self._process.pid)
        return [*own.children(recursive=True), own]

    def _answer(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise DataError(f"{self.name} ended with {self._process.returncode}: {self._errors.read().strip()[-800:]}")
        return json.loads(line)

    def _memory_mb(self) -> int:
        """Of the process and those it started, what they share counted once; 0 where the system does not tell."""
        total = 0
        for process in self._tree():
            with suppress(psutil.Error, AttributeError):  # it may have ended
                total += process.memory_full_info().pss
        return total >> 20
