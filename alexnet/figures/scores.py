"""Figures of a network's wrong predictions and of their confidence."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from alexnet.figures.tiles import shortened
from alexnet.metrics import BINS, most_confused, wilson

MOST_CLASSES = 30  # of a matrix that can still be read
FEW = 10  # images, whose accuracy says little


def confusion_matrix(cells: np.ndarray, names: Sequence[str], pairs: int = 20) -> Figure:
    """Draw the matrix ``cells`` C,C, rows true, in per cent of the row; of many classes, the most confused pairs."""
    if len(cells) <= MOST_CLASSES:
        return _matrix(cells, [shortened(name, 20) for name in names])
    return _pairs(most_confused(cells, pairs), cells.sum(1), names)


def _matrix(cells: np.ndarray, names: Sequence[str]) -> Figure:
    share = 100 * cells / np.maximum(cells.sum(1, keepdims=True), 1)
    size = 2.6 + 0.52 * len(cells)
    figure = Figure(figsize=(max(size + 0.6, 5.5), size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle("images; the shade is their share of the true class")
    for row, column in np.argwhere(cells):
        colour = "white" if share[row, column] > 55 else "black"
        axes.text(column, row, cells[row, column], ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    return figure


def _pairs(pairs: Sequence[tuple[int, int, int]], images: np.ndarray, names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(9, 1.4 + 0.28 * max(len(pairs), 3)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{shortened(names[true], 28)} → {shortened(names[predicted], 28)}" for true, predicted, _ in pairs]
    bars = axes.barh(range(len(pairs)), [100 * wrong / images[true] for true, _, wrong in pairs])
    axes.bar_label(bars, [f"{wrong} of {images[true]}" for true, _, wrong in pairs], padding=3, fontsize=8)
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="% of the true class", title="most confused: true → predicted" if pairs else "nothing is confused")
    return figure


def reliability_diagram(bins: dict[str, np.ndarray], error: float) -> Figure:
    """Plot the accuracy and number of predictions by confidence. ``bins`` come from ``metrics.reliability``.

    Bins with fewer than ``FEW`` images are pale, and each bin has the 95 % interval of its accuracy.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    curve, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    middle, some = (np.arange(BINS) + 0.5) / BINS, bins["images"] > 0
    curve.plot([0, 1], [0, 1], "--", color="0.6", label="confidence = accuracy")
    for few, label in ((False, "accuracy, 95 % interval"), (True, f"of fewer than {FEW} images")):
        chosen = some & ((bins["images"] < FEW) == few)
        if chosen.any():
            alpha = 0.2 if few else 0.75
            low, high = np.array([wilson_of(bins, i) for i in np.flatnonzero(chosen).tolist()]).T
            reach = np.abs(np.stack([low, high]) - bins["accuracy"][chosen])
            how = {"yerr": reach, "ecolor": (0, 0, 0, 0.25 if few else 0.6), "error_kw": {"lw": 1}}
            curve.bar(middle[chosen], bins["accuracy"][chosen], 0.92 / BINS, color=("C0", alpha), label=label, **how)
            curve.plot(bins["confidence"][chosen], bins["accuracy"][chosen], "o", color="k", markersize=4, alpha=alpha)
    curve.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"expected calibration error {100 * error:.1f} %")
    curve.legend(loc="upper left", fontsize=8)
    counts.bar(middle, bins["images"], 0.92 / BINS, color="0.6")
    counts.set(xlabel="confidence of the prediction", ylabel="images")
    return figure


def wilson_of(bins: dict[str, np.ndarray], number: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy in one bin of ``metrics.reliability``, which must hold images."""
    images = int(bins["images"][number])
    return wilson(round(float(bins["accuracy"][number]) * images), images)
