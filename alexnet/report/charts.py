"""Charts as inline SVG: colours follow the page's style, light or dark, and points show their values on hover."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 36  # margins
MOST_HOVERED = 60  # points of a line that show their values
COLOURS = 6  # that the page's style has

Format = Callable[[float], str]


class Line(NamedTuple):
    """A line of a chart: its name, x and y, the number of its colour, and how it is drawn."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 0
    style: Literal["strong", "pale", "dotted", "dashed"] = "strong"


class Bar(NamedTuple):
    """A bar: where it begins and ends on x, its height, the ends of its interval, and what hovering shows."""

    left: float
    right: float
    height: float
    interval: tuple[float, float]
    shown: str
    pale: bool = False


def number(value: float) -> str:
    return f"{value:,.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


class Frame:
    """Axes from 0 to ``right`` and ``top``, with their ticks: places of values in the chart."""

    def __init__(self, right: float, top: float, form: Format = number, x_form: Format = number) -> None:
        self._right, self._top = right or 1, top or 1
        self._form, self._x_form = form, x_form

    def x(self, value: float) -> float:
        return round(LEFT + value / self._right * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - value / self._top * (HEIGHT - TOP - BOTTOM), 1)

    def svg(self, label: str, x_label: str, content: Iterable[str]) -> str:
        """Return the chart with its axes."""
        lines, bottom = [], HEIGHT - BOTTOM
        for value in ticks(self._top):
            y = self.y(value)
            lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            lines.append(f'<text x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end">{escape(self._form(value))}</text>')
        for value in ticks(self._right):
            place = f'x="{self.x(value)}" y="{bottom + 14}"'
            lines.append(f'<text {place} text-anchor="middle">{escape(self._x_form(value))}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        lines.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        inside = "".join([*lines, *content])
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def ticks(end: float, most: int = 5) -> list[float]:
    """Return at most ``most`` + 1 round numbers from 0 to ``end``."""
    power = 10.0 ** math.floor(math.log10(max(end, 1e-300) / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if end / (factor * power) <= most)
    return [round(i * step, 12) for i in range(int(end / step + 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[Line], *, top: float | None = None, form: Format = number) -> str:
    """Return a figure of lines over epochs, with a legend if there are several names; empty if there are no points."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    highest = max(float(np.max(line.y)) for line in lines)
    frame = Frame(max(float(np.max(line.x)) for line in lines), top or 1.05 * highest, form)
    content = [part for line in lines for part in _line(frame, line, form)]
    keys = {line.name: line for line in lines if line.name}
    legend = "".join(
        f'<span class="key {line.style} c{line.colour % COLOURS}">{escape(name)}</span>' for name, line in keys.items()
    )
    legend = f'<div class="keys">{legend}</div>' if len(keys) > 1 else ""
    chart = frame.svg(title, "epoch", content)
    return f"<figure><figcaption><b>{escape(title)}</b></figcaption>{chart}{legend}</figure>"


def _line(frame: Frame, line: Line, form: Format) -> Iterable[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    colour = f"c{line.colour % COLOURS}"
    yield f'<path class="{line.style} {colour}" d="M{" ".join(f"{x},{y}" for x, y in places)}"/>'
    if line.style == "pale":
        return
    few = len(places) <= 10  # a line of one point would not be seen
    for i in range(0, len(places), math.ceil(len(places) / MOST_HOVERED)):
        (x, y), shown = places[i], f"{line.name} epoch {number(line.x[i])}: {form(line.y[i])}".strip()
        kind = f"dot {colour}" if few else f"hit {colour}"
        yield f'<circle class="{kind}" cx="{x}" cy="{y}" r="{3 if few else 5}"><title>{escape(shown)}</title></circle>'


def bar_chart(title: str, bars: Sequence[Bar], x_label: str) -> str:
    """Return a figure of bars over 0..1 with their intervals, and the diagonal."""
    frame = Frame(1, 1, percent, percent)
    content = [f'<path class="diagonal" d="M{frame.x(0)},{frame.y(0)} {frame.x(1)},{frame.y(1)}"/>']
    for bar in bars:
        x, y, width = frame.x(bar.left), frame.y(bar.height), frame.x(bar.right) - frame.x(bar.left) - 2
        low, high = (frame.y(value) for value in bar.interval)
        rect = f'<rect x="{x + 1:.1f}" y="{y}" width="{width:.1f}" height="{max(frame.y(0) - y, 0):.1f}"/>'
        stroke = f'<path class="interval" d="M{x + 1 + width / 2:.1f},{low} V{high}"/>'
        hit = f'<rect class="hit" x="{x}" y="{TOP}" width="{width + 2:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
        title_ = f"<title>{escape(bar.shown)}</title>"
        content.append(f'<g class="bar{" pale" if bar.pale else ""}">{title_}{rect}{stroke}{hit}</g>')
    chart = frame.svg(title, x_label, content)
    return f"<figure><figcaption><b>{escape(title)}</b></figcaption>{chart}</figure>"
