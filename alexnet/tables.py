"""CSV files in which a spreadsheet runs no name as a formula.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula, whatever quotes stand around it. Such a text
gets an apostrophe before it, as OWASP advises (https://owasp.org/www-community/attacks/CSV_Injection).
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from alexnet.files import replacing

# Apostrophes at the start of a name match too, so that ``original`` removes exactly what ``write_csv`` added.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write ``rows``, with an apostrophe before each text that would be a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), newline="")


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def original(cell: str) -> str:
    """Return the text that ``write_csv`` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
