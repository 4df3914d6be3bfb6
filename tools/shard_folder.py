"""The folder that shards are written to: taken for one run, continued after a stop, finished with its manifest."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.documents import printable, read_json
from pipelines.shards import MEAN_IMAGE, DataError, Manifest, Shard, Split, write_atomically
from tools.pixel_statistics import summarise
from tools.shard_writer import WORK, ShardTask
from tools.sources import Source


def fingerprint(tasks: Sequence[ShardTask], seed: int) -> dict[str, Any]:
    """What must be equal for an unfinished run to be continued."""
    samples = hashlib.sha256()
    for task in tasks:
        lines = [
            f"{key}\t{s}\t{label}\t{file}\t{offset}\t{size}\n" for key, s, label, file, offset, size in task.samples
        ]
        samples.update(f"{task.name}\n{''.join(lines)}".encode(errors="surrogateescape"))
    return {
        "seed": seed,
        "image": vars(tasks[0].image),
        "max_pixels": tasks[0].max_pixels,
        "statistics_images": sum(len(task.measured) for task in tasks),
        "shards": len(tasks),
        "samples": samples.hexdigest(),
    }


@contextmanager
def claim(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Take ``out`` for this run alone: it is new, empty, or an unfinished run of the same plan."""
    work = out / WORK
    if (out / "manifest.json").exists():
        raise DataError(f"{out} holds finished shards already: choose another folder, or delete it first")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a folder: choose another name")
    if out.is_dir() and any(out.iterdir()) and not work.is_dir():
        raise DataError(f"{out} holds other things: choose an empty or a new folder")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {out}: wait for it, or choose another folder") from None
        path = work / "plan.json"
        if not path.exists():
            write_atomically(path, json.dumps(plan).encode())
        earlier = read_json(path)
        if earlier != plan:
            names = ", ".join(
                f"{key} was {earlier.get(key)}, is {plan[key]}" for key in plan if earlier.get(key) != plan[key]
            )
            raise DataError(
                f"{out} is unfinished with another plan ({names}): give the same options, or delete it first"
            )
        yield


def finish(out: Path, seed: int, source: Source, tasks: Sequence[ShardTask]) -> dict[str, int]:
    """Gather the shards' records, write the mean image and, last, the manifest. Gives each split's source bytes.

    Raises DataError where no image of a split can be used.
    """
    image = tasks[0].image
    records = {task: read_json(task.record_path) for task in tasks}
    repaired, quarantined = (
        tuple(entry for record in records.values() for entry in record[kind]) for kind in ("repaired", "quarantined")
    )
    splits = {}
    for split in source.splits:
        written = [Shard(**record["shard"]) for task, record in records.items() if task.split == split]
        shards = tuple(shard for shard in written if shard.samples)
        splits[split] = Split(sum(shard.samples for shard in shards), shards)
        if not shards:
            first = next(entry for entry in quarantined if entry["split"] == split)
            raise DataError(f"no image of {split} can be used; the first, {first['source']}: {first['reason']}")
    parts = [task.pixels_path for task in tasks if task.split == tasks[0].split]
    statistics, mean_image = summarise(parts, image.mean_image_size)
    if mean_image is not None:
        np.save(out / MEAN_IMAGE, mean_image)
    for task, record in records.items():
        if not record["shard"]["samples"]:
            task.tar_path.unlink(missing_ok=True)
            task.index_path.unlink(missing_ok=True)
    for left_over in out.glob("*.tmp"):
        left_over.unlink()
    Manifest(out, seed, image, source.classes, splits, statistics, repaired, quarantined, True).save()
    shutil.rmtree(out / WORK)
    return {
        split: sum(record["source_bytes"] for task, record in records.items() if task.split == split)
        for split in splits
    }


def report(manifest: Manifest, source_bytes: dict[str, int], seconds: float) -> None:
    """A table of what was written, and the first of what was left out."""
    print(f"{'':<8}{'images':>10}{'shards':>8}{'source MB':>12}{'written MB':>12}{'ratio':>8}")
    for name, split in manifest.splits.items():
        written = sum(shard.bytes for shard in split.shards)
        read = source_bytes[name]
        print(
            f"{name:<8}{split.samples:>10}{len(split.shards):>8}{read / 1e6:>12.1f}{written / 1e6:>12.1f}"
            f"{written / read:>8.2f}"
        )
    print(
        f"{seconds:.0f} s; repaired: {len(manifest.repaired)}, quarantined: {len(manifest.quarantined)} "
        "(listed in manifest.json)"
    )
    for entry in manifest.quarantined[:5]:
        print(printable(f"  {entry['source']}: {entry['reason']}"))
