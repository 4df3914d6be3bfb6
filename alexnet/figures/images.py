"""Figures of single images: predictions, nearest neighbours, saliency, features. Pictures are H,W,3 uint8."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from alexnet.figures.tiles import shortened

RIGHT, OTHER, WRONG = "#e78ac3", "#8da0cb", "#d62728"
MOST_COLOURS = 20  # classes that the legend has room for


class Shown(NamedTuple):
    """A picture and its name. ``wrong`` marks a wrong prediction, or a neighbour of another class, in red."""

    picture: np.ndarray
    name: str
    wrong: bool = False


def five_answers(images: Sequence[Shown], predictions: Sequence[Sequence[tuple[str, float, bool]]]) -> Figure:
    """Draw figure 4 left of the paper: under each picture the likeliest classes; the bar of the true one is pink.

    Predictions are a class's name, its probability, and true if it is the true class.
    """
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(3 * columns, 4.5 * rows), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2, 1] * rows)
    for i, (shown, best) in enumerate(zip(images, predictions, strict=True)):
        picture = figure.add_subplot(grid[2 * (i // columns), i % columns])
        _picture(picture, shown.picture, shortened(shown.name, 30), size=11)
        _bars(figure.add_subplot(grid[2 * (i // columns) + 1, i % columns]), best)
    return figure


def _bars(axes: Axes, best: Sequence[tuple[str, float, bool]]) -> None:
    colours = [RIGHT if true else OTHER for *_, true in best]
    axes.barh(range(len(best)), [probability for _, probability, _ in best], color=colours, height=0.9)
    for row, (name, probability, _) in enumerate(best):
        axes.text(0.02, row, shortened(name, 26), va="center", fontsize=9)
        axes.text(0.99, row, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=8, color="0.25")
    axes.set(xlim=(0, 1), ylim=(max(len(best), 5) - 0.5, -0.5), xticks=[], yticks=[])


def nearest_neighbours(queries: Sequence[Shown], neighbours: Sequence[Sequence[Shown]], title: str) -> Figure:
    """Draw figure 4 right: in each row a picture and its neighbours by features, the nearest first."""
    columns = 1 + max(len(row) for row in neighbours)
    figure = Figure(figsize=(1.7 * columns, 1.95 * len(queries) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(queries), columns + 1, width_ratios=[1, 0.08, *[1] * (columns - 1)])
    for i, (query, row) in enumerate(zip(queries, neighbours, strict=True)):
        _picture(figure.add_subplot(grid[i, 0]), query.picture, shortened(query.name, 20))
        for j, shown in enumerate(row):
            colour = WRONG if shown.wrong else "black"
            _picture(figure.add_subplot(grid[i, j + 2]), shown.picture, shortened(shown.name, 20), colour)
    figure.suptitle(title, fontsize=10)
    return figure


def saliency(images: Sequence[Shown], falls: Sequence[np.ndarray], heats: Sequence[np.ndarray]) -> Figure:
    """Draw a column per image: picture and prediction; fall of its logit if covered; Grad-CAM, 0..1."""
    figure = Figure(figsize=(2.6 * len(images) + 0.9, 8.2), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for column, shown, fall, heat in zip(axes.T, images, falls, heats, strict=True):
        _picture(column[0], shown.picture, shortened(shown.name, 34), WRONG if shown.wrong else "black", size=10)
        _picture(column[1], _grey(shown.picture), f"covered: logit −{max(fall.max(), 0):.1f} at most")
        column[1].imshow(fall.clip(0), cmap="inferno", vmin=0, vmax=max(fall.max(), 1e-6), alpha=0.65)
        _picture(column[2], _grey(shown.picture), "Grad-CAM")
        column[2].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65)
    return figure


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)


def feature_map(
    places: np.ndarray, labels: np.ndarray, names: Sequence[str], thumbnails: Sequence[np.ndarray], share: float
) -> Figure:
    """Plot images at N,2, their features' first two principal components: as dots by class, and as thumbnails.

    ``share`` of the variance lies in this plane. Thumbnails that would cover another are left out.
    """
    figure = Figure(figsize=(14, 6.8), layout="constrained")
    dots, map_ = figure.subplots(1, 2, sharex=True, sharey=True)
    common = np.argsort(-np.bincount(labels), kind="stable")[:MOST_COLOURS]
    others = ~np.isin(labels, common)
    dots.scatter(*places[others].T, s=6, color="0.8")
    for i, label in enumerate(common):
        dots.scatter(*places[labels == label].T, s=12, color=f"C{i}" if i < 10 else None, label=shortened(names[label]))
    dots.legend(fontsize=7, markerscale=1.5)
    map_.scatter(*places.T, s=1, color="0.8")
    for i in _apart(places):
        box = OffsetImage(thumbnails[i], zoom=0.42)
        map_.add_artist(AnnotationBbox(box, places[i], frameon=False, pad=0))
    for axes in (dots, map_):
        axes.set(xticks=[], yticks=[])
    figure.suptitle(f"the last hidden layer's first two principal components: {100 * share:.0f} % of its variance")
    return figure


def _apart(places: np.ndarray, cells: int = 18) -> list[int]:
    """Return the number of one image per cell of a grid over the plane."""
    low, span = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-12)
    cell = np.minimum((places - low) / span * cells, cells - 1).astype(int)
    return list({tuple(one): i for i, one in enumerate(cell)}.values())


def _picture(axes: Axes, picture: np.ndarray, title: str, colour: str = "black", size: int = 9) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=size, color=colour, pad=3)
    axes.axis("off")
