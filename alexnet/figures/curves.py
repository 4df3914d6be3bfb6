"""Training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from alexnet.figures.tiles import plain
from alexnet.series import Curve, of_epochs, of_steps

FEW = 10  # points, which are marked: a line of one would not be seen


def training_curves(entries: Sequence[dict[str, Any]]) -> Figure:
    """Plot loss, learning rate, validation metrics, throughput, data wait and memory from ``log.jsonl``'s lines."""
    return compared_curves({"": entries})


def compared_curves(runs: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """Plot the same curves of several runs, by name, in one figure with a colour per run."""
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    axes = list(figure.subplots(2, 3).flat)
    loss, accuracy, rate, speed, wait, memory = axes
    for i, (run, entries) in enumerate(runs.items()):
        name = plain(run)
        for place, field in ((loss, "loss"), (speed, "images_per_second"), (wait, "data_wait")):
            _means(place, of_steps(entries, field), color=f"C{i}", label=f"{name} training".strip())
        for place, field in ((rate, "rate"), (memory, "memory_gib")):
            _line(place, of_steps(entries, field), color=f"C{i}", label=name)
        _line(loss, of_epochs(entries, "loss"), "o--", color=f"C{i}", label=f"{name} validation".strip())
        for field, style in (("top1", "o-"), ("top5", "s--"), ("f1", "^:"), ("train_top1", "x-.")):
            _line(accuracy, of_epochs(entries, field), style, color=f"C{i}", label=f"{name} {_written(field)}".strip())
    _label(loss, "loss; pale: as measured, strong: smoothed")
    _label(accuracy, "accuracy, fraction of the images", top=1.02)
    _label(rate, "learning rate")
    _label(speed, "training, images/s")
    _label(wait, "share of time waiting for data")
    wait.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _label(memory, "peak memory, GiB")
    for place in axes if len(runs) > 1 else [loss, accuracy]:
        if place.lines:
            place.legend(fontsize=8)
    return figure


def _written(field: str) -> str:
    return field.replace("train_top1", "top1 of train images")


def _means(axes: Axes, curve: Curve, *, color: str, label: str) -> None:
    """Plot the smoothed line, with the means that it smooths behind it; if there are few, the means alone."""
    smooth = curve.smoothed()
    if smooth:
        axes.plot(*curve, color=color, alpha=0.3, linewidth=1)
    _line(axes, smooth or curve, color=color, label=label)


def _line(axes: Axes, curve: Curve, style: str = "-", **how: Any) -> None:
    if len(curve.values):
        axes.plot(*curve, f"o{style}" if style == "-" and len(curve.values) < FEW else style, markersize=4, **how)


def _label(axes: Axes, label: str, top: float | None = None) -> None:
    axes.set(xlabel="epoch", title=label)
    axes.set_ylim(0, top)
    axes.set_xlim(0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
