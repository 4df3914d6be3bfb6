"""Ways in which files get damaged, by accident or on purpose, for the fuzz tests."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from hypothesis import strategies as st

NUMBERS = (b"-1", b"0", b"1e999", b"NaN", b"00", b"4294967296", b"99999999999999999999", b"9" * 5000, b"0.5", b"true")
BINARY = (
    b"\xff\xff",
    b"\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80\0",
    b"\xff\xd8",
    b"\xff\xd9",
)
TEXT = (b"../", b"/", b"\0", b"\n", b" ", b"[" * 20_000, b'{"a":' * 3000, b"\xff", b"\\", b"C:", b"\x1b[2J", b"'", b'"')
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 300, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, "", "x", "../x", "/etc/passwd", "a\0b"),
    *("a\nb", "\x1b[2J", "\ud800", "C:\\x", "train-000000.tar", [], {}, [[]], ["x"], [1, 2, 3], {"a": 1}, "9" * 5000),
    [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
)
KINDS = ("flip", "cut", "insert", "repeat", "move", "number", "binary", "text", "end")


EDIT_BYTES = 7


class Edit(NamedTuple):
    """A change of a file or a JSON document. ``place`` is taken modulo its length; each kind limits ``size``."""

    kind: str
    place: int
    size: int
    value: int


def edits(kinds: tuple[str, ...] = KINDS, most: int = 4, where: Sequence[int] = ()) -> st.SearchStrategy[list[Edit]]:
    """Return a strategy for up to ``most`` edits: near the start (headers) or anywhere; or at the places ``where``."""
    drawn = st.binary(min_size=EDIT_BYTES, max_size=most * EDIT_BYTES)
    return drawn.map(lambda data: _edits(data, kinds, where))


def random_edits(rng: random.Random) -> list[Edit]:
    """Return one to four edits, without hypothesis."""
    return _edits(rng.randbytes(rng.randint(1, 4) * EDIT_BYTES), KINDS, ())


def _edits(drawn: bytes, kinds: tuple[str, ...], where: Sequence[int]) -> list[Edit]:
    """Parse edits from plain bytes, which takes a tenth of the time of a strategy for each field."""
    whole = range(0, len(drawn) - EDIT_BYTES + 1, EDIT_BYTES)
    return [_edit(drawn[start : start + EDIT_BYTES], kinds, where) for start in whole]


def _edit(drawn: bytes, kinds: tuple[str, ...], where: Sequence[int]) -> Edit:
    place = int.from_bytes(drawn[1:4]) if drawn[0] & 1 else int.from_bytes(drawn[2:4]) % 700
    place = where[place % len(where)] if where else place
    return Edit(kinds[(drawn[0] >> 1) % len(kinds)], place, 1 + int.from_bytes(drawn[4:6]) % 3000, drawn[6])


def damaged(data: bytes, changes: list[Edit]) -> bytes:
    for change in changes:
        data = CHANGES[change.kind](data or b"\0", change)
    return data


def _at(data: bytes, edit: Edit) -> int:
    return edit.place % len(data)


def _number(data: bytes, edit: Edit) -> bytes:
    found = list(re.finditer(rb"\d+", data[: 1 << 16]))
    if not found:
        return data
    one = found[edit.place % len(found)]
    return data[: one.start()] + NUMBERS[edit.value % len(NUMBERS)] + data[one.end() :]


def _overwritten(data: bytes, place: int, piece: bytes) -> bytes:
    return (data[:place] + piece + data[place + len(piece) :])[: len(data)]


def _inserted(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place:]


CHANGES: dict[str, Callable[[bytes, Edit], bytes]] = {
    "flip": lambda d, e: _overwritten(d, _at(d, e), bytes([d[_at(d, e)] ^ (1 << e.value % 8)])),
    "cut": lambda d, e: d[: _at(d, e)] + d[_at(d, e) + e.size :],
    "insert": lambda d, e: _inserted(d, _at(d, e), bytes([e.value]) * (e.size % 40)),
    "repeat": lambda d, e: _inserted(d, _at(d, e), d[_at(d, e) : _at(d, e) + e.size]),
    "move": lambda d, e: _overwritten(d, _at(d, e), d[e.size : e.size + 1 + e.value]),
    "number": _number,
    "binary": lambda d, e: _overwritten(d, _at(d, e), BINARY[e.value % len(BINARY)]),
    "text": lambda d, e: _inserted(d, _at(d, e), TEXT[e.value % len(TEXT)]),
    "end": lambda d, e: d[: _at(d, e)],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(document: Any, edit: Edit) -> None:
    """Replace, remove, rename or double one value of a JSON document, in place."""
    paths = list(places(document))
    if not paths:
        return
    *path, last = paths[edit.place % len(paths)]
    for key in path:
        document = document[key]
    if edit.size % 8 == 0:
        del document[last]
    elif edit.size % 8 == 1 and isinstance(document, dict):
        document[f"{last}\x1b"] = document[last]
    elif edit.size % 8 == 2 and isinstance(document, list):
        document.insert(edit.value, document[last])
    else:
        document[last] = deepcopy(VALUES[edit.value % len(VALUES)])
