"""The folder that shards are written to: claimed by one run, resumed after a stop, finished with its manifest."""

import fcntl
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.sharding.sources import Source
from pipelines.sharding.statistics import summarise
from pipelines.sharding.writer import WORK, ShardRecord, ShardTask, read_record
from pipelines.shards.manifest import MEAN_IMAGE, Manifest, Split, load_manifest
from pipelines.untrusted import printable, read_json

PLAN, SPOOL = "plan.json", "spool"  # in WORK; a finished folder keeps the plan beside its manifest
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # appended by pipelines.files.temporary
OURS = re.compile(r"[a-z]+-[0-9]{6}\.(tar|idx)|mean\.npy|plan\.json")


def fingerprint(tasks: Sequence[ShardTask], seed: int) -> dict[str, Any]:
    """Return the settings that must be equal for an unfinished run to be resumed."""
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
        "checksums": True,
        "shards": len(tasks),
        "samples": samples.hexdigest(),
    }


def begun_image(out: Path) -> dict[str, Any] | None:
    """Return the image format of the shards in ``out``, finished or not; None if there are none, or no plan of them."""
    for path in (out / PLAN, out / WORK / PLAN, out / "manifest.json"):
        try:
            image = read_json(path)["image"]
        except (DataError, OSError, ValueError, TypeError, KeyError):
            continue
        if isinstance(image, dict):
            return image
    return None


def is_finished(out: Path, plan: dict[str, Any]) -> bool:
    """Return true if ``out`` holds the finished shards of this plan, each in its full length; false if none are there.

    Raises DataError for shards of another plan or of an earlier version, which kept none, and if one is damaged.
    """
    if not os.path.lexists(out / "manifest.json"):
        return False
    earlier = _read_plan(out / PLAN, plan)
    if earlier is None:
        raise DataError(
            f"{out} holds finished shards already, and no {PLAN} that says of what, as made by an earlier version: "
            "choose another folder, or delete it first"
        )
    if earlier != plan:
        raise DataError(
            f"{out} holds finished shards of another plan ({difference(earlier, plan)}): choose another folder, or "
            "delete it first"
        )
    load_manifest(out)
    return True


