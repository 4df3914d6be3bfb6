"""JSON from outside: read within limits, and made what its place says, or refused with that place named."""

import dataclasses
import json
import math
import re
import stat
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from pipelines.errors import DataError

# All of ImageNet, each image listed as repaired: 1.3 million entries of three values, some 150 bytes each. A value
# takes up to 200 bytes of memory, so that a hostile file costs 1.7 GB at most, whatever it holds.
MAX_BYTES = 1 << 28
MAX_VALUES = 1 << 23
MAX_DEPTH = 32
MAX_DIGITS = 40  # of a number; reading one takes the square of its length
# What commands a terminal, or turns the text around it: controls, line ends, lone surrogates, changes of direction.
COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with what is not to be printed written as Python escapes it."""
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def read_limited(path: Path, most: int) -> bytes:
    """Raises ValueError for more than ``most`` bytes and for what is no plain file, OSError where it cannot be read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file")
    if found.st_size > most:
        raise ValueError(f"its {found.st_size} bytes are more than the {most} allowed")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Raises DataError for what is too large or no JSON, OSError where it cannot be read."""
    try:
        return parse_json(read_limited(path, MAX_BYTES))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def parse_json(data: bytes) -> Any:
    """Raises ValueError, also for more values or depth than any file of ours has, for numbers that are none (NaN), and
    for endless ones. What is too large is refused before memory is taken for it."""
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


def fitted(value: Any, kind: Any, where: str) -> Any:
    """``value``, from JSON, as ``kind``: a dataclass (with its fields and no others), a TypedDict (others may be
    there), ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]``, ``X | None`` or a plain type.

    Raises ValueError that tells the place, which begins with ``where``.
    """
    if type(value) is kind or kind is Any or isinstance(value, Path):  # a path is ours, JSON has none
        return value
    if get_origin(kind) is UnionType:
        return None if value is None else fitted(value, next(k for k in get_args(kind) if k is not NoneType), where)
    if kind is float and type(value) is int:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _object(value, kind, where)
    if is_typeddict(kind) and isinstance(value, dict):
        if missing := kind.__required_keys__ - value.keys():
            raise ValueError(f"{where} lacks {min(missing)!r}")
        hints = get_type_hints(kind)
        return {name: fitted(inner, hints.get(name, Any), f"{where}.{name}") for name, inner in value.items()}
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: fitted(inner, get_args(kind)[1], f"{where}.{name}") for name, inner in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return _tuple(value, get_args(kind), where)
    raise ValueError(f"{where} is {shown(value)}, not {getattr(kind, '__name__', kind)}")


def _object(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    missing = [field.name for field in fields if field.name not in value and field.default is dataclasses.MISSING]
    unknown = [name for name in value if name not in hints]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0][:40]!r}, which nothing knows"
        raise ValueError(f"{where} {what}")
    parts = {name: fitted(inner, hints[name], f"{where}.{name}") for name, inner in value.items()}
    try:
        return kind(**parts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _tuple(value: list[Any] | tuple[Any, ...], kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} values instead of {len(kinds)}")
    return tuple(fitted(inner, kind, f"{where}[{i}]") for i, (inner, kind) in enumerate(zip(value, kinds, strict=True)))


def shown(value: Any) -> str:
    """For a message: short, whatever it is."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:60]
