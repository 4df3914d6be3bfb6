"""Re-read a shard folder and name each wrong shard: by size, sha256, index, count, labels or undecodable images."""

import hashlib
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from pipelines.errors import DataError
from pipelines.sharding.foreign_tar import index_tar
from pipelines.sharding.processes import WorkerPool
from pipelines.sharding.sources.tars import Member, members
from pipelines.shards.checks import check_shard, index_again
from pipelines.shards.index import check_index
from pipelines.shards.manifest import Manifest, Shard, load_manifest
from pipelines.shards.records import BLOCK, CHECKSUM, checksum
from pipelines.turbo.decode import read_member


def verify(folder: Path, workers: int, cache: Path | None = None, cache_gb: float | None = None) -> None:
    """Raise DataError unless every shard is as the manifest says. The error lists each wrong shard and why."""
    manifest = load_manifest(folder, check_shards=False, cache=cache, cache_gb=cache_gb)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    problems = find_problems(manifest, workers)
    if problems:
        lines = [f"{manifest.location}/{path}: {problem}" for path, problem in problems.items()]
        again = "write them again with the command that made them and --repair"
        remedy = again if manifest.plain else f"restore them, or {index_again(folder)}"
        remedy = remedy if manifest.local else "restore them, or shard into an empty place of the bucket again"
        raise DataError("\n  ".join([f"{len(problems)} of {shards} shards are wrong: {remedy}", *lines]))
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{manifest.location}: {samples} images in {shards} shards, all as the manifest says")


def find_problems(manifest: Manifest, workers: int) -> dict[str, str]:
    """Return the problem of each wrong shard, by the shard's path."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with WorkerPool(workers) as pool:
        found = [pool.submit(_problem, shard, manifest) for shard in shards]
        shown = tqdm(found, unit=" shards", desc="verify")
        return {shard.path: said for shard, future in zip(shards, shown, strict=True) if (said := future.result())}


def _problem(shard: Shard, manifest: Manifest) -> str | None:
    try:
        with manifest.holding(shard) as path:
            return _problem_at(path, shard, manifest)
    except DataError as error:
        return str(error)


def _problem_at(path: Path, shard: Shard, manifest: Manifest) -> str | None:
    try:
        check_shard(manifest.folder, shard, manifest.plain)
        if not manifest.plain:
            return _foreign_problem(path, shard, manifest)
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except DataError as error:
        return str(error)
    except OSError as error:  # one bad sector must not stop the check of the other shards
        return f"it cannot be read: {error.strerror}"
    try:
        wrong = _wrong_content(path, shard, manifest)
    except (OSError, DataError) as error:
        wrong = str(error)
    return wrong if same else f"its sha256 differs{f'; {wrong}' if wrong else ''}"


def _foreign_problem(path: Path, shard: Shard, manifest: Manifest) -> str | None:
    """Index a shard that another program wrote again, and return the first difference. Raises DataError, OSError."""
    found = index_tar(path, manifest.image, (manifest.labels,), required=True)
    if found.shard.sha256 != shard.sha256:
        return "its sha256 differs"
    lines, expected = path.with_suffix(".idx").read_bytes().splitlines(), found.index.splitlines()
    wrong = next((line for line, other in zip_longest(lines, expected) if line != other), None)
    if lines != expected:
        return f"its index does not describe it, first at {(wrong or b'its end')[:200].decode('ascii', 'replace')!r}"
    values = found.labels[manifest.labels].values if found.labels else set()
    unknown = sorted(str(value) for value in values if str(value) not in manifest.class_numbers)
    return f"label {unknown[0][:40]!r} is none of the {len(manifest.classes)} classes" if unknown else None


def _wrong_content(path: Path, shard: Shard, manifest: Manifest) -> str | None:
    """Return the first disagreement of the tar with its index or the manifest, or None. Raises DataError."""
    try:
        check_index(manifest, shard)
    except DataError as error:
        return f"its index does not describe it: {error}"
    lines = path.with_suffix(".idx").read_text().splitlines()[1:]
    entries = [line.split(" ") for line in lines]
    listed = [
        Member(name, int(offset), int(size)) for entry in entries for offset, size, name in (entry[1:4], entry[5:])
    ]
    with path.open("rb") as file:
        for found, member in zip_longest(members(file, str(path)), listed):
            if found != member:
                return f"its index does not describe it, first at {(found or member).name!r}"
        for image, label in zip(listed[::2], listed[1::2], strict=True):
            try:
                _check_sample(file, image, label, manifest)
            except (DataError, ValueError) as error:
                return f"{image.name}: {error}"
    return None


def _check_sample(file: BinaryIO, image_member: Member, label_member: Member, manifest: Manifest) -> None:
    """Raise DataError or ValueError unless the sample's checksum, label and image are right."""
    file.seek(image_member.offset - BLOCK)
    span = file.read(label_member.offset + label_member.size - file.tell())
    image, label = span[BLOCK : BLOCK + image_member.size], span[len(span) - label_member.size :]
    if manifest.checksums and span[CHECKSUM] != checksum(span[BLOCK:]):
        raise DataError("it has other bytes than were sharded, by its checksum")
    if len(label) != manifest.label_width or not label.isdigit() or int(label) >= len(manifest.classes):
        raise DataError(f"label {label[:20]!r} is not one of 0 to {len(manifest.classes) - 1}")
    shorter = min(read_member(image, manifest.image).shape[:2])
    if manifest.image.resize == "shorter" and shorter != manifest.image.size:
        raise DataError(f"its shorter side has {shorter} pixels instead of {manifest.image.size}")
