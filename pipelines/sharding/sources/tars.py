"""The places of a tar's members, found by reading only headers; also of a tar inside a tar."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from pipelines.errors import DataError
from pipelines.shards.records import read_at

MAX_HEADER_BYTES = 1 << 20  # long names and pax headers; a header that claims more is damaged


class Member(NamedTuple):
    """A regular file: its bytes are the ``size`` bytes at ``offset`` of the outermost file."""

    name: str
    offset: int
    size: int


class Window:
    """A file of the ``size`` bytes at ``start`` of an open file, from which tarfile reads headers."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._descriptor, self._start, self.size, self._position = file.fileno(), start, size, 0

    def read(self, size: int = MAX_HEADER_BYTES) -> bytes:
        size = max(0, min(size, MAX_HEADER_BYTES, self.size - self._position))
        data = read_at(self._descriptor, size, self._start + self._position)
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_at_random(path: Path) -> Iterator[BinaryIO]:
    """Open a file for random access: the system must not read ahead over the data."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        yield file


def members(file: BinaryIO, name: str, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """Yield the regular files of the tar in ``size`` bytes at ``start`` of ``file``; ``name`` is for messages.

    Raises DataError if it is not a tar, is cut off, or holds links or names that lead out of it.
    """
    window = Window(file, start, os.fstat(file.fileno()).st_size - start if size is None else size)
    try:
        with tarfile.TarFile(fileobj=window) as tar:  # type: ignore[arg-type]
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep each header
                _check(member, name, window.size)
                if not member.isdir():
                    yield Member(member.name, start + member.offset_data, member.size)
            window.seek(tar.offset)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{name} is not a tar, or is damaged or truncated ({error}): download it again") from None
    except OSError as error:  # a bad sector among the headers hides the place of the next member
        raise DataError(
            f"{name} cannot be read: {error.strerror}: copy it to another disk, or download it again"
        ) from None
    end = window.read(tarfile.BLOCKSIZE)  # tarfile treats whatever it cannot read as the end
    if len(end) < tarfile.BLOCKSIZE:
        raise DataError(f"{name} is truncated: its {window.size} bytes stop without the end mark: download it again")
    if any(end):
        raise DataError(f"{name} is damaged: there is no header at byte {start + tar.offset}: download it again")


def _check(member: tarfile.TarInfo, name: str, size: int) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{name} holds {member.name!r}, a path that leads out of it: get the archive from its source")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{name} holds {member.name!r}, which is not a plain file: get the archive from its source")
    if member.size < 0 or member.offset_data + member.size > size:
        raise DataError(f"{name} is truncated: {member.name} ends after it: download it again")
