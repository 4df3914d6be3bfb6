"""The picture of ``python -m benchmarks step``: images a second of each candidate, and each layer beside its limit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(result: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure  # only for those who draw

    rows, layers = result["rows"][::-1], result["layers"][::-1]
    figure = Figure(figsize=(14, 1.5 + 0.28 * max(len(rows), len(layers))), layout="constrained")
    speed, limit = figure.subplots(1, 2)
    names = [row["name"] for row in rows]
    colours = ["C7" if row["network"] == "torchvision" else "C0" for row in rows]
    spread = [[row["median"] - row["least"] for row in rows], [row["most"] - row["median"] for row in rows]]
    speed.barh(names, [row["median"] for row in rows], color=colours, xerr=spread, ecolor="C3")
    for position, row in enumerate(rows):
        speed.text(0, position, f"  {row['ratio']:.2f}", va="center", color="white", fontsize=9)
    speed.set(xlabel="images/s, least to most in red; in white the ratio to the fastest torchvision", xlim=(0, None))
    names = [layer["name"] for layer in layers]
    limit.barh(names, [layer["milliseconds"] for layer in layers], color="C0", label="measured")
    limit.barh(names, [layer["least_ms"] for layer in layers], color="C1", height=0.4, label="least, by FLOP and bytes")
    limit.set_xlabel(f"ms, forward and backward, {result['variants'][0]}, batch {result['batch_sizes'][-1]}, eager")
    limit.legend(loc="lower right")
    return figure
