"""Index and manifest for tars that another program wrote. The tars stay as they are."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.sharding.foreign_tar import ForeignTar, index_tar
from pipelines.sharding.processes import WorkerPool
from pipelines.sharding.runners import ShardingProgress
from pipelines.sharding.sources.splits import split_in
from pipelines.sharding.statistics import PixelSums, measured_samples, statistics_of
from pipelines.shards.checks import LABELS, SHARD_NAME, check_distinct
from pipelines.shards.manifest import MAX_CLASSES, ImageClass, ImageFormat, Manifest, Split, Statistics, load_manifest
from pipelines.shards.records import Records
from pipelines.turbo.decode import read_member
from pipelines.untrusted import COMMANDS, printable, read_limited

LABEL_PLACES = ("cls", "json:label", "json:class", "json:cls")  # looked at in this order
CLASSES = "classes.txt"
MAX_CLASSES_BYTES = 1 << 24
MAX_EXTRAS = 1000
NO_STATISTICS = Statistics((0, 0, 0), (0, 0, 0), (0, 0, 0), ((0, 0, 0),) * 3, None)


def index_folder(
    folder: Path, *, label: str | None, size: int, statistics_images: int, max_bad: float, workers: int
) -> None:
    """Write an index for each tar in the folder and, last, the manifest; print what was found.

    ``label``: ``cls``, ``json:FIELD`` or ``none``; None: the first of ``LABEL_PLACES`` that all samples have, or none.
    Raises DataError, OSError.
    """
    paths = _tars(folder)
    _check_not_ours(folder)
    image = ImageFormat("any", "none", size, 0)
    places = LABEL_PLACES if label is None else (label,)
    with WorkerPool(workers) as pool:
        jobs = [pool.submit(index_tar, path, image, places, label is not None) for path in paths]
        tars = [job.result() for job in tqdm(jobs, unit=" shards", desc="index")]
        _check_bad(tars, max_bad)
        place = label or _chosen(tars)
        manifest = _manifest(folder, image, tars, place)
        for tar in tars:
            write_atomically((folder / tar.shard.path).with_suffix(".idx"), tar.index)
        manifest = replace(manifest, statistics=_statistics(manifest, statistics_images, pool))
    manifest.save()
    _report(manifest, tars)


def check_label(label: str | None) -> bool:
    """Return true for what ``--label`` takes."""
    return label is None or (LABELS.fullmatch(label) is not None and not COMMANDS.search(label))


def _tars(folder: Path) -> list[Path]:
    """Return the tars in a folder, in the order of their names. Raises DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that holds the tars")
    names = sorted(entry.name for entry in os.scandir(folder))
    tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
    packed = [name for name in names if re.search(r"\.(tgz|tar\.\w+)$", name)]
    if packed:
        raise DataError(f"{folder / packed[0]} is compressed, which allows no random access: unpack it to a .tar first")
    odd = next((name for name in tars if not SHARD_NAME.fullmatch(name) or COMMANDS.search(name)), None)
    if odd:
        raise DataError(f"{folder} holds {odd!r}: give it a name of at most 200 letters, without control characters")
    if not tars:
        inner = sorted({path.parent.name for path in folder.glob("*/*.tar")})[:5]
        where = f"; those in {', '.join(inner)} must be moved or linked into one folder" if inner else ""
        raise DataError(f"{folder} holds no .tar{where}")
    return [folder / name for name in tars]


def _check_not_ours(folder: Path) -> None:
    """Raise DataError if sharding made or makes the folder, or if its manifest.json is something else."""
    path = folder / "manifest.json"
    if not os.path.lexists(path):
        if (folder / ".work").is_dir():
            raise DataError(f"{folder} is unfinished: run the tools/shard_imagenet.py command that began it again")
        return
    try:
        plain = load_manifest(folder, check_shards=False).plain
    except DataError as error:
        raise DataError(f"{error}. To index the folder, move this file away first") from error
    if plain:
        raise DataError(f"{folder} was made by tools/shard_imagenet.py, with an index: check it with --verify")


def _check_bad(tars: Sequence[ForeignTar], max_bad: float) -> None:
    bad = [entry for tar in tars for entry in tar.quarantined]
    total = len(bad) + sum(tar.shard.samples for tar in tars)
    progress = ShardingProgress(total, total, max_bad)
    try:
        for entry in bad:
            progress.quarantine(entry)
    finally:
        progress.close()


def _chosen(tars: Sequence[ForeignTar]) -> str:
    """Return the first place in which every sample has a label, or ``none``; print why."""
    for place in LABEL_PLACES:
        lacking = next((tar for tar in tars if tar.labels[place].missing), None)
        if lacking is None:
            print(f"labels: {place}, which every sample has")
            return place
        if place == "cls":
            why = printable(f"{lacking.shard.path} has a sample that {lacking.labels[place].missing}")
    others = ", ".join(place.partition(":")[2] for place in LABEL_PLACES[1:])
    print(f"labels: none ({why}; no field {others} is in every sample's JSON). --label json:FIELD takes another field")
    return "none"


