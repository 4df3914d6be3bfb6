"""Files that replace earlier ones whole or not at all, as in alexnet/files.py: neither package imports the other."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def temporary(path: Path) -> Path:
    """Return a name beside ``path`` that no other process writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what is written there is flushed to the disk and renamed to ``path``.

    An error within the context deletes the temporary file and leaves ``path`` as it was. An OSError names ``path``.
    """
    partial = temporary(path)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    with suppress(OSError):  # some network file systems flush no folders; the file itself is on the disk
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name and rename it: a reader sees the old file or the whole new one."""
    with replacing(path) as partial:
        partial.write_bytes(content)