def difference(earlier: dict[str, Any], plan: dict[str, Any]) -> str:
    """Describe in what two plans differ."""
    before, now = _flat(earlier), _flat(plan)
    names = {"samples": "the list of images, their labels or their division into shards differ"}
    changed = [key for key in now if before.get(key) != now[key]]
    return ", ".join(names.get(key, f"{key} was {before.get(key)}, is {now[key]}") for key in changed)


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan with the fields of the image format beside the others."""
    image = plan["image"] if isinstance(plan["image"], dict) else {}
    return {key: value for key, value in plan.items() if key != "image"} | image


@contextmanager
def claim(out: Path, plan: dict[str, Any], renew: tuple[Sequence[ShardTask], Source] | None = None) -> Iterator[None]:
    """Claim ``out`` for this run alone: a new or empty folder, or an unfinished run of the same plan.

    An unfinished run of another plan is refused. With ``renew``, the files that its tasks wrote are deleted first.
    Raises DataError for any other folder and writes nothing to it.
    """
    work = out / WORK
    if os.path.lexists(out / "manifest.json"):
        raise DataError(f"{out} holds finished shards already: choose another folder, or delete it first")
    if os.path.lexists(out) and not out.is_dir():
        raise DataError(f"{out} is not a folder: choose another name")
    if out.is_dir() and any(out.iterdir()):
        _check_ours(out, plan)
    work.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {out}: wait for it, or choose another folder") from None
        if renew and _read_plan(out / WORK / PLAN, plan) not in (None, plan):
            _delete([path for path in leftovers(out, *renew) if path != work / "lock"])
        _check_plan(out, plan)
        yield


def _check_ours(out: Path, plan: dict[str, Any]) -> None:
    """Raise DataError unless ``out`` holds a run of ours, without symbolic links in place of its files."""
    work = out / WORK
    if work.is_symlink() or not work.is_dir():
        raise DataError(f"{out} holds other things: choose an empty or a new folder")
    if not _is_only_begun(out) and _read_plan(out / WORK / PLAN, plan) is None:
        raise DataError(
            f"{out} holds other things, or {work / PLAN} is missing or damaged: choose an empty or a new folder; if it "
            "is an unfinished run and nothing else, delete it first"
        )
    ours = [path for path in out.iterdir() if OURS.fullmatch(path.name)]
    link = next((path for path in (*ours, *work.iterdir(), *(work / SPOOL).glob("*")) if path.is_symlink()), None)
    if link:
        raise DataError(
            f"{link} is a symbolic link, which this program did not write: remove it, or choose a new folder"
        )


def _is_only_begun(out: Path) -> bool:
    """Return true if ``out`` holds no more than a run that was stopped before its plan was written."""
    begun = re.compile(rf"lock|{re.escape(PLAN)}({TEMPORARY.pattern})?")
    names = {path.name for path in (out / WORK).iterdir()}
    only_work = [path.name for path in out.iterdir()] == [WORK] and ("lock" in names or not names)
    return only_work and all(begun.fullmatch(name) for name in names)


def _read_plan(path: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the plan in this file, or None if it is missing, damaged or of another program."""
    try:
        earlier = None if path.is_symlink() else read_json(path)
    except (DataError, OSError):
        return None
    return earlier if isinstance(earlier, dict) and earlier.keys() == plan.keys() else None


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan if there is none, or only the beginning of this one. Raises DataError if there is another."""
    path, content = out / WORK / PLAN, json.dumps(plan).encode()
    if _is_only_begun(out) and (not path.exists() or content.startswith(path.read_bytes())):
        write_atomically(path, content)
    earlier = _read_plan(path, plan)
    if earlier is None:
        raise DataError(f"{path} is damaged, or of another program: choose a new folder, or delete {out} first")
    if earlier != plan:
        raise DataError(
            f"{out} is unfinished with another plan ({difference(earlier, plan)}): give the same options, or delete "
            "it first"
        )


def leftovers(out: Path, tasks: Sequence[ShardTask], source: Source) -> list[Path]:
    """List the files in ``out`` that these tasks wrote, including temporary ones."""
    shards = {name for task in tasks for name in task.files}
    work = {"lock", PLAN} | {path.name for task in tasks for path in (task.record_path, task.pixels_path)}
    spooled = {Path(sample.file).name for task in tasks for sample in task.samples} if source.spool else ()
    spool = {f"{name}.{suffix}" for name in spooled for suffix in ("bin", "npy", "tmp")}
    found = []
    for folder, names in (
        (out, shards | {MEAN_IMAGE, PLAN, "manifest.json"}),
        (out / WORK, work),
        (out / WORK / SPOOL, spool),
    ):
        for path in folder.iterdir() if folder.is_dir() else ():
            is_file = stat.S_ISREG(path.lstat().st_mode)
            if is_file and TEMPORARY.sub("", path.name) in names:
                found.append(path)
    return found


def discard(out: Path, files: Sequence[Path]) -> None:
    """Delete these files, and the work folders if they are then empty. Print the names of other files in them."""
    _delete(files)
    for folder in (out / WORK / SPOOL, out / WORK):
        if folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                others = sorted(path.name for path in folder.iterdir())
                print(printable(f"{folder} holds files of other origin and is kept: {', '.join(others)[:200]}"))


def _delete(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink()


def finish(out: Path, seed: int, source: Source, tasks: Sequence[ShardTask]) -> dict[str, int]:
    """Gather the shards' records, write the mean image and, last, the manifest. Return each split's source bytes.

    Raises DataError if a shard is missing or differs from its record, or if no image of a split can be used.
    """
    image = tasks[0].image
    records = [(task, _record(task)) for task in tasks]
    repaired = tuple(entry for _, record in records for entry in record.repaired)
    quarantined = tuple(entry for _, record in records for entry in record.quarantined)
    splits = {}
    for split in source.splits:
        shards = tuple(record.shard for task, record in records if task.split == split and record.shard.samples)
        splits[split] = Split(sum(shard.samples for shard in shards), shards)
        if not shards:
            first = next(entry for entry in quarantined if entry["split"] == split)
            raise DataError(f"no image of {split} can be used; the first, {first['source']}: {first['reason']}")
    parts = [task.pixels_path for task in tasks if task.split == tasks[0].split]
    statistics, mean_image = summarise(parts, image.mean_image_size)
    if mean_image is not None:
        buffer = io.BytesIO()
        np.save(buffer, mean_image)
        write_atomically(out / MEAN_IMAGE, buffer.getvalue())
    write_atomically(out / PLAN, json.dumps(fingerprint(tasks, seed)).encode())
    keep = {MEAN_IMAGE, PLAN, *(name for task, record in records if record.shard.samples for name in task.files)}
    unwanted = [path for path in leftovers(out, tasks, source) if path.parent != out or path.name not in keep]
    _delete([path for path in unwanted if path.parent == out])
    Manifest(
        out,
        seed,
        image,
        source.classes,
        splits=splits,
        statistics=statistics,
        repaired=repaired,
        quarantined=quarantined,
        checksums=True,
    ).save()
    discard(out, [path for path in unwanted if path.parent != out])
    return {split: sum(record.source_bytes for task, record in records if task.split == split) for split in splits}


def _record(task: ShardTask) -> ShardRecord:
    """Return the record of a shard. Raises DataError if the shard is missing or differs."""
    record = read_record(task)
    if record is None:
        raise DataError(f"{task.tar_path} is not as it was written: run the same command again, which writes it anew")
    return record
