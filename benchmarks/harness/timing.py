"""Rates that can be compared on a machine that is shared: everything in turn, several rounds, medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm


def interleave(candidates: Mapping[str, Callable[[], int | tuple[int, float]]], rounds: int) -> dict[str, list[float]]:
    """Call each candidate once unmeasured, then once a round, in turn.

    It returns how many items it processed, or that and the seconds by its own clock. Gives items a second, a value a
    round.
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


def summarise(rates: Mapping[str, list[float]], limit: str) -> list[dict[str, float | str]]:
    """A row a candidate: median, least and most; the ratio is the median over rounds of the ratio to ``limit``."""
    return [
        {
            "name": name,
            "median": round(statistics.median(values), 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "ratio": round(statistics.median(v / base for v, base in zip(values, rates[limit], strict=True)), 3),
        }
        for name, values in rates.items()
    ]
