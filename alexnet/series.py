"""The points of a run's curves: means over equal numbers of steps, and a smooth line through them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MOST_POINTS = 400  # of a curve; more cannot be told apart
FEWEST_TO_SMOOTH = 8


class Curve(NamedTuple):
    """Points of a curve: epochs and values, each of the same length."""

    epochs: np.ndarray
    values: np.ndarray

    def smoothed(self) -> "Curve | None":
        """Return the moving average over about a tenth of the points; None if there are too few of them."""
        count = len(self.values)
        if count < FEWEST_TO_SMOOTH:
            return None
        window = np.hanning(2 * (count // 20) + 5)[1:-1]
        weight = np.convolve(np.ones(count), window, "same")  # less at both ends, where the window is cut off
        return Curve(self.epochs, np.convolve(self.values, window, "same") / weight)


def last_of_each(entries: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return one entry per step or epoch, in order: a resumed run may have an entry twice; the last one counts."""
    found = {entry[kind]: entry for entry in entries if entry["kind"] == kind}
    return [found[number] for number in sorted(found)]


def of_epochs(entries: Sequence[dict[str, Any]], field: str) -> Curve:
    """Return a field of the epochs that have it."""
    found = [entry for entry in last_of_each(entries, "epoch") if field in entry]
    return Curve(*(np.array([entry[name] for entry in found], dtype=float) for name in ("epoch", field)))


def of_steps(entries: Sequence[dict[str, Any]], field: str) -> Curve:
    """Return a field of the log's intervals as means over equal numbers of steps, each in the middle of its steps.

    An interval ends with its epoch and at a checkpoint, so the log has intervals of a single step beside long ones:
    drawn as they are, the noise of one batch would look like a collapse. Rates and shares are means over time, and
    the loss one over steps. The learning rate and the peak memory are no means: they are returned as logged.
    """
    lines = last_of_each(entries, "step")
    steps, epochs, values, speed = (
        np.array([line[name] for line in lines], dtype=float) for name in ("step", "epoch", field, "images_per_second")
    )
    if field in ("rate", "memory_gib") or not lines:
        return Curve(epochs, values)
    ends = np.concatenate([[0.0], steps])
    counts = np.diff(ends)
    weights = counts if field == "loss" else counts / np.maximum(speed, 1e-3)
    points = int(np.clip(steps[-1] / max(np.quantile(counts, 0.75), 1), 1, min(len(lines), MOST_POINTS)))
    edges = np.linspace(0, steps[-1], points + 1)
    total, weight = (_between(edges, ends, amounts) for amounts in (weights * values, weights))
    middles = np.interp((edges[1:] + edges[:-1]) / 2, ends, np.concatenate([[0.0], epochs]))
    return Curve(middles, total / np.maximum(weight, 1e-300))


def _between(edges: np.ndarray, ends: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Return the sums between ``edges`` of amounts that are spread evenly between ``ends``."""
    return np.diff(np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(amounts)])))
