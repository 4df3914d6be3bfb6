"""The README and the pages of docs/ as tests see them: their fenced blocks, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<code>.*?)^ *```$", re.M | re.S
)
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:python3?|torchrun|make|alexnet) [^`]+)`")


class Block(NamedTuple):
    """A fenced block of a page. ``why`` says why it is not run, if so."""

    page: str
    kind: str
    code: str
    why: str | None


def blocks_of(page: Path) -> Iterator[Block]:
    for found in FENCE.finditer(page.read_text()):
        code = re.sub(rf"^{found['indent']}", "", found["code"], flags=re.M)
        yield Block(page.name, found["kind"], code, found["why"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(code: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block. Comments and settings of variables are left out.

    Variables that the block sets itself are put in their places.
    """
    values: dict[str, str] = {}
    for line in code.replace("\\\n", " ").splitlines():
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            if not words:
                values[name] = value
        if words:
            yield words


def commands_in_text(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command that stands within a sentence, unless it is a pattern with ... or A|B."""
    for found in INLINE.finditer(FENCE.sub("", page.read_text())):
        if not re.search(r"\.\.\.|\||\bNAME\b|\bOUT\b$|-c ", found[1]):
            yield shlex.split(found[1], comments=True)
