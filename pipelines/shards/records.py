"""Random access to the samples of a split: one read of a few kilobytes for each, checked against the index."""

import errno
import os
import resource
import threading
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from pipelines.errors import DataError
from pipelines.shards.checks import check_foreign_index, remedy_of
from pipelines.shards.foreign import key_of, read_extras, read_foreign
from pipelines.shards.manifest import Manifest
from pipelines.shards.record import Record, SampleError
from pipelines.untrusted import MAX_FILE_BYTES

BLOCK = 512  # of a tar file
# The place of the sample's checksum in the image's tar header: bytes that USTAR does not use.
CHECKSUM = slice(500, 508)


class Records:
    """A split's samples, by number. Threads may share it. Files are closed when it is garbage-collected."""

    def __init__(self, manifest: Manifest, split: str, keep: bool = True) -> None:
        """Open a split. ``keep`` shards open after a read: in a cache they are then not evicted."""
        self._manifest = manifest
        self._shards = manifest.split(split).shards
        self._ends = list(accumulate(shard.samples for shard in self._shards))
        self._extension, self._checked = manifest.image.extension.encode(), checked_while_read(manifest)
        self._lines: dict[int, tuple[bytes, memoryview, int]] = {}
        self._files: dict[int, int] = {}
        self._opening, self._keeping = threading.Lock(), keep
        self.closed = False  # True: shards that are not here are not fetched any more
        weakref.finalize(self, _close, self._files)

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, sample: int) -> tuple[int, int, int]:
        """Return for native.c the shard's file descriptor, or -1, and the address and length of the index line.

        Raises DataError for a damaged index and a shard that cannot be opened.
        """
        number = bisect_right(self._ends, sample)
        _, ends, address = self._indexed(number)
        row = sample - self._ends[number] + self._shards[number].samples
        file = self._files.get(number)
        if file is None:
            file = self._keep(number)
        return -1 if file is None else file, address + ends[row] + 1, ends[row + 1] - ends[row] - 1

    @property
    def ends(self) -> list[int]:
        """The number of samples up to the end of each shard."""
        return self._ends

    def lines(self, number: int) -> tuple[int, int, np.ndarray]:
        """Return a shard's file descriptor, or -1, the address of its index and the ends of its lines, the first's too.

        Raises DataError for a damaged index and a shard that cannot be opened.
        """
        _, ends, address = self._indexed(number)
        file = self._keep(number)
        return -1 if file is None else file, address, np.frombuffer(ends, np.int64)

    def read(self, sample: int) -> Record:
        """Read and check one sample. Raises SampleError if it is damaged, DataError if the shard or index is."""
        number, line = self._line(sample)
        shard = self._shards[number]
        if not self._manifest.plain:
            return read_foreign(self._manifest, shard, line, partial(self._span, number))
        entry = line.split()
        key = entry[3].decode("ascii", "replace").rpartition(".")[0] if len(entry) == 8 else "?"

        def error(reason: str) -> SampleError:
            return SampleError(self._manifest.location, shard.path, key, reason)

        try:
            extension, (start, size, name), (label_start, label_size, label_name) = self._entry(entry)
        except ValueError:
            raise error(f"has a damaged line in the index: {line[:80].decode('ascii', 'replace')}") from None
        if (
            extension != self._extension
            or not BLOCK <= start < label_start < shard.bytes
            or not 0 < size <= MAX_FILE_BYTES
        ):
            raise error("has a damaged line in the index")
        if label_start != start + _blocks(size) + BLOCK or label_size != self._manifest.label_width:
            raise error("is not where the index says, or its label is elsewhere")
        span = self._span(number, start - BLOCK, label_start + label_size, error)
        label_header = label_start - start  # the span begins BLOCK before the image, the header BLOCK before the label
        if not _is_header(span[:BLOCK], name, size) or label_name != name[: -len(extension)] + b"cls":
            raise error(f"has another name or size than the index says, or a forbidden name: {name[:80]!r}")
        if not _is_header(span[label_header : label_header + BLOCK], label_name, label_size):
            raise error("has no label where the index says")
        if self._checked and span[CHECKSUM] != checksum(span[BLOCK:]):
            raise error("has other bytes than were sharded, by its checksum")
        data, label = memoryview(span)[BLOCK : BLOCK + size], self._label(span[-label_size:], error)
        return Record(self._manifest.location, shard.path, key, data, label=label)

    def key(self, sample: int) -> str:
        """Return the key of a sample, from the index alone. Raises DataError for a damaged index."""
        line = self._line(sample)[1]
        return key_of(line) or "?"

    def extras(self, sample: int) -> dict[str, Any]:
        """Return the sample's members besides image and label, by extension: JSON parsed, text as str, else bytes.

        Plain shards have none. Raises SampleError if one is damaged, DataError if the shard or index is.
        """
        if not self._manifest.extras:
            return {}
        number, line = self._line(sample)
        return read_extras(self._manifest, self._shards[number], line, partial(self._span, number))

    def _line(self, sample: int) -> tuple[int, bytes]:
        """Return the number of the sample's shard, and its line of the index."""
        number = bisect_right(self._ends, sample)
        text, ends, _ = self._indexed(number)
        row = sample - self._ends[number] + self._shards[number].samples
        return number, text[ends[row] + 1 : ends[row + 1]]

    def _span(self, number: int, start: int, end: int, error: Callable[[str], SampleError]) -> bytes:
        try:
            return self._read(number, start, end)
        except OSError as failed:  # EIO is a bad sector; any other error concerns the whole shard
            if failed.errno == errno.EIO:
                raise error(f"cannot be read: {failed.strerror}") from failed
            raise self._unreadable(number, failed) from failed

    @staticmethod
    def _entry(entry: list[bytes]):
        """Parse the fields EXT offset size name cls offset size name. Raises ValueError."""
        extension, start, size, name, cls, label_start, label_size, label_name = entry
        if cls != b"cls":
            raise ValueError
        return extension, (int(start), int(size), name), (int(label_start), int(label_size), label_name)

    def _label(self, digits: bytes, error) -> int:
        classes = len(self._manifest.classes)
        if not digits.isdigit() or int(digits) >= classes:
            raise error(f"has a label outside 0 to {classes - 1}: {digits.decode('ascii', 'replace')!r}")
        return int(digits)

    def _indexed(self, number: int) -> tuple[bytes, memoryview, int]:
        """Return the index of a shard: its text, the offsets of its line ends, and the text's address.

        The first call for a shard, in any thread, reads it; afterwards it stays at that address.
        """
        found = self._lines.get(number)
        return found or self._lines.setdefault(number, self._index(number))

    def _index(self, number: int) -> tuple[bytes, memoryview, int]:
        path = f"{self._path(number).removesuffix('tar')}idx"
        try:
            text = self._manifest.index_text(self._shards[number])
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise DataError(f"index {path} cannot be read: {error.strerror}") from error
        if not self._manifest.plain:
            check_foreign_index(self._manifest.location, self._shards[number], text)
        letters = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(letters == ord("\n"))
        lines = self._shards[number].samples + 1
        if len(ends) != lines or text[-1:] != b"\n" or len(set(text.split(b"\n"))) != lines + 1:  # no line twice
            raise DataError(
                f"index {path} does not list the {self._shards[number].samples} samples of its shard: {self._remedy}"
            )
        return text, memoryview(ends.data), letters.ctypes.data  # a memoryview is indexed faster than an array

    def _read(self, number: int, start: int, end: int) -> bytes:
        """Read the bytes from start to end. Raises OSError if that fails, DataError if the shard is missing or cut."""
        kept = self._files.get(number)
        kept = self._keep(number) if kept is None else kept
        if kept is not None:
            data = read_at(kept, end - start, start)
        else:
            file = self._open(number)
            try:
                data = read_at(file, end - start, start)
            finally:
                self._manifest.close_shard(self._shards[number], file)
        if len(data) != end - start:
            raise DataError(
                f"shard {self._path(number)} ends at byte {start + len(data)}, in the middle of a sample: "
                f"{self._remedy}"
            )
        return data

    def _open(self, number: int) -> int:
        try:
            return self._manifest.open_shard(self._shards[number], lambda: self.closed)
        except OSError as error:
            raise self._unreadable(number, error) from error

    def _unreadable(self, number: int, error: OSError) -> DataError:
        return DataError(f"shard {self._path(number)} cannot be read: {error.strerror}")

    def _keep(self, number: int) -> int | None:
        """Keep the shard open while half of the files that the process may open are free. Return it if it is open.

        The shards that come later are opened for each read. In a random order no other choice would be hit more often.
        """
        with self._opening:
            self._keeping = self._keeping and (number in self._files or _half_of_the_files_are_free())
            if number in self._files or not self._keeping:
                return self._files.get(number)
        file = self._open(number)  # without the lock: a shard may have to be fetched
        with self._opening:
            kept = self._files.setdefault(number, file)
        if kept != file:
            self._manifest.close_shard(self._shards[number], file)
        return kept

    def release(self, number: int) -> None:
        """Close a shard with which the epoch is done; a later read opens it again. No thread may be reading it."""
        with self._opening:
            file = self._files.pop(number, None)
        if file is not None:
            self._manifest.close_shard(self._shards[number], file)

    @property
    def _remedy(self) -> str:
        return remedy_of(self._manifest.location, self._manifest.plain)

    def _path(self, number: int) -> str:
        return f"{self._manifest.location}/{self._shards[number].path}"


