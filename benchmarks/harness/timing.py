"""Rates that can be compared on a shared machine: everything in turn, several rounds, medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm


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
