"""The parts of a self-contained HTML page: no script, nothing fetched, every text escaped, light and dark."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

WIDEST_PIXELS = 1600
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --soft: #667; --line: #dcdfe4; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171a; --text: #e4e7ea; --soft: #9aa3ad; --line: #33393f; --mark: #4a3f13; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, figcaption { color: var(--soft); margin: .3rem 0 .8rem; }
.wide { overflow-x: auto; } .side { display: flex; flex-wrap: wrap; gap: 1rem; } .side > * { flex: 1 1 22rem; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } tr.differs { background: var(--mark); }
figure { margin: 0; min-width: 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.wide > img { width: 100%; min-width: 44rem; max-width: none; } summary { cursor: pointer; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser itself refuses to fetch


def page(title: str, parts: Iterable[str]) -> str:
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    """Return a section; an empty string if it has no parts."""
    return f"<section><h2>{escape(title)}</h2>\n{''.join(parts)}</section>" if any(parts) else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], mark_differences: bool = False) -> str:
    """Return a table, which scrolls if wider than the page. It may mark rows whose cells after the first differ."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for row in rows:
        differs = mark_differences and len({str(value) for value in row[1:]}) > 1
        lines.append(f"<tr{' class=differs' if differs else ''}>{''.join(map(_cell, row))}</tr>")
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>\n'


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
    return f"<td{' class=number' if number else ''}>{escape(text)}</td>"


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>"


def side_by_side(parts: Iterable[str]) -> str:
    """Return parts side by side, beneath each other on a phone; an empty string if there are none."""
    content = "".join(parts)
    return f'<div class="side">{content}</div>' if content else ""


def picture(source: np.ndarray | Figure, caption: str) -> str:
    """Return an element with H,W,3 uint8 pixels or a figure, no wider than ``WIDEST_PIXELS``."""
    if isinstance(source, Figure):
        file = io.BytesIO()
        source.savefig(file, dpi=120, bbox_inches="tight")
        file.seek(0)
        image = Image.open(file).convert("RGB")
    else:
        image = Image.fromarray(source)
    image.thumbnail((WIDEST_PIXELS, 10 * WIDEST_PIXELS))
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=85)
    data = base64.b64encode(packed.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    caption = escape(caption)
    wide = image.width > 1.5 * image.height  # on a phone it scrolls, so that its labels can be read
    shown = f'<img {size} alt="{caption}" src="data:image/webp;base64,{data}">'
    return f"<figure{' class=wide' if wide else ''}>{shown}<figcaption>{caption}</figcaption></figure>\n"
