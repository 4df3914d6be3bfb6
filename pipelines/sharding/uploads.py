"""A shard's way into a bucket, and how a later run knows that it is there.

``.work/NAME.json`` in the bucket is written after the objects it describes: it holds the shard's record and, for each
object, its size and the mark (ETag) that the store gave to its content. The bytes of an object with that mark are
those that were written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.remote.store import Found, Store
from pipelines.untrusted import MAX_FILE_BYTES, parse_json

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.sharding.writer import ShardTask

WORK = ".work"


def upload_shard(task: ShardTask, record: bytes) -> None:
    """Write shard, index, sums and, last, the record to the bucket; delete shard and index here. Raises DataError."""
    store, marks = Store(task.bucket), {}
    for path in (task.tar_path, task.index_path, task.pixels_path):
        name = _name(task, path)
        size = store.write(name, path).size
        found = store.find(name)
        if found is None or found.size != size:
            raise DataError(f"{task.bucket}/{name} is not as it was written: another run is writing there, or a person")
        marks[name] = found
    content = {"record": json.loads(record), "objects": marks}
    store.write(f"{WORK}/{task.record_path.name}", json.dumps(content).encode())
    for path in (task.tar_path, task.index_path):
        path.unlink()


def restore_records(tasks: list[ShardTask], there: dict[str, Found]) -> None:
    """Write the records and sums of shards that are whole in the bucket, which holds ``there``, into their folder."""
    for task in tasks:
        name = f"{WORK}/{task.record_path.name}"
        if name not in there:
            continue
        store = Store(task.bucket)
        try:
            content = parse_json(store.read(name, MAX_FILE_BYTES))
            whole = all(_is(there.get(object_name), said) for object_name, said in content["objects"].items())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: the shard is written again
        if whole:
            task.pixels_path.write_bytes(store.read(_name(task, task.pixels_path), MAX_FILE_BYTES))
            write_atomically(task.record_path, json.dumps(content["record"]).encode())


def _is(found: Found | None, said: Any) -> bool:
    return found is not None and [*found] == said


def _name(task: ShardTask, path: Path) -> str:
    return path.relative_to(task.out).as_posix()