def checked_while_read(manifest: Manifest) -> bool:
    """Return true if the checksum of each sample is compared when it is read.

    That costs 1 % of decoding a JPEG. For raw pixels, of which only a crop is copied, it would cost a third; only
    --verify compares theirs.
    """
    return manifest.checksums and manifest.image.encoding == "jpeg"


def checksum(rest: bytes) -> bytes:
    """Return eight hexadecimal digits: the CRC-32 of a sample from the end of the image's header to the label's end."""
    return b"%08x" % zlib.crc32(rest)


def read_at(file: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset`` of an open file; fewer only at its end. Raises OSError.

    One call of ``pread`` may return less: Linux reads 2 GB at most, and network drives and signals shorten it too.
    """
    data = os.pread(file, size, offset)
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def _is_header(block: bytes, name: bytes, size: int) -> bool:
    """Return true if ``block`` is the tar header of a regular file with this name and size, as sharding writes it."""
    safe = b"/" not in name and not name.startswith(b".")
    return safe and block[:100] == name.ljust(100, b"\0") and block[124:136] == b"%011o\0" % size


def _blocks(size: int) -> int:
    """Return the bytes that contents of this size take in a tar file: whole blocks."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _half_of_the_files_are_free() -> bool:
    """Return true if this process has less than half as many files open as it may have (ulimit -n)."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most == resource.RLIM_INFINITY or len(os.listdir("/dev/fd")) < most / 2  # noqa: PTH208


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