def _manifest(folder: Path, image: ImageFormat, tars: Sequence[ForeignTar], place: str) -> Manifest:
    shards: dict[str, list] = {}
    for tar in tars:
        if tar.shard.samples:
            shards.setdefault(split_of(tar.shard.path), []).append(tar.shard)
    if not shards:
        raise DataError(f"no sample of {folder} can be used")
    splits: dict[str, Split] = {
        name: Split(sum(shard.samples for shard in shards[name]), tuple(shards[name]))
        for name in ("train", "val", "test")
        if name in shards
    }
    try:
        check_distinct(splits)
    except ValueError as error:
        raise DataError(f"{folder}: {error}: remove one of them") from None
    extras = sorted(set().union(*(tar.extras for tar in tars)) - ({"cls"} if place == "cls" else set()))
    if len(extras) > MAX_EXTRAS:
        raise DataError(
            f"{folder} has members of {len(extras)} extensions, from .{extras[0]} on: what follows the "
            "first dot of a name is the extension"
        )
    bad = tuple({"split": split_of(tar.shard.path)} | entry for tar in tars for entry in tar.quarantined)
    values = set() if place == "none" else set().union(*(tar.labels[place].values for tar in tars))
    return Manifest(
        folder,
        0,
        image,
        _classes(folder, place, values),
        splits,
        NO_STATISTICS,
        quarantined=bad,
        labels=place,
        extras=tuple(extras),
    )


def split_of(name: str) -> str:
    """Return the split that a tar's name says as a word of its own, else train."""
    return split_in(name) or "train"


def _classes(folder: Path, place: str, values: set[int | str]) -> tuple[ImageClass, ...]:
    """Return the classes of these labels: names from ``CLASSES``, or the labels themselves. Raises DataError."""
    if place == "none":
        return ()
    names = _class_names(folder / CLASSES)
    texts = {value for value in values if isinstance(value, str)}
    numbers = {value for value in values if isinstance(value, int)}
    if texts and numbers:
        raise DataError(
            f"{folder}: {place} is a number in some samples and a text in others, as {min(numbers)} and {min(texts)!r}"
        )
    if texts:
        unknown = min(texts.difference(names), default=None) if names else None
        if unknown is not None:
            raise DataError(f"{folder / CLASSES} lacks the label {unknown!r}: add it, or remove the file")
        return _limited(folder, [ImageClass(text, text) for text in names or sorted(texts)])
    count = max(numbers) + 1
    if count > MAX_CLASSES or (names and count > len(names)):
        limit = f"{folder / CLASSES} has {len(names)} lines" if names else f"at most {MAX_CLASSES} classes are allowed"
        raise DataError(f"{folder}: {place} goes up to {count - 1}, and {limit}")
    return _limited(folder, [ImageClass(str(i), name) for i, name in enumerate(names or map(str, range(count)))])


def _limited(folder: Path, classes: list[ImageClass]) -> tuple[ImageClass, ...]:
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{folder} has {len(classes)} different labels; {MAX_CLASSES} classes are allowed. With --label none "
            "captions are extras only"
        )
    return tuple(classes)


def _class_names(path: Path) -> list[str]:
    """Return the lines of a file, none if there is no such file. Raises DataError."""
    if not path.is_file():
        return []
    try:
        names = read_limited(path, MAX_CLASSES_BYTES).decode().splitlines()
    except ValueError as error:
        raise DataError(f"{path} cannot be used: {error}") from None
    empty = next((i for i, name in enumerate(names, 1) if not name.strip() or COMMANDS.search(name)), None)
    if empty:
        raise DataError(f"{path} has no name in line {empty}, or one with control characters")
    return names


def _statistics(manifest: Manifest, wanted: int, pool: WorkerPool) -> Statistics:
    """Return the statistics of at most ``wanted`` images of train, or of the only split."""
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    counts = [shard.samples for shard in manifest.splits[split].shards]
    parts = []
    for stop, count in zip(accumulate(counts), counts, strict=True):
        start = stop - count
        chosen = measured_samples(start, stop, sum(counts), wanted)
        parts.append(pool.submit(_measure, manifest, split, [start + place for place in chosen]))
    sums = PixelSums(None)
    for part in tqdm(parts, unit=" shards", desc="mean"):
        sums.add_sums(vars(part.result()))
    return statistics_of(sums)


def _measure(manifest: Manifest, split: str, samples: Sequence[int]) -> PixelSums:
    records, sums = Records(manifest, split), PixelSums(None)
    try:
        for sample in samples:
            sums.add(read_member(bytes(records.read(sample).data), manifest.image))
    except DataError as error:  # the exact class cannot cross to another process
        raise DataError(str(error)) from None
    return sums


def _report(manifest: Manifest, tars: Sequence[ForeignTar]) -> None:
    """Print the splits, and what is special about the samples."""
    for name, split in manifest.splits.items():
        first, last = split.shards[0].path, split.shards[-1].path
        print(f"{name}: {split.samples} images in {len(split.shards)} shards, {first} to {last}")
    if "val" not in manifest.splits:
        print("no val split, which train.py evaluates on: tars with the word val in their names make one")
    print(f"{len(manifest.classes)} classes; extras: {', '.join(manifest.extras) or 'none'}")
    unusual: Counter[str] = sum((tar.unusual for tar in tars), Counter())
    if unusual:
        kinds = ", ".join(f"{count} {kind}" for kind, count in unusual.most_common(8))
        print(printable(f"{unusual.total()} images are no plain JPEGs and take longer to decode: {kinds}"))
    left_out = [f"{tar.shard.path}: {name}" for tar in tars for name in tar.left_out]
    if left_out:
        print(printable(f"{len(left_out)} members are in no sample and were left out: {', '.join(left_out[:5])}"))
    print(f"quarantined: {len(manifest.quarantined)} (listed in manifest.json)")
    for entry in manifest.quarantined[:5]:
        print(printable(f"  {entry['source']}: {entry['reason']}"))
