"""The samples of a tar that another program wrote, found and checked in one pass that reads and hashes all of it."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import DataError
from pipelines.images.jpeg import inspect
from pipelines.images.limits import MAX_PIXELS, check_shape
from pipelines.images.picture import SUFFIXES, read_picture
from pipelines.sharding.sources.tars import Member, members
from pipelines.shards.foreign import (
    BLOCK,
    ForeignMember,
    check_header,
    index_line,
    label_extension,
    label_of,
    split_name,
)
from pipelines.shards.manifest import ImageFormat, Shard
from pipelines.shards.records import read_at
from pipelines.turbo.decode import check_data
from pipelines.untrusted import MAX_FILE_BYTES

IMAGES = [suffix.removeprefix(".") for suffix in SUFFIXES]
ABOUT_THE_TAR = re.compile(r"__[^/]*__($|/)")  # webdataset skips these members
NOT_UTF_8 = re.compile("[\ud800-\udfff]")  # as tarfile decodes other bytes
CHUNK = 1 << 20


@dataclass
class Labels:
    """The labels of a tar's samples in one place: its ``values``, and ``missing``, why the first sample has none."""

    values: set[int | str] = field(default_factory=set)
    missing: str | None = None


@dataclass
class ForeignTar:
    """What a tar holds. ``extras`` are the extensions of members besides images, ``labels`` has an entry for each place
    that was asked for, ``unusual`` counts the kinds of images that are no plain JPEGs, ``left_out`` names members that
    are in no sample, and ``quarantined`` lists samples that are not in the index, and why."""

    shard: Shard
    index: bytes
    extras: set[str]
    labels: dict[str, Labels]
    unusual: Counter[str]
    left_out: list[str]
    quarantined: list[dict[str, str]]


def index_tar(path: Path, image: ImageFormat, places: Sequence[str], required: bool) -> ForeignTar:
    """Read a tar and return what it holds, with labels from ``places`` (as ``Manifest.labels``).

    ``required``: a sample without a label is quarantined; so is one without an image that can be decoded. Raises
    DataError, which names the member, if the tar is damaged, or holds what cannot be read by offset; OSError.
    """
    labels = {place: Labels() for place in places if place != "none"}
    found = ForeignTar(Shard(path.name, 0, 0, ""), b"", set(), labels, Counter(), [], [])
    lines: list[str] = []
    with path.open("rb") as file:
        reader = _HashingReader(file)
        for key, sample in _samples(file, path, found.left_out):
            try:
                lines.append(_add(found, reader, sample, image, required))
            except ValueError as error:
                found.quarantined.append({"source": f"{path.name}: {key}", "reason": str(error)})
            except DataError as error:
                raise DataError(f"{path}: sample {key} {error}") from None
        digest = reader.finish()
    found.index = f"v1.2 {len(lines)}\n{''.join(line + chr(10) for line in lines)}".encode()
    found.shard = Shard(path.name, len(lines), reader.position, digest, hashlib.sha256(found.index).hexdigest())
    return found


class _HashingReader:
    """A reader from start to end, which hashes each byte once: those read, and those skipped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.position = file.fileno(), hashlib.sha256(), 0

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes from start to end, which follow all bytes read before. Raises OSError."""
        while self.position < start and self._next(min(CHUNK, start - self.position)):
            pass
        return self._next(end - start)

    def finish(self) -> str:
        """Skip the rest of the file and return its sha256, in hexadecimal digits."""
        while self._next(CHUNK):
            pass
        return self._hash.hexdigest()

    def _next(self, size: int) -> bytes:
        data = read_at(self._file, size, self.position)
        self._hash.update(data)
        self.position += len(data)
        return data


