"""The wrong predictions on the page: a confusion matrix whose cells open their images, and a gallery."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from alexnet.figures import shortened_text
from alexnet.figures.scores import MOST_CLASSES
from alexnet.metrics import confusion, most_confused
from alexnet.mistakes import COLUMNS, SIDE
from alexnet.report.page import folded, packed, paragraph
from alexnet.run_reader import Run

GALLERY = 36  # images
PAIRS = 20


class Thumbnails:
    """The pictures of a run's mistakes, as parts of one image in the page. ``sheet`` is pictures/thumbnails.png."""

    def __init__(self, run: Run, number: int, sheet: np.ndarray | None) -> None:
        self._run, self._number, self._sheet = run, number, sheet
        fits = sheet is not None and sheet.shape[1] == COLUMNS * SIDE
        room = sheet.shape[0] // SIDE * COLUMNS if sheet is not None and fits else 0
        self._numbers = {row.wnid: i for i, row in enumerate(run.classes)}
        known = (one.true in self._numbers and one.predicted in self._numbers for one in run.mistakes[:room])
        self._shown = [i for i, is_known in enumerate(known) if is_known]
        self.by_pair: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i in self._shown:
            self.by_pair[self._pair(i)].append(i)

    def _pair(self, number: int) -> tuple[int, int]:
        one = self._run.mistakes[number]
        return self._numbers[one.true], self._numbers[one.predicted]

    def style(self) -> str:
        """Return the style that holds the image; empty if there is none."""
        if self._sheet is None or not self._shown:
            return ""
        address, _ = packed(self._sheet, COLUMNS * SIDE)
        return f"<style>.sheet{self._number} {{ background-image: url({address}); }}</style>"

    def gallery(self) -> str:
        return self._tiles(self._shown[:GALLERY], named=True)

    def pair(self, true: int, predicted: int) -> str:
        return self._tiles(self.by_pair[true, predicted], named=False)

    def _tiles(self, numbers: Sequence[int], named: bool) -> str:
        return f'<div class="tiles">{"".join(self._tile(i, named) for i in numbers)}</div>' if numbers else ""

    def _tile(self, number: int, named: bool) -> str:
        one, classes = self._run.mistakes[number], self._run.classes
        true, predicted = (classes[i].name for i in self._pair(number))
        told = f"{100 * one.probability:.0f}\N{NO-BREAK SPACE}%"
        caption = f"{shortened_text(predicted)}, {told}; is {shortened_text(true)}" if named else told
        place = f"background-position: -{number % COLUMNS * SIDE}px -{number // COLUMNS * SIDE}px"
        label = escape(f"{one.key}: {true}, predicted {predicted} with {told}")
        tile = (
            f'<span class="tile sheet{self._number}" role="img" aria-label="{label}" title="{label}" style="{place}">'
        )
        return f"<figure>{tile}</span><figcaption>{escape(caption)}</figcaption></figure>"


def confusions(run: Run, thumbnails: Thumbnails, number: int) -> str:
    """Return the matrix, or of many classes the most confused pairs. Empty if the run has no predictions."""
    if run.predictions is None:
        return ""
    cells, names = confusion(run.predictions, len(run.classes)), [row.name for row in run.classes]
    if len(cells) > MOST_CLASSES:
        return "".join(_folded_pairs(cells, names, thumbnails))
    pairs = [(int(i), int(j)) for i, j in np.argwhere(cells) if i != j and thumbnails.by_pair.get((int(i), int(j)))]
    blocks = [
        f'<div class="pair" id="pair-{number}-{i}-{j}">'
        + paragraph(f"{names[i]}, predicted {names[j]}: {cells[i, j]} images, the most certain first")
        + f"{thumbnails.pair(i, j)}</div>"
        for i, j in pairs
    ]
    return f"{_matrix(cells, names, number, set(pairs))}{''.join(blocks)}"


def _matrix(cells: np.ndarray, names: Sequence[str], number: int, linked: set[tuple[int, int]]) -> str:
    head = "".join(
        f'<th class="class" title="{escape(name)}">{escape(shortened_text(name, 20))}</th>' for name in names
    )
    images = cells.sum(1)
    rows = []
    for i, name in enumerate(names):
        row = [f'<th title="{escape(name)}">{escape(shortened_text(name, 20))}</th>']
        for j, value in enumerate(cells[i].tolist()):
            told = escape(f"{name}, predicted {names[j]}: {value} of {images[i]}")
            text = f'<a href="#pair-{number}-{i}-{j}">{value}</a>' if (i, j) in linked else str(value or "")
            rows_share = value / max(int(images[i]), 1)
            row.append(f'<td style="--share: {rows_share:.2f}" title="{told}">{text}</td>')
        rows.append(f"<tr>{''.join(row)}</tr>")
    corner = "<th>true ↓ predicted →</th>"
    table = f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide matrix">{table}</div>'


def _folded_pairs(cells: np.ndarray, names: Sequence[str], thumbnails: Thumbnails) -> Iterator[str]:
    images = cells.sum(1)
    for true, predicted, wrong in most_confused(cells, PAIRS):
        shown = thumbnails.pair(true, predicted) or paragraph("None of them is among the most certain mistakes.")
        yield folded(f"{names[true]}, predicted {names[predicted]}: {wrong} of {images[true]}", shown)
