"""A benchmark's rows as bars."""

from pathlib import Path


def draw_rates(rows: list[dict], title: str, path: Path) -> None:
    """Draw a bar per row: the median, the range of the rounds, and the ratio to the reference, the first row."""
    from matplotlib.figure import Figure  # only for those who draw

    figure = Figure(figsize=(9, 1 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    rows = rows[::-1]
    colours = ["#9aa5b1" if row["ratio"] == 1 else "#d08c60" if "peer" in row["name"] else "#3b6ea5" for row in rows]
    spread = [[row["median"] - row["least"] for row in rows], [row["most"] - row["median"] for row in rows]]
    names = [row["name"] for row in rows]
    axes.barh(names, [row["median"] for row in rows], color=colours, xerr=spread, error_kw={"ecolor": "#444", "lw": 1})
    for place, row in enumerate(rows):
        axes.annotate(
            f"{row['median']:,.0f}  ({row['ratio']:.2f})",
            (row["most"], place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, 1.25 * max(row["most"] for row in rows))
    axes.set_xlabel("images/s, median and range of the rounds (ratio to the reference)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
