"""The parts of a self-contained HTML page: contents, tables that sort, pictures; light and dark, every text escaped.

The page's policy lets the browser fetch nothing and run one script, the one below, known by its hash.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from alexnet.report.style import STYLE

WIDEST_PIXELS = 1600
SCRIPT = """
document.addEventListener("click", event => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const order = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = order > 0 ? "ascending" : "descending";
  const text = row => row.cells[column].textContent, value = row => parseFloat(text(row).replaceAll(",", ""));
  const difference = (a, b) => value(a) - value(b) || text(a).localeCompare(text(b));
  body.append(...[...body.rows].sort((a, b) => order * difference(a, b)));
});
"""


class Section(NamedTuple):
    """A part of the page with a heading, to which the contents link."""

    title: str
    content: str

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())


def page(title: str, sections: Iterable[Section]) -> str:
    """Return the page, with the contents on top. Sections without content are left out."""
    kept = [section for section in sections if section.content]
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in kept)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    contents = f'<nav aria-label="contents" id="contents"><ul>{links}</ul></nav>'
    body = "\n".join([f"<h1>{escape(title)}</h1>{contents}", *map(_section, kept), f"<script>{SCRIPT}</script>"])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def policy() -> str:
    """Return the content security policy: the browser itself refuses to fetch, and to run any other script."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _section(section: Section) -> str:
    link, back = f'<a href="#{section.anchor}">{escape(section.title)}</a>', '<a class="back" href="#contents">top</a>'
    return f'<section id="{section.anchor}"><h2>{link} {back}</h2>\n{section.content}</section>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, mark_differences: bool = False, sortable: bool = False
) -> str:
    """Return a table, which scrolls if wider than the page. It may mark rows whose cells after the first differ.

    A click on a heading of a ``sortable`` one sorts it, by number or text; another click turns the order round.
    """
    heads = [f"<button>{escape(name)}</button>" if sortable else escape(name) for name in head]
    cells = "".join(f"<th>{name}</th>" for name in heads)
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


def picture(pixels: np.ndarray, alternative: str) -> str:
    """Return a figure with H,W,3 uint8 pixels, no wider than ``WIDEST_PIXELS``; ``alternative`` describes it."""
    height, width = pixels.shape[:2]
    wide = width > 1.5 * height  # on a phone it scrolls, so that its labels can be read
    data, (width, height) = packed(pixels, WIDEST_PIXELS)
    shown = f'<img width="{width}" height="{height}" alt="{escape(alternative)}" src="{data}">'
    return f"<figure{' class=wide' if wide else ''}>{shown}</figure>\n"


def packed(pixels: np.ndarray, widest: int, quality: int = 80) -> tuple[str, tuple[int, int]]:
    """Return pixels H,W,3 as the address of an image within the page, and its width and height."""
    image = Image.fromarray(pixels)
    image.thumbnail((widest, 10 * widest))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", image.size
