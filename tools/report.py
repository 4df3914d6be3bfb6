"""Write a report on one run, or on several side by side: a single, self-contained HTML file.

    python tools/report.py runs/demo                  # runs/demo/report.html
    python tools/report.py runs/a runs/b              # runs/a/report.html, with a column per run

It shows what is in the run folders: tools/evaluate.py and tools/visualize.py put metrics and pictures there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from alexnet import AlexNetError
from alexnet.figures import compared_curves
from alexnet.page import folded, page, paragraph, picture, section, side_by_side, table
from alexnet.run_reader import Run, read_run
from pipelines import DataError
from pipelines.commands import command
from pipelines.files import write_atomically
from pipelines.images.picture import read_file
from pipelines.terminal import require, run_command

PICTURES = {
    "confusions": "The confusion matrix, or the most confused pairs of classes",
    "reliability": "Accuracy by the confidence of the prediction",
    "filters": "The kernels of the first layer (figure 3 of the paper); grey is zero",
    "answers": "The five likeliest classes; the true one is pink (figure 4, left)",
    "neighbours": "Train images with the nearest features (figure 4, right)",
    "patches": "The image patches that excite channels most",
    "saliency": "What the prediction depends on: occlusion and Grad-CAM",
    "features": "Images on the plane of their features' first two principal components",
    "activations": "The activations of each conv layer for an image",
}
WORST_CLASSES = 20


@dataclass(frozen=True)
class Options:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders, or checkpoints in them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The page to write; by default report.html in the first run's folder."""

    def __post_init__(self) -> None:
        require(len(self.runs) >= 1, "no run folder is given")
        require(len(set(self.runs)) == len(self.runs), "a run folder is given twice")


def main(options: Options) -> None:
    runs = [read_run(folder) for folder in options.runs]
    out = options.out or runs[0].folder / "report.html"
    write_atomically(out, page(" and ".join(str(run.folder) for run in runs), parts(runs)).encode(errors="replace"))
    print(out)


def parts(runs: Sequence[Run]) -> Iterator[str]:
    names = [str(run.folder) for run in runs]
    yield section("In short", table(["", *names], summary(runs)), *missing(runs))
    yield section("Training", picture(compared_curves(logs(runs)), "By epoch"))
    yield section("Confusions", side_by_side(map(confusions, runs)), pictures(runs, "confusions"))
    yield section("Classes", side_by_side(map(class_tables, runs)))
    yield section("Kinds of images", side_by_side(map(properties, runs)))
    yield section("Confidence", pictures(runs, "reliability"))
    for name in list(PICTURES)[2:]:
        yield section(name.capitalize(), pictures(runs, name))
    yield section("Configuration", settings(runs, [flat(run.config) for run in runs]))
    yield section("Environment", settings(runs, [flat(run.environment) for run in runs]))


def logs(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return each run's log by its name in the legend; a single run needs no name."""
    return {str(run.folder) if len(runs) > 1 else "": run.log for run in runs}


def summary(runs: Sequence[Run]) -> Iterator[list[object]]:
    many = any(run.metrics.get("classes", 6) > 5 for run in runs)  # else top-5 says nothing
    for label, field in (("top-1", "top1"), ("top-5", "top5"))[: 1 + many]:
        yield [f"{label}, 95 % interval", *(_accuracy(run.metrics, field) for run in runs)]
    for label, field in (("precision", "precision"), ("recall", "recall"), ("F1", "f1")):
        yield [f"{label}, mean of classes", *(_percent(run.metrics.get(field)) for run in runs)]
    yield ["loss", *(_number(run.metrics.get("loss")) for run in runs)]
    yield ["calibration error", *(_percent(run.metrics.get("calibration_error")) for run in runs)]
    yield ["images evaluated", *(_number(run.metrics.get("samples")) for run in runs)]
    yield ["crops", *(_number(run.metrics.get("crops")) for run in runs)]
    yield ["epochs", *(_number(run.last_epoch().get("epoch")) for run in runs)]
    yield ["top-1 after the last epoch", *(_percent(run.last_epoch().get("top1")) for run in runs)]
    yield ["training, images/s (median)", *(_number(run.of_steps("images_per_second")) for run in runs)]
    yield ["waiting for data (median)", *(_percent(run.of_steps("data_wait")) for run in runs)]
    yield ["step, ms (median)", *(_number(run.of_steps("step_ms")) for run in runs)]
    yield ["evaluation, images/s", *(_number(run.metrics.get("images_per_second")) for run in runs)]


def _number(value: float | None) -> str | None:
    """Format a number as text, so that the cell is aligned like the text in its column."""
    return None if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.2f} %"


def _accuracy(metrics: dict[str, Any], field: str) -> str | None:
    if field not in metrics or f"{field}_interval" not in metrics:
        return _percent(metrics.get(field))
    low, high = metrics[f"{field}_interval"]
    return f"{100 * metrics[field]:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def missing(runs: Sequence[Run]) -> Iterator[str]:
    for one in runs:
        if not one.metrics:
            yield paragraph(f"Not evaluated yet: {command('tools/evaluate.py', one.folder)}")
        if not (one.folder / "pictures" / "filters.png").is_file():
            yield paragraph(f"Not drawn yet: {command('tools/visualize.py', one.folder)}")


def pictures(runs: Sequence[Run], name: str) -> str:
    found = [(run, run.folder / "pictures" / f"{name}.png") for run in runs]
    captions = (f"{PICTURES[name]}{f': {run.folder}' if len(runs) > 1 else ''}" for run, _ in found)
    shown = [
        picture(_pixels(path), caption) for (_, path), caption in zip(found, captions, strict=True) if path.is_file()
    ]
    return side_by_side(shown)


def _pixels(path: Path) -> np.ndarray:
    try:
        return read_file(path).pixels
    except DataError as error:
        raise DataError(f"{path}: {error}: draw it again") from error


def confusions(run: Run) -> str:
    pairs = run.metrics.get("confused")
    return table([f"{run.folder}: true", "predicted", "images"], pairs) if pairs else ""


def class_tables(run: Run) -> str:
    if not run.classes:
        return ""
    rows = [
        [row.name, row.images, *map(_percent, (row.precision, row.recall, row.f1))]
        for row in sorted(run.classes, key=lambda row: row.f1)
    ]
    head = ["class", "images", "precision", "recall", "F1"]
    worst = paragraph(f"{run.folder}: the lowest F1 first") + table(head, rows[:WORST_CLASSES])
    rest = folded(f"the other {len(rows) - WORST_CLASSES}", table(head, rows[WORST_CLASSES:]))
    return f"<div>{worst}{rest if len(rows) > WORST_CLASSES else ''}</div>"


def properties(run: Run) -> str:
    rows = [
        [name, group["group"], group["images"], _accuracy(group | {"top1_interval": group["interval"]}, "top1")]
        for name, groups in run.metrics.get("by_property", {}).items()
        for group in groups
    ]
    return table([f"{run.folder}: by", "", "images", "top-1, 95 % interval"], rows) if rows else ""


def settings(runs: Sequence[Run], columns: Sequence[dict[str, str]]) -> str:
    """Return a table with a column per run, in which rows that differ are marked."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [[key, *(column.get(key) for column in columns)] for key in keys]
    return table(["", *(str(run.folder) for run in runs)], rows, mark_differences=True) if keys else ""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested dictionaries into one, with dots in the names."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: _written(value)}
    return found


def _written(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    run_command(main, Options, __doc__, errors=(AlexNetError, DataError))
