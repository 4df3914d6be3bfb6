"""Training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alexnet.figures.tiles import plain

STEP_FIELDS = ("loss", "rate", "images_per_second", "data_wait", "memory_gib")


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
        steps, epochs = _last_of_each(entries, "step"), _last_of_each(entries, "epoch")
        for place, field in zip((loss, rate, speed, wait, memory), STEP_FIELDS, strict=True):
            _line(place, steps, field, color=f"C{i}", label=name)
        for field, style in (("top1", "o-"), ("top5", "s--"), ("f1", "^:")):
            _line(accuracy, epochs, field, color=f"C{i}", label=f"{name} {field}".strip(), style=style)
    _label(loss, "training loss")
    _label(accuracy, "validation, fraction", top=1.02)
    _label(rate, "learning rate")
    _label(speed, "training, images/s")
    _label(wait, "share of time waiting for data", top=1)
    _label(memory, "peak memory, GiB")
    for place in axes if len(runs) > 1 else [accuracy]:
        place.legend(fontsize=8)
    return figure


def _last_of_each(entries: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return one entry per step or epoch: a resumed run may have an entry twice, and the last one counts."""
    return list({entry[kind]: entry for entry in entries if entry["kind"] == kind}.values())


def _line(axes: Axes, entries: Sequence[dict[str, Any]], field: str, *, style: str = "-", **how: Any) -> None:
    x, y = ([entry[name] for entry in entries] for name in ("epoch", field))
    axes.plot(x, y, style, markersize=4, **how)


def _label(axes: Axes, label: str, top: float | None = None) -> None:
    axes.set(xlabel="epoch", title=label)
    axes.set_ylim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
