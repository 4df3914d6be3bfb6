"""Checks of a manifest and of the files it names, and what to do if one fails."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.remote.url import remote_url
from pipelines.untrusted import COMMANDS

if TYPE_CHECKING:
    from pipelines.shards.manifest import Manifest, Shard, Split

LABELS = re.compile(r"none|cls|json:.{1,200}")
SPLIT_NAME = re.compile(r"[a-z]{1,40}")
SHARD_NAME = re.compile(r"[^./\\][^/\\]{0,200}\.tar")
SAMPLE_BYTES = 2048  # a sample's least size in a tar: two headers, an image and a label
FOREIGN_SAMPLE_BYTES = 1024  # there may be no label
NEVER_ALIKE = 16  # samples; a random order of so many is sorted once in 10**13 times
INDEX_LINE_BYTES = 300  # at most: two names of 100 bytes, four numbers
FOREIGN_INDEX = 2  # times the tar's bytes, at most: its headers hold the same names, and a byte becomes %xx at most


def check_members(manifest: Manifest) -> None:
    """Raise ValueError for labels and extras that the shards cannot have."""
    if not LABELS.fullmatch(manifest.labels) or any(map(COMMANDS.search, (manifest.labels, *manifest.extras))):
        raise ValueError(f"labels are {manifest.labels[:40]!r} and extras {str(manifest.extras)[:80]}")
    if manifest.plain and (manifest.labels != "cls" or manifest.extras):
        raise ValueError(f"{manifest.image.encoding} shards with labels {manifest.labels[:40]!r} or with extras")
    if manifest.labels == "none" and manifest.classes:
        raise ValueError("it lists classes, and no labels")


def first_repeated(values: Sequence[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def check_distinct(splits: dict[str, Split]) -> None:
    """Raise ValueError for a shard that is listed twice, under one name or as a copy.

    The keys within a split are distinct, so two of its shards differ. Two splits may hold the same few images. If
    there are many, the random order of train makes their shards differ.
    """
    shards = [shard for split in splits.values() for shard in split.shards]
    if twice := first_repeated([shard.path for shard in shards]):
        raise ValueError(f"{twice} is listed twice")
    within = (split.shards for split in splits.values())
    for some in (*within, [shard for shard in shards if shard.samples >= NEVER_ALIKE]):
        if twice := first_repeated([shard.sha256 for shard in some]):
            first, second = [shard.path for shard in some if shard.sha256 == twice][:2]
            raise ValueError(f"{first} and {second} are the same file, with one sha256")


def check_split(name: str, split: Split, plain: bool) -> None:
    """Raise ValueError for names that are paths, and for impossible counts."""
    if not SPLIT_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a split's name")
    for shard in split.shards:
        if not SHARD_NAME.fullmatch(shard.path) or COMMANDS.search(shard.path):
            raise ValueError(f"{shard.path[:80]!r} is not a shard's name")
    sample_bytes = SAMPLE_BYTES if plain else FOREIGN_SAMPLE_BYTES
    if split.samples < 1 or split.samples != sum(shard.samples for shard in split.shards):
        raise ValueError(f"{name} does not have the {split.samples} samples it claims")
    for shard in split.shards:
        if not 1 <= shard.samples <= shard.bytes // sample_bytes:
            raise ValueError(f"{shard.path} of {shard.bytes} bytes cannot hold {shard.samples} samples")


def remedy_of(folder: str | Path, plain: bool) -> str:
    """Return what to do about a shard or an index that is missing or damaged."""
    if remote_url(folder):
        verify = command("tools/shard_imagenet.py", "--verify", folder)
        return f"restore the object; {verify} says if it is damaged there, or was in the cache, which it mends"
    again = "write it again with the command that made it and --repair"
    return f"restore it, or {again if plain else index_again(folder)}"


def index_again(folder: str | Path) -> str:
    return f"index the folder again: {command('tools/shard_imagenet.py', '--index', folder)}"


def check_foreign_index(folder: str | Path, shard: Shard, text: bytes) -> None:
    """Raise DataError unless this is the index that was made for a tar of another program."""
    if hashlib.sha256(text).hexdigest() != shard.index_sha256:
        index = f"{folder}/{shard.path.removesuffix('tar')}idx"
        raise DataError(f"index {index} is not the one of the manifest, by its sha256: {remedy_of(folder, False)}")


def check_shard(folder: Path, shard: Shard, plain: bool = True) -> None:
    """Raise DataError unless the shard has its full length and an index of as many samples."""
    remedy = remedy_of(folder, plain)
    path = folder / shard.path
    if not path.is_file():
        raise DataError(f"shard {path} is missing: {remedy}")
    if path.stat().st_size != shard.bytes:
        raise DataError(f"shard {path} has {path.stat().st_size} bytes instead of {shard.bytes}: {remedy}")
    index = path.with_suffix(".idx")
    if not index.is_file():
        raise DataError(f"index {index} is missing: {remedy}")
    most = INDEX_LINE_BYTES * (shard.samples + 1) if plain else FOREIGN_INDEX * shard.bytes
    if index.stat().st_size > most:
        raise DataError(f"index {index} is longer than one of {shard.samples} samples can be: {remedy}")
    with index.open("rb") as file:
        header = file.readline(100)
    if header != b"v1.2 %d\n" % shard.samples:
        raise DataError(f"index {index} does not list the {shard.samples} samples of its shard: {remedy}")
