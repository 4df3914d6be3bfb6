"""How a loader is measured beside others: in a process of its own, an epoch each time it is told to.

The process prepares, prints a JSON line, then waits for lines on its standard input; after each it goes through one
epoch and prints what that took. So loaders of different environments can take turns. Standard library only.
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
    """What to load, and how; the same for all. ``images`` has CLASS/KEY.jpg, ``shards`` a shard folder, of the same
    files; in ``work`` a loader may keep them in its own format. ``crop`` is random (as it is) or resized."""

    images: Path
    shards: Path
    work: Path
    crop: str
    size: int
    batch_size: int
    threads: int

    @classmethod
    def from_command_line(cls) -> "PeerSettings":
        """The script's only argument is JSON."""
        given = json.loads(sys.argv[1])
        settings = cls(**given | {name: Path(given[name]) for name in ("images", "shards", "work")})
        if settings.crop not in ("random", "resized"):
            raise ValueError(f'"crop" is {settings.crop!r}, it is "random" or "resized"')
        return settings

    def loading(self) -> dict[str, Any]:
        """What each peer tells torch's DataLoader, or its own one of that kind."""
        return {
            "batch_size": self.batch_size,
            "drop_last": True,
            "num_workers": self.threads,
            "persistent_workers": True,
        }

    def files(self) -> list[tuple[str, int]]:
        """Each image's path and class index, in one random order: as a data set is written for training."""
        classes = sorted(path.name for path in self.images.iterdir())
        files = [(str(path), label) for label, name in enumerate(classes) for path in self.images.glob(f"{name}/*.jpg")]
        random.Random(0).shuffle(files := sorted(files))
        return files

    def once(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file or folder of ``work``, written unless an earlier run did; half of one is never taken for it."""
        done, partial = self.work / name, self.work / f"{name}.partial"
        if not done.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            partial.rename(done)
        return done


class Rounds(NamedTuple):
    """``epoch`` goes through the data and returns the number of images; ``batch`` says what it gets.

    ``warm`` comes before each, unmeasured: to use up what was made in advance while others were measured.
    """

    epoch: Callable[[], int]
    batch: str
    warm: Callable[[], object] = lambda: None


def answer(prepare: Callable[[], Rounds]) -> None:
    """One line when all is prepared, then one for each line that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, from C and in their worker processes too, is no answer
    rounds = prepare()
    print(json.dumps({"batch": rounds.batch}), file=answers, flush=True)
    for _ in sys.stdin:
        rounds.warm()
        start = time.perf_counter()
        images = rounds.epoch()
        seconds = time.perf_counter() - start
        print(json.dumps({"images": images, "seconds": seconds}), file=answers, flush=True)


Batches = Iterable[tuple[Any, Any]]  # images, labels; an epoch each time it is gone through


def serve(prepare: Callable[[PeerSettings], tuple[Batches, str]]) -> None:
    """``prepare`` gives the batches and, in words, what one of them is."""

    def rounds() -> Rounds:
        batches, batch = prepare(PeerSettings.from_command_line())
        return Rounds(lambda: sum(len(labels) for _, labels in batches), batch)

    answer(rounds)
