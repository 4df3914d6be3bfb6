"""A picture of images/s: what the machine's limits allow, and what decoders, loaders, the step and training reach."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 224 * 224 * 3
COLOURS = {"limit": "#9aa5b1", "decoding": "#d08c60", "loader": "#3b6ea5", "step": "#4f8f5b", "training": "#8a5a9e"}
BEST = 3  # rows of a benchmark that are drawn, of each kind
STAGES = ("read alone", "a training step alone", "reference: decoding")


class Bar(NamedTuple):
    kind: str
    name: str
    images_per_second: float


def draw(items: list[dict[str, Any]]) -> "Figure":
    """Draw ``items`` as benchmarks/gpu.py writes them."""
    from matplotlib.figure import Figure  # only for those who draw
    from matplotlib.patches import Patch

    found = [bar for result in results(items) for bar in BARS.get(result["benchmark"], nothing)(result)]
    bars = sorted({(bar.kind, bar.name): bar for bar in found}.values(), key=lambda bar: bar.images_per_second)
    figure = Figure(figsize=(10, 1.6 + 0.26 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{bar.name}  " for bar in bars]
    axes.barh(range(len(bars)), [bar.images_per_second for bar in bars], color=[COLOURS[bar.kind] for bar in bars])
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    for place, bar in enumerate(bars):
        axes.annotate(
            f"{bar.images_per_second:,.0f}",
            (bar.images_per_second, place),
            (4, -3),
            fontsize=7,
            textcoords="offset points",
        )
    axes.set(xscale="log", xlabel="images/s", ylim=(-0.6, len(bars) - 0.4))
    axes.margins(x=0.15)
    axes.legend(handles=[Patch(color=colour, label=kind) for kind, colour in COLOURS.items()], loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title(items), loc="left", fontsize=11)
    return figure


def results(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        for done in item["commands"]:
            if "result" in done:
                yield done["result"]


def title(items: list[dict[str, Any]]) -> str:
    first: dict[str, Any] = next(results(items), {})
    return (
        f"{first.get('gpu') or 'no GPU'}, {first.get('cores')} cores, torch {first.get('torch')}, {first.get('date')}"
    )


def fastest(rows: list[dict[str, Any]], count: int = BEST) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -row["median"])[:count]


def nothing(result: dict[str, Any]) -> Iterator[Bar]:
    yield from ()


def ceilings(result: dict[str, Any]) -> Iterator[Bar]:
    """Yield the copy as the uint8 images that it could carry, and the fastest row of each decoder and dataset."""
    host = result["limits"]["host"]["bytes_per_second"]
    if host:
        yield Bar("limit", "uint8 images copied to the GPU", host / PIXELS)
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in result["rows"]:
        key = row["data"], row.get("work", "host"), row.get("decoder", "") + row.get("backend", "")
        best[key] = max(row, best.get(key, row), key=lambda one: one["median"])
    kind = "loader" if result["finish"] else "decoding"
    for row in best.values():
        yield Bar(kind, f"{row['name']}, {row['mean_kb']} KB" + ", batches" * result["finish"], row["median"])


def loader(result: dict[str, Any]) -> Iterator[Bar]:
    rows = [row for row in result["rows"] if not row["name"].startswith(STAGES)]
    peers = [row for row in rows if row["name"].startswith("peer")]
    for row in fastest([row for row in rows if row not in peers], 2 * BEST) + fastest(peers):
        image = result["image"]
        yield Bar("loader", f"{row['name']} ({image['encoding']}, {image['mean_kb']} KB)", row["median"])


def step(result: dict[str, Any]) -> Iterator[Bar]:
    """Yield our steps and torchvision's, and the rate that matrix products would allow our fastest."""
    for theirs in (False, True):
        for number, row in enumerate(fastest([r for r in result["rows"] if (r["network"] == "torchvision") is theirs])):
            yield Bar("step", f"step: {row['name']}", row["median"])
            if not theirs and not number:
                name = f"{row['network']}'s operations at the rate of a matrix product"
                yield Bar("limit", name, row["median"] / row["share"])


def train(result: dict[str, Any]) -> Iterator[Bar]:
    for row in fastest(result["rows"], 2 * BEST):
        yield Bar("training", f"training: {row['name']}", row["median"])


BARS = {"ceilings": ceilings, "loader": loader, "step": step, "train": train}
