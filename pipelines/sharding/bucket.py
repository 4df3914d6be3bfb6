"""Sharding into a bucket: each shard is uploaded when it is written, the manifest last; a stopped run is resumed.

Locally there is only what is being written, in a folder that one run at a time uses.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.errors import DataError
from pipelines.remote.manifest import default_root
from pipelines.remote.store import Found, Store
from pipelines.sharding.folder import OURS, PLAN, difference, fingerprint, finish
from pipelines.sharding.sources import Source
from pipelines.sharding.uploads import restore_records
from pipelines.sharding.writer import WORK, ShardTask
from pipelines.shards.manifest import MEAN_IMAGE, Manifest, read_manifest
from pipelines.untrusted import MAX_FILE_BYTES, parse_json

UNFINISHED = f"{WORK}/{PLAN}"


def shard_into_bucket(
    url: str, seed: int, source: Source, tasks: Sequence[ShardTask], write: Callable[..., None]
) -> tuple[Manifest, dict[str, int] | None]:
    """Write the shards that the bucket lacks. Return the manifest, and each split's source bytes; None if it was
    finished already.

    ``write`` takes the source and the tasks to write. Raises DataError, OSError.
    """
    store, plan = Store(url), fingerprint(tasks, seed)
    there = store.list()
    if "manifest.json" in there:
        return _finished(store, there, plan), None
    _claim(store, there, plan)
    with _staged(url) as staging:
        here = [replace(task, out=staging, bucket=url) for task in tasks]
        restore_records(here, there)
        write(source, here)
        source_bytes = finish(staging, seed, source, here)
        manifest = read_manifest(staging, url)
        _publish(store, staging, manifest)
        return manifest, source_bytes


def _finished(store: Store, there: dict[str, Found], plan: dict[str, Any]) -> Manifest:
    """Return the manifest if the bucket holds the finished shards of this plan. Raises DataError if not."""
    earlier = _plan(store, PLAN) if PLAN in there else None
    if earlier != plan:
        how = f" of another plan ({difference(earlier, plan)})" if earlier else ""
        raise DataError(f"{store.url} holds finished shards{how} already: choose another place, or delete it first")
    with TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(store.read("manifest.json", MAX_FILE_BYTES))
        manifest = read_manifest(Path(folder), store.url)
    _check_there(store, manifest, there)
    _tidy(store, manifest, there)
    return manifest


def _check_there(store: Store, manifest: Manifest, there: dict[str, Found]) -> None:
    """Raise DataError unless each shard of the manifest is in the bucket, with its size."""
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        if shard.path not in there or there[shard.path].size != shard.bytes:
            raise DataError(
                f"{store.url}/{shard.path} is missing or has another size than manifest.json says: restore it, or "
                "delete manifest.json and run the same command again, which writes all shards again"
            )


def _claim(store: Store, there: dict[str, Found], plan: dict[str, Any]) -> None:
    """Write the plan to a new place, or check that an unfinished run there has the same. Raises DataError."""
    if not there:
        store.write(UNFINISHED, json.dumps(plan).encode())
        return
    earlier = _plan(store, UNFINISHED) if UNFINISHED in there else None
    if earlier is None:
        raise DataError(f"{store.url} holds other things: choose an empty place in the bucket")
    if earlier != plan:
        raise DataError(
            f"{store.url} is unfinished with another plan ({difference(earlier, plan)}): give the same options, or "
            "delete it first"
        )


def _plan(store: Store, name: str) -> dict[str, Any] | None:
    try:
        found = parse_json(store.read(name, MAX_FILE_BYTES))
    except ValueError:
        return None
    return found if isinstance(found, dict) and "image" in found else None


@contextmanager
def _staged(url: str) -> Iterator[Path]:
    """Yield an empty folder for what is being written. Raises DataError if another run uses it."""
    staging = default_root() / "sharding" / hashlib.sha256(url.encode()).hexdigest()[:16]
    staging.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(staging.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {url}: wait for it, or choose another place") from None
        with suppress(FileNotFoundError):
            shutil.rmtree(staging)  # what a killed run left
        (staging / WORK).mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(store: Store, staging: Path, manifest: Manifest) -> None:
    """Upload what describes the shards, the manifest last, and tidy up."""
    there = store.list()
    _check_there(store, manifest, there)
    for name in (MEAN_IMAGE, PLAN, "manifest.json"):
        if (staging / name).exists():
            store.write(name, (staging / name).read_bytes())
    _tidy(store, manifest, there)


def _tidy(store: Store, manifest: Manifest, there: dict[str, Found]) -> None:
    """Delete what only an unfinished run needs, and shards that turned out to be empty; the plan last."""
    shards = [shard.path for split in manifest.splits.values() for shard in split.shards]
    keep = {*shards, *(f"{path.removesuffix('tar')}idx" for path in shards), MEAN_IMAGE, PLAN, "manifest.json"}
    work = [name for name in there if name not in keep and (name.startswith(f"{WORK}/") or OURS.fullmatch(name))]
    store.delete(sorted(work, key=lambda name: name == UNFINISHED))
