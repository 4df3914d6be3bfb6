"""Keys and sizes from the index of a shard, checked without reading the shard: 1.28 million samples take a second."""

import re
import tarfile

import numpy as np

from pipelines.errors import DataError
from pipelines.shards.checks import check_foreign_index, remedy_of
from pipelines.shards.foreign import key_of
from pipelines.shards.manifest import Manifest, Shard
from pipelines.untrusted import MAX_FILE_BYTES

BLOCK = tarfile.BLOCKSIZE


def list_samples(manifest: Manifest, split: str) -> tuple[list[str], np.ndarray]:
    """Return the keys of a split's samples, in order, and the bytes of their images, N int64. Raises DataError."""
    keys, sizes = [], []
    for shard in manifest.split(split).shards:
        check_index(manifest, shard)
        for line in manifest.index_text(shard).splitlines()[1:]:
            fields = line.split()
            keys.append(key_of(line))
            sizes.append(int(fields[2]))
    return keys, np.array(sizes)


def check_index(manifest: Manifest, shard: Shard) -> None:
    """Raise DataError unless the index fits the shard; the message shows the first bad line.

    Each line must list an image and a label of ``label_width`` digits under one key, which must not be a path. The
    members must follow each other without gaps, each behind a tar header of one block, up to the end of the file.
    The headers in the tar are compared by ``--verify`` only: reading them all would mean reading the dataset.
    """
    try:
        text = manifest.index_text(shard)
    except OSError as error:
        raise DataError(f"index {_path(manifest, shard)} cannot be read: {error.strerror}") from error
    start, lines = text.find(b"\n") + 1, text.count(b"\n") - 1
    if lines != shard.samples:
        raise _wrong(manifest, shard, f"it lists {lines} samples instead of {shard.samples}")
    if not manifest.plain:
        check_foreign_index(manifest.location, shard, text)
        return
    line = _line(manifest)
    if not re.compile(b"(?:" + line + b")*+").fullmatch(text, start):
        raise _wrong(manifest, shard, _first_bad_line(text[start:], line))
    members = _numbers(text, start)  # N,2,2: offset and size of image and label
    offsets, sizes = members.reshape(-1, 2).T
    ends = offsets + -(-sizes // BLOCK) * BLOCK
    follows = np.append(0, ends[:-1]) + BLOCK == offsets
    if not follows.all():
        row = int(np.argmin(follows)) // 2
        raise _wrong(manifest, shard, f"offset or size is wrong in {_shown(text[start:].splitlines()[row])}")
    if sizes.max() > MAX_FILE_BYTES:
        raise _wrong(manifest, shard, f"it lists a member of {sizes.max()} bytes; {MAX_FILE_BYTES} are allowed")
    if -(-(ends[-1] + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE != shard.bytes:
        raise _wrong(manifest, shard, f"its members end at byte {ends[-1]}, which does not fit the shard's length")


def _line(manifest: Manifest) -> bytes:
    """Return the pattern of a line. The key is printable ASCII without dot, slash or backslash, and occurs twice."""
    extension, width = manifest.image.extension, manifest.label_width
    return (
        rf"{extension} \d{{1,15}}+ [1-9]\d{{0,11}}+ ([!-\-0-\[\]-~]++)\.{extension} cls \d{{1,15}}+ {width} \1\.cls\n"
    ).encode()


def _numbers(text: bytes, start: int) -> np.ndarray:
    """Return N,2,2 int64 from the second, third, sixth and seventh of the eight fields of each line."""
    characters = np.frombuffer(text, np.uint8)[start:]
    ends = np.flatnonzero(characters <= ord(" ")).reshape(-1, 8)  # a space or a newline after each field
    starts = np.append(0, ends.ravel()[:-1] + 1).reshape(-1, 8)
    fields = [1, 2, 5, 6]
    ends, widths = ends[:, fields], (ends - starts)[:, fields]
    values = np.zeros(ends.shape, np.int64)
    for place in range(int(widths.max(initial=0))):
        digits = characters[ends - 1 - place].astype(np.int64) - ord("0")
        values += np.where(place < widths, digits, 0) * 10**place
    return values.reshape(-1, 2, 2)


def _first_bad_line(lines: bytes, pattern: bytes) -> str:
    each = re.compile(pattern)
    for line in lines.splitlines(keepends=True):
        if not each.fullmatch(line):
            return f"a line that does not list an image and its label under one key: {_shown(line)}"
    return "its lines are damaged"


def _shown(line: bytes) -> str:
    return repr(line.decode(errors="replace").strip()[:200])


def _wrong(manifest: Manifest, shard: Shard, what: str) -> DataError:
    remedy = remedy_of(manifest.location, manifest.plain)
    return DataError(f"index {_path(manifest, shard)} does not fit shard {shard.path}: {what}: {remedy}")


def _path(manifest: Manifest, shard: Shard) -> str:
    return f"{manifest.location}/{shard.path.removesuffix('tar')}idx"
