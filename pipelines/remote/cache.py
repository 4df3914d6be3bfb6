"""A bounded folder of whole shards, which the processes of a machine share.

ROOT/NAME-DIGEST/ holds what was fetched of one dataset: manifest.json, mean.npy, shards and their indices; DIGEST is
that of the manifest, so that two versions of a dataset never meet. A shard is fetched as ``train-000000.tar.part``,
compared with the manifest's sha256 as it arrives, and renamed: what has its final name is whole.

All locks are ``flock`` on open files, which the kernel releases when a process ends, however it ends. A fetch holds
its part exclusively; whoever reads a shard holds it shared; a shard may be evicted by whoever gets it exclusively.
A forked process shares the open files of its parent, and so would keep their locks: they are given back, not just
closed.
"""

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.remote.store import Store
from pipelines.shards.checks import FOREIGN_INDEX, INDEX_LINE_BYTES
from pipelines.shards.manifest import Shard

POLL_SECONDS = 0.02  # between two looks at a shard that another thread or process is fetching


@dataclass(frozen=True)
class ShardCache:
    """The shards of one dataset in the cache. ``most`` are the bytes of the shards of all datasets below ``root``.

    ``failed`` are the errors of shards that could not be fetched: other threads need not wait for the same.
    Threads may share it. All methods raise DataError.
    """

    store: Store
    root: Path
    folder: Path
    most: int
    failed: dict[str, DataError] = field(default_factory=dict, repr=False, compare=False)

    def open(self, shard: Shard, stopped: Callable[[], bool] = lambda: False) -> int:
        """Return a file descriptor of the shard, which is not evicted until it is closed; fetch it if it is missing.

        It is fetched even if everything that could be evicted leaves too little room. Raises DataError at once if it
        could not be fetched before, and if it is ``stopped`` while it is fetched.
        """
        while not stopped():
            if known := self.failed.get(shard.path):
                raise known
            if (file := self._tried(shard, must=True, stopped=stopped)) is not None:
                return file
            time.sleep(POLL_SECONDS)  # another thread or process is fetching it
        raise DataError(f"{self.store.url}/{shard.path} was not fetched: the loader was closed")

    def open_ahead(self, shard: Shard, stopped: Callable[[], bool]) -> int | None:
        """Do the same before it is needed. Return None without room, while another fetches it, and if it fails."""
        try:
            return self._tried(shard, must=False, stopped=stopped)
        except DataError:  # ``open`` raises it
            return None

    def _tried(self, shard: Shard, **how: Any) -> int | None:
        try:
            file = self._there(shard)
            return self._fetched(shard, **how) if file is None else file
        except (DataError, OSError) as error:
            known = error if isinstance(error, DataError) else _full(self.root, error)
            self.failed[shard.path] = known
            raise known from None

    def close(self, shard: Shard, file: int) -> None:
        """Close a shard that the epoch is done with: evicted is what was closed first."""
        with suppress(OSError):
            os.utime(file)
        _unlock(file)

    def index(self, shard: Shard) -> bytes:
        """Return the text of a shard's index, which is kept as long as the shard."""
        path = self._path(shard).with_suffix(".idx")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return self.store.read(path.name, _most_index(shard))

    def open_again(self, shard: Shard) -> int:
        """Fetch the shard even if it is there, return it like ``open``. What is there stays if that fails."""
        while (file := self._fetched(shard, must=True, again=True)) is None:
            time.sleep(POLL_SECONDS)
        return file

    def _path(self, shard: Shard) -> Path:
        return self.folder / shard.path

    def _there(self, shard: Shard) -> int | None:
        """Return the shard, opened and locked, if it is in the cache."""
        try:
            file = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for one who is about to evict it
        found = os.fstat(file)
        if found.st_nlink and found.st_size == shard.bytes:
            return file
        _unlock(file)
        return None

    def _fetched(
        self, shard: Shard, *, must: bool, again: bool = False, stopped: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Fetch the shard and return it, opened and locked; None if another fetches it, or without room unless it
        ``must`` be. ``again``: also if it is there."""
        part = self._path(shard).with_name(f"{shard.path}.part")
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        kept = False
        try:
            if not _locked(file) or not _is_at(file, part):
                return None
            try:
                if not again and _size(self._path(shard)) == shard.bytes:
                    return None  # another one finished it meanwhile
                if not self._reserve(shard, file, must):
                    return None
                if not self._fill(shard, file, part, stopped):
                    return None
                kept = True
                return file
            finally:
                if not kept:
                    part.unlink(missing_ok=True)
        finally:
            if not kept:
                _unlock(file)

    def _reserve(self, shard: Shard, file: int, must: bool) -> bool:
        """Give the part its full length, so that it counts; evict for it. Return false if there is no room."""
        with alone(self.root):
            os.ftruncate(file, 0)
            used = sum(map(_size, self._counted()))
            for path in self._oldest() if used + shard.bytes > self.most else ():
                used -= _evict(path)
                if used + shard.bytes <= self.most:
                    break
            room = used + shard.bytes <= self.most
            if room or must:
                os.ftruncate(file, shard.bytes)
            return room or must

    def _counted(self) -> Iterator[Path]:
        for folder in os.scandir(self.root):
            if folder.is_dir():
                yield from (Path(file) for file in os.scandir(folder) if file.name.endswith((".tar", ".tar.part")))

    def _oldest(self) -> list[Path]:
        """Return what might be evicted: parts that killed processes left, then shards by when they were closed."""
        dated = []
        for path in self._counted():
            with suppress(FileNotFoundError):
                dated.append((path.suffix != ".part", path.stat().st_mtime_ns, path))
        return [path for *_, path in sorted(dated)]

    def _fill(self, shard: Shard, file: int, part: Path, stopped: Callable[[], bool]) -> bool:
        """Fetch index and shard; rename both to their names. Return false if it was stopped."""
        name = shard.path.removesuffix("tar") + "idx"
        index = _beside(partial(self.store.read, name, _most_index(shard)))  # so that a request's latency counts once
        for last in (False, True):
            found = self._download(shard, file, stopped)
            if found is None:
                return False
            if found == shard.sha256:
                break
            if last:  # twice: it was not the connection
                raise DataError(
                    f"{self.store.url}/{shard.path} is not the shard of the manifest, by its sha256: it was replaced "
                    "or damaged: restore it, or shard the dataset into an empty place of the bucket again"
                )
        try:
            os.fsync(file)
            with part.with_name(part.name.replace(".tar.part", ".idx.part")).open("wb") as text:
                text.write(index.result())
                text.flush()
                os.fsync(text.fileno())
            Path(text.name).replace(self._path(shard).with_suffix(".idx"))
            part.replace(self._path(shard))
        except OSError as error:
            raise _full(self.root, error) from error
        fcntl.flock(file, fcntl.LOCK_SH)
        return True

    def _download(self, shard: Shard, file: int, stopped: Callable[[], bool]) -> str | None:
        """Write the object into the file. Return its sha256, or None if it was stopped."""
        digest, at = hashlib.sha256(), 0
        for chunk in self.store.chunks(shard.path):
            if stopped():
                return None
            if at + len(chunk) > shard.bytes:
                return "longer"
            try:
                os.pwrite(file, chunk, at)
            except OSError as error:
                raise _full(self.root, error) from error
            digest.update(chunk)
            at += len(chunk)
        return digest.hexdigest()


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock of the whole cache: no other thread or process reserves room in it meanwhile."""
    file = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(file)


def _unlock(file: int) -> None:
    """Give a file's lock back and close it."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _beside(read: Callable[[], bytes]) -> Future[bytes]:
    """Return what a thread is reading. Unlike an executor's threads it is a daemon: nothing waits for it at exit."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:  # no more threads, or none any more as the program is ending
        run()
    return future


def _most_index(shard: Shard) -> int:
    """Return the most bytes that its index can have, whoever wrote it."""
    return INDEX_LINE_BYTES * (shard.samples + 1) + FOREIGN_INDEX * shard.bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed or evicted meanwhile
        return 0


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Return true if the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _evict(path: Path) -> int:
    """Delete a shard and its index, or a part, unless it is in use. Return the bytes that this frees."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        if not _locked(file) or not _is_at(file, path):
            return 0
        size = os.fstat(file).st_size
        path.unlink()
        path.with_suffix(".idx").unlink(missing_ok=True)  # of a part: train-000000.tar.idx, which is never there
        return size
    finally:
        _unlock(file)


def _full(root: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"the disk of the cache {root} is full: free some space, or give a smaller --cache-gb")
    return DataError(f"the cache {root} cannot be written: {error.strerror}")
