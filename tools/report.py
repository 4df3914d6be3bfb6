"""Write a report on one run, or on several side by side: a single, self-contained HTML file.

    python tools/report.py runs/demo                  # runs/demo/report.html
    python tools/report.py runs/a runs/b              # runs/a/report.html, with a column per run

It shows what is in the run folders: tools/evaluate.py and tools/visualize.py put metrics and pictures there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from alexnet import AlexNetError
from alexnet.report import facts
from alexnet.report.card import accuracy, model_card
from alexnet.report.curves import confidence_chart, training_charts
from alexnet.report.mistakes import Thumbnails, confusions
from alexnet.report.page import Section, folded, page, paragraph, picture, side_by_side, table
from alexnet.report.png import description
from alexnet.report.reading import PARTS, PICTURES
from alexnet.run_reader import Run, read_run
from pipelines import DataError
from pipelines.commands import command
from pipelines.files import write_atomically
from pipelines.images.picture import read_file
from pipelines.terminal import require, run_command

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
    write_atomically(out, page(" and ".join(str(run.folder) for run in runs), sections(runs)).encode(errors="replace"))
    print(out)


def sections(runs: Sequence[Run]) -> Iterator[Section]:
    names = [str(run.folder) for run in runs]
    thumbnails = [Thumbnails(run, i, _sheet(run)) for i, run in enumerate(runs)]
    yield Section("In short", table(["", *names], summary(runs)) + "".join(missing(runs)))
    cards = (table(["model card", str(run.folder)], model_card(run)) for run in runs)
    yield Section("Model card", side_by_side(cards))
    yield explained("Training", training_charts(runs), noticed(runs, facts.training))
    matrices = [confusions(run, shown, i) for i, (run, shown) in enumerate(zip(runs, thumbnails, strict=True))]
    how = "Confusions" if any("matrix" in part for part in matrices) else "Pairs"
    yield explained("Confusions", side_by_side(map(wrapped, matrices)), noticed(runs, facts.confusions), how)
    gallery = "".join(shown.style() + shown.gallery() for shown in thumbnails)
    yield explained("Mistakes", gallery, noticed(runs, facts.mistakes))
    yield explained("Classes", side_by_side(map(class_tables, runs)), noticed(runs, facts.classes))
    yield explained("Kinds of images", side_by_side(map(properties, runs)), noticed(runs, facts.groups))
    confidence = noticed(runs, facts.confidence)
    yield explained("Confidence", side_by_side(map(confidence_chart, runs)), confidence)
    for name, how in PICTURES.items():
        yield Section(name.capitalize(), pictures(runs, name, how))
    yield Section("Configuration", settings(runs, [flat(run.config) for run in runs]))
    yield Section("Environment", settings(runs, [flat(run.environment) for run in runs]))


def explained(title: str, content: str, said: Sequence[str], how: str = "") -> Section:
    """Return a section that says how to read ``content`` and what is worth noticing; an empty one if it is empty."""
    text = "".join(map(paragraph, (PARTS[how or title], *said)))
    return Section(title, text + content if content else "")


def noticed(runs: Sequence[Run], of_run: Callable[[Run], str]) -> list[str]:
    """Return what is worth noticing in each run, with its name if there are several."""
    found = [(run, of_run(run)) for run in runs]
    return [f"{run.folder}: {fact}" if len(runs) > 1 else fact for run, fact in found if fact]


def wrapped(content: str) -> str:
    return f"<div>{content}</div>" if content else ""


def summary(runs: Sequence[Run]) -> Iterator[list[object]]:
    many = any(run.metrics.get("classes", 6) > 5 for run in runs)  # else top-5 says nothing
    for label, field in (("top-1", "top1"), ("top-5", "top5"))[: 1 + many]:
        yield [f"{label}, 95 % interval", *(accuracy(run.metrics, field) for run in runs)]
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


def missing(runs: Sequence[Run]) -> Iterator[str]:
    for one in runs:
        if not one.metrics:
            yield paragraph(f"Not evaluated yet: {command('tools/evaluate.py', one.folder)}")
        if not (one.folder / "pictures" / "filters.png").is_file():
            yield paragraph(f"Not drawn yet: {command('tools/visualize.py', one.folder)}")


def pictures(runs: Sequence[Run], name: str, how: str) -> str:
    """Return the runs' pictures of this name, with how to read them and what is worth noticing."""
    found = [(run, run.folder / "pictures" / f"{name}.png") for run in runs]
    drawn = [(run, path) for run, path in found if path.is_file()]
    shown = []
    for run, path in drawn:
        drawn_picture = picture(_pixels(path), f"{name} of {run.folder}")
        said = " ".join(filter(None, (f"{run.folder}:" if len(runs) > 1 else "", description(path))))
        shown.append(wrapped(drawn_picture + paragraph(said)))
    return paragraph(how) + side_by_side(shown) if shown else ""


def _pixels(path: Path) -> np.ndarray:
    try:
        return read_file(path).pixels
    except DataError as error:
        raise DataError(f"{path}: {error}: draw it again") from error


def _sheet(run: Run) -> np.ndarray | None:
    path = run.folder / "pictures" / "thumbnails.png"
    return _pixels(path) if run.mistakes and path.is_file() else None


def class_tables(run: Run) -> str:
    if not run.classes:
        return ""
    rows = [
        [row.name, row.images, *map(_percent, (row.precision, row.recall, row.f1))]
        for row in sorted(run.classes, key=lambda row: row.f1)
    ]
    head = ["class", "images", "precision", "recall", "F1"]
    worst = paragraph(f"{run.folder}: the lowest F1 first") + table(head, rows[:WORST_CLASSES], sortable=True)
    rest = folded(f"the other {len(rows) - WORST_CLASSES}", table(head, rows[WORST_CLASSES:], sortable=True))
    return f"<div>{worst}{rest if len(rows) > WORST_CLASSES else ''}</div>"


def properties(run: Run) -> str:
    rows = [
        [name, group["group"], group["images"], accuracy(group | {"top1_interval": group["interval"]}, "top1")]
        for name, groups in run.metrics.get("by_property", {}).items()
        for group in groups
    ]
    return table([f"{run.folder}: by", "group", "images", "top-1, 95 % interval"], rows, sortable=True) if rows else ""


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
