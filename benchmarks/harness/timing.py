"""Rates that can be compared on a shared machine: everything in turn, several rounds, medians and ratios."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

MADE_AHEAD = 4  # batches that a loader holds or is making when a round begins; turbo's AHEAD and one more
SHORTEST = 5 * MADE_AHEAD  # batches of a round; those made while others were measured are used up before it too


@dataclass(frozen=True)
class Missing:
    """What a benchmark does not measure: ``failed``, why by name, and ``left_out``, for which there was no time."""

    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def described(self) -> dict[str, list]:
        failed = [{"name": name, "why": why} for name, why in self.failed.items()]
        return {"failed": failed, "left_out": list(self.left_out)}


@dataclass(frozen=True)
class Deadline:
    """A time limit, at which benchmarks look between rounds. Both ends are seconds of ``time.monotonic``."""

    start: float = 0
    end: float = math.inf

    @classmethod
    def after(cls, minutes: float) -> "Deadline":
        now = time.monotonic()
        return cls(now, now + 60 * minutes)

    def left(self) -> float:
        """Return the seconds that are left, below 0 if it is over."""
        return self.end - time.monotonic()

    def half_over(self) -> bool:
        return time.monotonic() > (self.start + self.end) / 2

    def part(self, parts: int) -> "Deadline":
        """Return the deadline of the next of so many parts that share the time left."""
        return Deadline.after(self.left() / 60 / parts)


def interleave(
    candidates: Mapping[str, Callable[[], int | tuple[int, float]]], rounds: int, deadline: Deadline
) -> Iterator[dict[str, list[float]]]:
    """Call each candidate once unmeasured, then once per round, in turn. Yield the rates after every round.

    A candidate returns the number of items it processed, or that and the seconds by its own clock. The rates are items
    a second, one value per round. Stop before a round for which the longest so far would not fit; one always runs.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    longest = 0.0
    with tqdm(total=(rounds + 1) * len(candidates), desc="benchmark", unit=" runs") as bar:
        for current in range(rounds + 1):
            if current > 1 and deadline.left() < longest:
                return
            began = time.monotonic()
            for name, candidate in candidates.items():
                start = time.perf_counter()
                done = candidate()
                items, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
                if current:
                    rates[name].append(items / seconds)
                bar.update()
            if current:
                longest = max(longest, time.monotonic() - began)
                yield {name: list(values) for name, values in rates.items()}


def too_short(batches: int, what: str, batch_size: int) -> str | None:
    """Return why a round of so many batches measures mostly what was made before it began; None if it does not."""
    if batches >= SHORTEST:
        return None
    return (
        f"{what} has {batches} batches, and loaders make up to {MADE_AHEAD} of them before it begins: a round needs "
        f"{SHORTEST} batches, which is {SHORTEST * batch_size:,} images at --batch-size {batch_size}"
    )


def summarise(rates: Mapping[str, list[float]], reference: str) -> list[dict[str, float | str]]:
    """Return a row per candidate: median, least, most, the median over rounds of its ratio to ``reference``, rounds."""
    return [
        {
            "name": name,
            "median": round(statistics.median(values), 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "ratio": round(statistics.median(v / base for v, base in zip(values, rates[reference], strict=True)), 3),
            "rounds": len(values),
        }
        for name, values in rates.items()
    ]
