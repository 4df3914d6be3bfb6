"""Figures of single images: predictions, mistakes, neighbours, saliency, features. Pictures are H,W,3 uint8."""

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
LEAST_FALL = 1.0  # of a logit: odds that fall by a factor of e. A scale that ends below would colour noise


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
    right, among = (sum(any(true for *_, true in best[:n]) for best in predictions) for n in (1, 5))
    figure.set_label(f"{right} of {len(images)} are predicted correctly; {among} have the true class among the five.")
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
    found = [shown for row in neighbours for shown in row]
    same = sum(not shown.wrong for shown in found)
    figure.set_label(f"{same} of {len(found)} neighbours are of the class of their query.")
    return figure


def saliency(images: Sequence[Shown], falls: Sequence[np.ndarray], heats: Sequence[np.ndarray]) -> Figure:
    """Draw a column per image: picture and prediction; fall of its logit if covered; Grad-CAM.

    All images of a row share one scale, which a bar shows: an image that nothing depends on stays dark. The scale of
    the falls reaches ``LEAST_FALL`` or further.
    """
    figure = Figure(figsize=(2.6 * len(images) + 1.4, 8.2), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    most = [float(max(fall.max(), 0)) for fall in falls]
    top, hottest = max(*most, LEAST_FALL), max(float(max(heat.max() for heat in heats)), 1e-12)
    for column, shown, fall, heat, largest in zip(axes.T, images, falls, heats, most, strict=True):
        _picture(column[0], shown.picture, shortened(shown.name, 34), WRONG if shown.wrong else "black", size=10)
        _picture(column[1], _grey(shown.picture), f"covered: logit −{largest:.1f} at most")
        _picture(column[2], _grey(shown.picture), f"Grad-CAM: {100 * heat.max() / hottest:.0f} % at most")
        falling = column[1].imshow(fall.clip(0), cmap="inferno", vmin=0, vmax=top, alpha=0.65)
        share = column[2].imshow(100 * heat / hottest, cmap="inferno", vmin=0, vmax=100, alpha=0.65)
    figure.colorbar(falling, ax=axes[1], label="fall of the logit", shrink=0.8)
    figure.colorbar(share, ax=axes[2], label=f"% of the row's highest, {hottest:.2g}", shrink=0.8)
    most_so, least_so = (images[most.index(end(most))].name for end in (max, min))
    figure.set_label(
        f"Covering a part costs most for {most_so!r} (its logit falls by up to {max(most):.1f}) "
        f"and least for {least_so!r} (up to {min(most):.1f})."
    )
    return figure


def mistakes(images: Sequence[Shown], total: int, searched: int) -> Figure:
    """Draw wrong predictions, the most certain first. ``total`` of ``searched`` images were predicted wrongly."""
    columns, size = 6, 1.9
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(size * columns, (size + 0.2) * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, shown in zip(axes, images, strict=False):
        _picture(place, shown.picture, shown.name, size=8)
    for place in axes[len(images) :]:
        place.axis("off")
    most = f"; the {len(images)} most certain" if len(images) < total else ""
    figure.suptitle(f"{total} of {searched} images predicted wrongly{most}, the most certain first", fontsize=10)
    figure.set_label(f"{total} of {searched} val images are predicted wrongly.")
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
    figure.set_label(_closest(places, labels, names))
    return figure


def _closest(places: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> str:
    """Name the two classes whose images lie closest together on average; an empty text if there is but one class."""
    found = np.unique(labels)[:1000]
    centres = np.array([places[labels == label].mean(0) for label in found])
    distances = np.linalg.norm(centres[:, None] - centres, axis=2) + np.diag(np.full(len(found), np.inf))
    if len(found) < 2:
        return ""
    one, other = (names[int(found[i])] for i in divmod(int(distances.argmin()), len(found)))
    return f"Closest together lie the images of {one!r} and {other!r}."


def _apart(places: np.ndarray, cells: int = 18) -> list[int]:
    """Return the number of one image per cell of a grid over the plane."""
    low, span = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-12)
    cell = np.minimum((places - low) / span * cells, cells - 1).astype(int)
    return list({tuple(one): i for i, one in enumerate(cell)}.values())


def _picture(axes: Axes, picture: np.ndarray, title: str, colour: str = "black", size: int = 9) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=size, color=colour, pad=3)
    axes.axis("off")
