"""Charts of training and of confidence, and a sentence on what is worth noticing in each."""

from collections.abc import Iterator, Sequence

import numpy as np

from alexnet.figures.scores import FEW, wilson_of
from alexnet.metrics import BINS, reliability
from alexnet.report.charts import Bar, Line, bar_chart, line_chart, number, percent
from alexnet.report.page import side_by_side
from alexnet.run_reader import Run
from alexnet.series import of_epochs, of_steps

ACCURACIES = {"top1": "top-1", "train_top1": "top-1 of train images", "top5": "top-5", "f1": "F1"}


def training_charts(runs: Sequence[Run]) -> str:
    """Return the charts of runs, with a colour per run, or per curve if there is one run."""
    losses = [line for i, run in enumerate(runs) for line in _losses(run, i, len(runs))]
    accuracies = [line for i, run in enumerate(runs) for line in _accuracies(run, i, len(runs))]
    charts = [
        line_chart("Loss; pale: as measured, strong: smoothed", losses),
        line_chart("Accuracy on validation images", accuracies, top=1, form=percent),
    ]
    for field, title, form in (
        ("rate", "Learning rate", number),
        ("images_per_second", "Training, images/s", number),
        ("data_wait", "Share of time waiting for data", percent),
        ("memory_gib", "Peak memory, GiB", number),
    ):
        lines = [line for i, run in enumerate(runs) for line in _means(_name(run, len(runs)), i, run, field)]
        charts.append(line_chart(title, lines, form=form))
    return side_by_side(charts)


def _name(run: Run, runs: int, curve: str = "") -> str:
    return " ".join(filter(None, (str(run.folder) if runs > 1 else "", curve)))


def _means(name: str, colour: int, run: Run, field: str) -> Iterator[Line]:
    curve = of_steps(run.log, field)
    smooth = curve.smoothed() if field not in ("rate", "memory_gib") else None
    if smooth:
        yield Line(name, *curve, colour, "pale")
    yield Line(name, *(smooth or curve), colour)


def _losses(run: Run, number: int, runs: int) -> Iterator[Line]:
    yield from _means(_name(run, runs, "training"), number, run, "loss")
    validation = of_epochs(run.log, "loss")
    yield Line(_name(run, runs, "validation"), *validation, number if runs > 1 else 1, "dashed")


def _accuracies(run: Run, number: int, runs: int) -> Iterator[Line]:
    """Yield all accuracies of a single run; of several, top-1."""
    for i, (field, title) in enumerate(ACCURACIES.items()):
        if runs == 1 or i == 0:
            curve, colour = of_epochs(run.log, field), number if runs > 1 else i
            yield Line(_name(run, runs, title), *curve, colour, "dashed" if i else "strong")


def confidence_chart(run: Run) -> str:
    """Return accuracy by confidence, bins of few images pale; empty if the run has no predictions."""
    if run.predictions is None:
        return ""
    bins = reliability(run.predictions)
    bars = []
    for i in np.flatnonzero(bins["images"]).tolist():
        images, accuracy, interval = int(bins["images"][i]), float(bins["accuracy"][i]), wilson_of(bins, i)
        shown = f"{images} images with confidence {percent(i / BINS)} to {percent((i + 1) / BINS)}: "
        shown += f"{percent(accuracy)} right (95 %: {percent(interval[0])} to {percent(interval[1])})"
        bars.append(Bar(i / BINS, (i + 1) / BINS, accuracy, interval, shown, pale=images < FEW))
    return bar_chart(f"{run.folder}: accuracy by confidence", bars, "confidence of the prediction")
