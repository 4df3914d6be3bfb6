"""Untrusted JSON: read within limits and converted to a declared type, or refused with the name of the bad field."""

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import DataError

# The limits allow all of ImageNet with each image listed as repaired: 1.3 million entries of three values, some 150
# bytes each. A value takes up to 200 bytes of memory, so a hostile file costs 1.7 GB at most, whatever it holds.
MAX_FILE_BYTES = 1 << 28  # of an image, or of JSON
MAX_VALUES = 1 << 23
MAX_DEPTH = 32
MAX_DIGITS = 40  # of a number; parsing takes time quadratic in its length
# Characters that control a terminal or reorder text: controls, line ends, lone surrogates, changes of direction.
COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with each character of ``COMMANDS`` escaped as in Python."""
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def read_limited(path: Path, most: int) -> bytes:
    """Return the bytes of a file. Raises ValueError unless it is a regular file of ``most`` bytes or less; OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file")
    if found.st_size > most:
        raise ValueError(f"its {found.st_size} bytes are more than the {most} allowed")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises DataError if it is too large or no JSON, OSError if it is unreadable."""
    try:
        return parse_json(read_limited(path, MAX_FILE_BYTES))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def parse_json(data: bytes) -> Any:
    """Parse JSON. Raises ValueError if it is damaged, has more values, depth or digits than any file of ours, or
    numbers that are NaN or infinite. Values are counted before memory is allocated for them."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    try:
        value = json.loads(data.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MAX_DIGITS or not math.isfinite(float(digits)):
        raise ValueError(f"{digits[:MAX_DIGITS]} is no number")
    return float(digits)


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Convert ``value``, from JSON, to ``kind``: a dataclass, with exactly its fields, or the type of a field.

    Raises ValueError: ``where``, then what is wrong and in which field.
    """
    try:
        found = msgspec.convert(value, kind, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from error
    if unknown := _unknown(value, msgspec.to_builtins(found, enc_hook=str)):
        raise ValueError(f"{where} has the unknown field {unknown[:40]!r}")
    return found


def _unknown(value: Any, known: Any) -> str | None:
    """Return the first key in ``value`` that ``known`` lacks: msgspec drops what a dataclass has no field for."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in known:
                return key
            if isinstance(inner, dict | list) and (found := _unknown(inner, known[key])):
                return found
    elif isinstance(value, list):
        return next(filter(None, map(_unknown, value, known)), None)
    return None


def shown(value: Any) -> str:
    """Return a short text of any value, for a message."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:60]
