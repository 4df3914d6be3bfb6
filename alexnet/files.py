"""Files of a run: written whole or not at all, read within limits."""

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from alexnet.errors import AlexNetError

MAX_BYTES = 1 << 24  # of a file that is read at once; classes.csv of 100,000 classes has half of that


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what is written there is flushed to the disk and renamed to ``path``.

    An error within the context deletes the temporary file and leaves ``path`` as it was. An OSError names ``path``.
    pipelines/files.py has the same function: the two packages do not import each other.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    with suppress(OSError):  # some network file systems flush no folders; the file itself is on the disk
        flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def read_limited(path: Path) -> bytes:
    """Return the bytes of a file. Raises ValueError if it has more than ``MAX_BYTES``, or is no plain file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
        raise ValueError(f"it is no plain file of at most {MAX_BYTES} bytes")
    return path.read_bytes()


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Decode a JSON file as ``kind``. Raises AlexNetError, which names a value of another type."""
    try:
        return msgspec.json.decode(read_limited(path), type=kind)
    except (ValueError, RecursionError) as error:
        raise AlexNetError(f"{path} is damaged ({error}): make it again, or remove it") from error
