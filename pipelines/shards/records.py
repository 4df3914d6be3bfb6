"""The samples of a split, one at a time and in any order: a read of a few kilobytes, checked against the index."""

import errno
import os
import threading
import weakref
import zlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import DataError
from pipelines.shards.manifest import Manifest
from pipelines.untrusted import MAX_FILE_BYTES

BLOCK = 512  # of a tar file
# Where the header of an image, in bytes that USTAR does not use, holds the checksum of what follows it.
CHECKSUM = slice(500, 508)
MAX_OPEN_SHARDS = 512  # the usual limit of a process is 1024 files; shards beyond these are opened for each read


class SampleError(DataError):
    """One sample cannot be used: ``shard``, ``key`` and ``reason`` say which and why."""

    def __init__(self, folder: Path, shard: str, key: str, reason: str) -> None:
        super().__init__(
            f"{folder}/{shard}: sample {key} {reason}. python tools/shard_imagenet.py --verify {folder} lists all such "
            'samples, --repair writes the shard again, and on_error="skip" goes on without them'
        )
        self.shard, self.key, self.reason = shard, key, reason


class Record(NamedTuple):
    """A sample as it is stored."""

    folder: Path
    shard: str
    key: str
    data: memoryview
    label: int

    def error(self, reason: str) -> SampleError:
        return SampleError(self.folder, self.shard, self.key, reason)


class Records:
    """Any sample of a split by its number. Shared by threads. Files are closed when nobody holds this any more."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._manifest = manifest
        self._shards = manifest.split(split).shards
        self._ends = list(accumulate(shard.samples for shard in self._shards))
        self._extension, self._checked = manifest.image.extension.encode(), checked_while_read(manifest)
        self._lines: dict[int, tuple[bytes, memoryview, int]] = {}
        self._files: dict[int, int] = {}
        self._opening = threading.Lock()
        weakref.finalize(self, _close, self._files)

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, sample: int) -> tuple[int, int, int]:
        """For native.c: the open shard, or -1; where in memory the sample's line of the index is, and its length.

        Raises DataError for a damaged index and a shard that cannot be opened.
        """
        number = bisect_right(self._ends, sample)
        _, ends, address = self._indexed(number)
        row = sample - self._ends[number] + self._shards[number].samples
        file = self._files.get(number)
        if file is None:
            file = self._files[number] if self._keep(number) else -1
        return file, address + ends[row] + 1, ends[row + 1] - ends[row] - 1

    def read(self, sample: int) -> Record:
        """Raises SampleError for a damaged sample, DataError for a damaged shard or index."""
        number = bisect_right(self._ends, sample)
        shard = self._shards[number]
        row = sample - self._ends[number] + shard.samples
        text, ends, _ = self._indexed(number)
        line = text[ends[row] + 1 : ends[row + 1]]
        entry = line.split()
        key = entry[3].decode("ascii", "replace").rpartition(".")[0] if len(entry) == 8 else "?"

        def error(reason: str) -> SampleError:
            return SampleError(self._manifest.folder, shard.path, key, reason)

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
            raise error("is not where the index says, or its label is not")
        try:
            span = self._read(number, start - BLOCK, label_start + label_size)
        except OSError as failed:  # a bad sector; whatever else fails, fails for the whole shard
            if failed.errno == errno.EIO:
                raise error(f"cannot be read: {failed.strerror}") from failed
            raise self._unreadable(number, failed) from failed
        label_header = label_start - start  # BLOCK before the label, as the image is BLOCK behind the start of the span
        if not _is_header(span[:BLOCK], name, size) or label_name != name[: -len(extension)] + b"cls":
            raise error(f"has another name or size than the index says, or one that no shard has: {name[:80]!r}")
        if not _is_header(span[label_header : label_header + BLOCK], label_name, label_size):
            raise error("has no label where the index says")
        if self._checked and span[CHECKSUM] != checksum(span[BLOCK:]):
            raise error("has other bytes than were sharded, by its checksum")
        data = memoryview(span)[BLOCK : BLOCK + size]
        return Record(self._manifest.folder, shard.path, key, data, self._label(span[-label_size:], error))

    @staticmethod
    def _entry(entry: list[bytes]):
        """EXT offset size name cls offset size name."""
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
        """The index of a shard: its text, where its lines end, and the text's address.

        It is read at the first call for a shard, by whichever thread that is, and stays where it is.
        """
        found = self._lines.get(number)
        return found or self._lines.setdefault(number, self._index(number))

    def _index(self, number: int) -> tuple[bytes, memoryview, int]:
        path = self._path(number).with_suffix(".idx")
        try:
            text = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise DataError(f"index {path} cannot be read: {error.strerror}") from error
        letters = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(letters == ord("\n"))
        lines = self._shards[number].samples + 1
        if len(ends) != lines or text[-1:] != b"\n" or len(set(text.split(b"\n"))) != lines + 1:  # none stands twice
            raise DataError(
                f"index {path} does not list the {self._shards[number].samples} samples of its shard: restore it, or "
                "write it again with tools/shard_imagenet.py --repair"
            )
        return text, memoryview(ends.data), letters.ctypes.data  # whose numbers are quicker than numpy's

    def _read(self, number: int, start: int, end: int) -> bytes:
        """Read the bytes from start to end. Raises OSError if that fails, DataError if the shard is missing or cut."""
        if number in self._files or self._keep(number):
            data = read_at(self._files[number], end - start, start)
        else:
            file = self._open(number)
            try:
                data = read_at(file, end - start, start)
            finally:
                os.close(file)
        if len(data) != end - start:
            raise DataError(
                f"shard {self._path(number)} ends at byte {start + len(data)}, in the middle of a sample: restore it, "
                "or write it again with tools/shard_imagenet.py --repair"
            )
        return data

    def _open(self, number: int) -> int:
        try:
            return os.open(self._path(number), os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(number, error) from error

    def _unreadable(self, number: int, error: OSError) -> DataError:
        return DataError(f"shard {self._path(number)} cannot be read: {error.strerror}")

    def _keep(self, number: int) -> bool:
        """Open the shard for good, if there is room. In a random order no other choice would hit more often."""
        with self._opening:
            if number not in self._files and len(self._files) < MAX_OPEN_SHARDS:
                self._files[number] = self._open(number)
        return number in self._files

    def _path(self, number: int) -> Path:
        return self._manifest.folder / self._shards[number].path


def checked_while_read(manifest: Manifest) -> bool:
    """Return true if each sample that is read is compared with its checksum.

    That costs 1 % of decoding a JPEG. Of raw pixels, of which a crop is copied, it would cost a third; there --verify
    alone compares.
    """
    return manifest.checksums and manifest.image.encoding == "jpeg"


def checksum(rest: bytes) -> bytes:
    """Return eight hexadecimal digits: the CRC-32 of a sample from behind its image's header to its label's end."""
    return b"%08x" % zlib.crc32(rest)


def read_at(file: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset`` of an open file; fewer only at its end. Raises OSError.

    One call may read less: Linux gives 2 GB at most, network drives and signals what they like.
    """
    data = os.pread(file, size, offset)
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def _is_header(block: bytes, name: bytes, size: int) -> bool:
    """Of a regular file, as the sharding tool writes it."""
    safe = b"/" not in name and not name.startswith(b".")
    return safe and block[:100] == name.ljust(100, b"\0") and block[124:136] == b"%011o\0" % size


def _blocks(size: int) -> int:
    """Bytes that contents take in a tar file."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
