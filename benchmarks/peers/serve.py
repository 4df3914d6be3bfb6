"""A loader measured in turn with others: in a process of its own, one epoch whenever it is told to.

The process prepares, prints a JSON line, then waits for lines on its standard input. After each line it runs one epoch
and prints its images and seconds. So loaders of different environments can take turns. Standard library only.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class PeerSettings:
    """A loader's settings, the same for all.

    ``images`` has CLASS/KEY.jpg, ``shards`` is a shard folder of the same files; in ``work`` a loader may store them in
    its own format. ``crop`` is random (the image is not resized) or resized.
    """

    images: Path
    shards: Path
    work: Path
    crop: str
    size: int
    batch_size: int
    threads: int

    @classmethod
    def from_command_line(cls) -> "PeerSettings":
        """Read the settings from the script's only argument, JSON."""
        given = json.loads(sys.argv[1])
        settings = cls(**given | {name: Path(given[name]) for name in ("images", "shards", "work")})
        if settings.crop not in ("random", "resized"):
            raise ValueError(f'"crop" is {settings.crop!r}, it is "random" or "resized"')
        return settings

    def loading(self) -> dict[str, Any]:
        """Return the arguments for torch's DataLoader, or for a peer's equivalent."""
        return {
            "batch_size": self.batch_size,
            "drop_last": True,
            "num_workers": self.threads,
            "persistent_workers": True,
        }

    def files(self) -> list[tuple[str, int]]:
        """List each image's path and class index in one random order, as a dataset is written for training."""
        classes = sorted(path.name for path in self.images.iterdir())
        files = [(str(path), label) for label, name in enumerate(classes) for path in self.images.glob(f"{name}/*.jpg")]
        random.Random(0).shuffle(files := sorted(files))
        return files

    def once(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return a file or folder of ``work``; write it unless an earlier run finished it. No partial one is used."""
        done, partial = self.work / name, self.work / f"{name}.partial"
        if not done.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            partial.rename(done)
        return done


class Rounds(NamedTuple):
    """A measurement: ``epoch`` runs an epoch and returns the number of images; ``batch`` describes a batch.

    ``warm`` runs before each, unmeasured, to use up the batches made while others were measured. ``pixels`` is how they
    compare with a reference's, if that was checked.
    """

    epoch: Callable[[], int]
    batch: str
    warm: Callable[[], object] = lambda: None
    pixels: dict[str, Any] | None = None


def answer(prepare: Callable[[], Rounds]) -> None:
    """Print one line when the loader is prepared, then one for each line that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, also from C and in worker processes, goes to stderr
    rounds = prepare()
    print(json.dumps({"batch": rounds.batch, "pixels": rounds.pixels}), file=answers, flush=True)
    for _ in sys.stdin:
        rounds.warm()
        start = time.perf_counter()
        images = rounds.epoch()
        seconds = time.perf_counter() - start
        print(json.dumps({"images": images, "seconds": seconds}), file=answers, flush=True)


Batches = Iterable[tuple[Any, Any]]  # images, labels; one epoch per iteration


def serve(prepare: Callable[[PeerSettings], tuple[Batches, str]]) -> None:
    """Measure a peer. ``prepare`` returns its batches and a description of one."""

    def rounds() -> Rounds:
        batches, batch = prepare(PeerSettings.from_command_line())
        return Rounds(lambda: sum(len(labels) for _, labels in batches), batch)

    answer(rounds)
