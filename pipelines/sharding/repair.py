"""Damaged shards of a finished folder, written again from the source that they were made of."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.folder import claim, discard, fingerprint, leftovers
from pipelines.sharding.sources import Source
from pipelines.sharding.verify import find_problems
from pipelines.sharding.writer import ShardTask, read_record
from pipelines.shards.manifest import load_manifest


def repair(
    out: Path, seed: int, source: Source, tasks: Sequence[ShardTask], *, workers: int, write: Callable[..., None]
) -> None:
    """Write damaged shards again in a scratch folder, and move them into place if they match the manifest.

    ``write`` takes the source and the tasks to write.

    Raises DataError, with every shard left as it was, if another source or other options made the folder.
    """
    manifest = load_manifest(out, check_shards=False)
    expected = {shard.path: shard for split in manifest.splits.values() for shard in split.shards}
    wrong = find_problems(manifest, workers)
    scratch = out / ".repair"
    todo = [replace(task, out=scratch) for task in tasks if task.tar_path.name in wrong]
    if len(todo) != len(wrong):
        raise DataError(f"{out} was made with other options: it has shards that these do not make")
    link = next((path for path in (out / p for task in todo for p in task.files) if path.is_symlink()), None)
    if link:
        raise DataError(f"{link} is a symbolic link: put a copy of the file in its place first")
    with claim(scratch, fingerprint(tasks, seed), (tasks, source)):
        write(source, todo)
        for task in todo:
            record = read_record(task)
            if not record or record.shard != expected[task.tar_path.name]:
                raise DataError(
                    f"{task.tar_path.name}, written again, is not what {out} had: the source or the options "
                    "differ from those it was made with; nothing was changed"
                )
        for task in todo:
            for name in task.files:
                (scratch / name).replace(out / name)
        discard(scratch, leftovers(scratch, tasks, source))
        if not any(scratch.iterdir()):
            scratch.rmdir()
    print(f"{out}: {len(todo)} shards written again")
