"""A picture of loaders: the fastest first, a bar for each crop, and the reference as a line.

python -m benchmarks.plots.loaders benchmarks/results/loader-cpu.json docs/loader-cpu.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from benchmarks.loader import describe_loader, loader_rows
from pipelines import DataError
from pipelines.files import replacing
from pipelines.terminal import run_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"random": "#3b6ea5", "resized": "#8fb8de", "": "#9aa5b1"}  # "": batches of no single crop
LEGEND = {"random": "random crop and flip", "resized": "random resized crop and flip", "": "as named"}
OURS = ("turbo", "dali")
PLAIN = {"fc": "white", "ec": "none", "pad": 0.5}  # behind figures, which the reference's line may cross
HEIGHT = 0.4  # of a bar; a loader has a height of 1

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    result: tyro.conf.Positional[Path]
    """A file that python -m benchmarks loader --json wrote."""
    picture: tyro.conf.Positional[Path]
    """The PNG file to draw."""


def main(options: Options) -> None:
    result = json.loads(options.result.read_bytes())
    if result.get("benchmark") != "loader":
        raise DataError(f"{options.result} is no result of python -m benchmarks loader")
    save_loaders(result, options.picture)


def save_loaders(result: Row, path: Path) -> None:
    with replacing(path) as partial:
        draw_loaders(result).savefig(partial, format="png", dpi=150)


def grouped(result: Row) -> dict[str, dict[str, Row]]:
    """Return the row of each crop by loader, the slowest loader first, without the reference."""
    found: dict[str, dict[str, Row]] = {}
    ending = f", {result['threads'][0]} threads" if len(result["threads"]) == 1 else ""
    for row in loader_rows(result)[1:]:
        first, *others = row["name"].removeprefix("peer ").removesuffix(ending).split(", ")
        crop = next((other for other in others if other in LEGEND), "")
        name = ", ".join([first, *(other for other in others if other != crop)])
        found.setdefault(name, {})[crop] = row
    return dict(sorted(found.items(), key=lambda item: max(row["ratio"] for row in item[1].values())))


def draw_loaders(result: Row) -> "Figure":
    from matplotlib.figure import Figure  # only for those who draw
    from matplotlib.patches import Patch

    groups, reference = grouped(result), loader_rows(result)[0]
    figure = Figure(figsize=(9, 1.4 + 0.46 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for place, rows in enumerate(groups.values()):
        draw_bars(axes, place, rows)
    draw_reference(axes, reference, len(groups) - 0.5)
    axes.set_yticks(range(len(groups)), groups)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().split(",")[0] in OURS else "normal")
    widest = max(row["most"] for rows in groups.values() for row in rows.values())
    axes.set(ylim=(-0.6, len(groups) - 0.4), xlim=(0, 1.2 * widest))
    rounds = f"median and range of {result['rounds']} interleaved rounds"
    axes.set_xlabel(f"images/s, {rounds} (ratio to decoding whole images)")
    threads = " or ".join(map(str, result["threads"]))
    axes.set_title(f"{describe_loader(result)}, {threads} threads", loc="left", fontsize=11, pad=18)
    crops = [crop for crop in LEGEND if any(crop in rows for rows in groups.values())]
    handles = [Patch(color=COLOURS[crop], label=LEGEND[crop]) for crop in crops]
    axes.legend(handles=handles, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_bars(axes: "Axes", place: int, rows: dict[str, Row]) -> None:
    """Draw a loader's bar for each crop, one below the other, around the height ``place``."""
    for number, crop in enumerate(crop for crop in LEGEND if crop in rows):
        row, height = rows[crop], place + HEIGHT * ((len(rows) - 1) / 2 - number)
        spread = [[row["median"] - row["least"]], [row["most"] - row["median"]]]
        axes.barh(height, row["median"], HEIGHT, color=COLOURS[crop], xerr=spread, error_kw={"ecolor": "#444", "lw": 1})
        text, at = f"{row['median']:,.0f}  ({row['ratio']:.2f})", (row["most"], height)
        axes.annotate(text, at, (5, 0), textcoords="offset points", va="center", fontsize=8, bbox=PLAIN)


def draw_reference(axes: "Axes", row: Row, top: float) -> None:
    axes.axvline(row["median"], color="#444", lw=1, ls="--")
    text, at = f"decoding whole images: {row['median']:,.0f} (1.00)", (row["median"], top)
    axes.annotate(text, at, (0, 4), textcoords="offset points", ha="center", fontsize=8)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
