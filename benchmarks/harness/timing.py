"""Rates that can be compared on a shared machine: everything in turn, several rounds, medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

MADE_AHEAD = 4  # batches that a loader holds or is making when a round begins; turbo's AHEAD and one more
SHORTEST = 5 * MADE_AHEAD  # batches of a round; those made while others were measured are used up before it too


def interleave(candidates: Mapping[str, Callable[[], int | tuple[int, float]]], rounds: int) -> dict[str, list[float]]:
    """Call each candidate once unmeasured, then once per round, in turn.

    A candidate returns the number of items it processed, or that and the seconds by its own clock. Return items a
    second, one value per round.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    with tqdm(total=(rounds + 1) * len(candidates), desc="benchmark", unit=" runs") as bar:
        for current in range(rounds + 1):
            for name, candidate in candidates.items():
                start = time.perf_counter()
                done = candidate()
                items, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
                if current:
                    rates[name].append(items / seconds)
                bar.update()
    return rates


def too_short(batches: int, what: str, batch_size: int) -> str | None:
    """Return why a round of so many batches measures mostly what was made before it began; None if it does not."""
    if batches >= SHORTEST:
        return None
    return (
        f"{what} has {batches} batches, and loaders make up to {MADE_AHEAD} of them before it begins: a round needs "
        f"{SHORTEST} batches, which is {SHORTEST * batch_size:,} images at --batch-size {batch_size}"
    )


def summarise(rates: Mapping[str, list[float]], reference: str) -> list[dict[str, float | str]]:
    """Return a row per candidate: median, least, most, and the median over rounds of its ratio to ``reference``."""
    return [
        {
            "name": name,
            "median": round(statistics.median(values), 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "ratio": round(statistics.median(v / base for v, base in zip(values, rates[reference], strict=True)), 3),
        }
        for name, values in rates.items()
    ]
