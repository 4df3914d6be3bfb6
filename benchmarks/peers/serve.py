"""How a loader is measured beside others: in a process of its own, an epoch each time it is told to.

The process prepares, prints a JSON line, then waits for lines on its standard input; after each it goes through one
epoch and prints what that took. So loaders of different environments can take turns. Standard library only.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
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
    def from_command_line(cls) -> "Settings":
        """The script's only argument is JSON."""
        given = json.loads(sys.argv[1])
        return cls(**given | {name: Path(given[name]) for name in ("images", "shards", "work")})


def serve(epoch: Callable[[], int], batch: str) -> None:
    """``epoch`` goes through the data once and returns the number of images; ``batch`` says what it gets."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    print(json.dumps({"batch": batch}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        images = epoch()
        seconds = time.perf_counter() - start
        print(json.dumps({"images": images, "seconds": seconds}), file=answers, flush=True)