def _samples(file: BinaryIO, path: Path, left_out: list[str]) -> Iterator[tuple[str, list[ForeignMember]]]:
    """Yield the key and the members of each sample, in the tar's order. Raises DataError, OSError."""
    seen: set[str] = set()
    sample: dict[str, ForeignMember] = {}
    current = None
    for member in members(file, str(path)):
        named = None if ABOUT_THE_TAR.match(member.name) else split_name(member.name)
        if named is None:
            left_out.append(member.name)
            continue
        key, extension = named
        if key != current:
            if current is not None:
                yield current, [*sample.values()]
            current, sample = key, {}
            _check_new(path, member, key, seen)
        if extension in sample:
            raise DataError(f"{path} holds {sample[extension].name!r} twice, or it and {member.name!r}: write it again")
        sample[extension] = ForeignMember(extension, member.offset, member.size, member.name)
    if current is not None:
        yield current, [*sample.values()]


def _check_new(path: Path, member: Member, key: str, seen: set[str]) -> None:
    if key in seen:
        raise DataError(
            f"{path} holds {member.name!r} apart from the other members of its sample, or two samples of one key: "
            "write the tar sorted by name (tar --sort=name), each key once"
        )
    seen.add(key)


def _add(
    found: ForeignTar, reader: _HashingReader, sample: list[ForeignMember], image: ImageFormat, required: bool
) -> str:
    """Add a sample to what was found and return its line of the index.

    Raises ValueError if this sample cannot be used, DataError for a header that readers would not recognise.
    """
    picture = min((member for member in sample if member.extension in IMAGES), key=_preference, default=None)
    holders = {label_extension(place) for place in found.labels}
    contents = {}
    for member in sample:
        wanted = (member is picture or member.extension in holders) and member.size <= MAX_FILE_BYTES
        span = reader.read(member.offset - BLOCK, member.offset + (member.size if wanted else 0))
        try:
            check_header(span[:BLOCK], member)
        except ValueError as error:
            raise DataError(f"{error}: write the tar with another program") from None
        contents[member.extension] = span[BLOCK:]
    if any(map(NOT_UTF_8.search, (member.name for member in sample))):
        raise ValueError("has a name that is not UTF-8")
    large = next((member for member in sample if member.size > MAX_FILE_BYTES), None)
    if large:
        raise ValueError(f"has {large.size} bytes in {large.name}; {MAX_FILE_BYTES} are allowed")
    if picture is None:
        extensions = ", ".join(f".{member.extension}" for member in sample)[:200]
        raise ValueError(f"has no image, only {extensions}; the extension is what follows the first dot")
    unusual = _check_image(contents[picture.extension], picture.extension, image)
    labels = _labels(found, contents, required)
    for place, value in labels.items():
        found.labels[place].values.add(value)
    found.unusual.update(unusual)
    others = [member for member in sample if member is not picture]
    found.extras.update(member.extension for member in others)
    return index_line([picture, *others])


def _preference(member: ForeignMember) -> int:
    return IMAGES.index(member.extension)


def _check_image(data: bytes, extension: str, image: ImageFormat) -> list[str]:
    """Return the kind of an image that is no plain upright JPEG, else nothing. Raises ValueError if it is unusable."""
    jpeg = inspect(data)
    if not jpeg.obstacles and not jpeg.cuts:
        check_shape(jpeg.height, jpeg.width, image, MAX_PIXELS)
        check_data(data)
        return []
    try:
        picture = read_picture(data, f".{extension}", MAX_PIXELS, jpeg)
    except DataError as error:
        raise ValueError(str(error)) from None
    check_shape(picture.pixels.shape[0], picture.pixels.shape[1], image, MAX_PIXELS)
    if picture.format != "JPEG":
        return [picture.format]
    return [[*jpeg.obstacles, *(why for _, _, why in jpeg.cuts)][0].partition(":")[0]]


def _labels(found: ForeignTar, contents: dict[str, bytes], required: bool) -> dict[str, int | str]:
    """Return the sample's label in each place. Raises ValueError if one is ``required`` and missing."""
    labels: dict[str, int | str] = {}
    for place, earlier in found.labels.items():
        if earlier.missing:
            continue
        extension = label_extension(place)
        try:
            if extension not in contents:
                raise ValueError(f"has no .{extension}")
            labels[place] = label_of(place, contents[extension])
        except ValueError as error:
            if required:
                raise
            earlier.missing = str(error)
    return labels
