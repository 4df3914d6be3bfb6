"""Write a folder of images as webdataset tar shards, once, for every loader and every run after it.

    python tools/shard_imagenet.py SOURCE OUT       # ImageNet as it ships: archives, folders, Kaggle or parquet
    python tools/shard_imagenet.py --verify OUT     # read everything again and compare
    python tools/shard_imagenet.py --index FOLDER   # tars that webdataset wrote: index and manifest beside them

Images become 256x256 JPEGs (shorter side resized, centre cropped) in one seeded global permutation, unless options
such as --resize say otherwise. An image that cannot be decoded is skipped and listed in OUT/manifest.json under
its key "quarantined"; one that had to be altered to be a plain upright JPEG, under "repaired". After a stop, the same
command continues where it was. The same source, options and seed give the same bytes with any number of workers.
"""

import math
import os
import re
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.errors import DataError
from pipelines.images.limits import MAX_PIXELS, PILLOW_MAX_PIXELS
from pipelines.sharding.folder import SPOOL, claim, discard, fingerprint, finish, leftovers, report
from pipelines.sharding.indexing import check_label, index_folder
from pipelines.sharding.members import expected_bytes
from pipelines.sharding.runners import ShardingProgress, write_on_cluster, write_on_this_machine
from pipelines.sharding.sources import Source, find_images
from pipelines.sharding.statistics import measured_samples
from pipelines.sharding.verify import find_problems, verify
from pipelines.sharding.writer import WORK, ShardTask, read_record
from pipelines.shards.manifest import ImageFormat, load_manifest
from pipelines.terminal import in_range, require, run_command
from pipelines.turbo.native import has_native

SPREAD_SHARDS, SPREAD_SAMPLES = 16, 128  # a small dataset is cut into so many shards, of at least so many samples


@dataclass(frozen=True)
class Options:
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The folder with ImageNet's archives, train/ and val/, ILSVRC/ or parquet files; with --verify, the shards."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None
    """The shard folder to make."""
    verify: bool = False
    """Re-read a shard folder: sizes, sha256, counts, labels, indices, and that each image decodes."""
    index: bool = False
    """SOURCE is a folder of tars that webdataset or another program wrote: write index and manifest beside them."""
    label: str | None = None
    """With --index, where labels are: cls, json:FIELD or none; by default cls, or label, class or cls in the JSON."""
    size: int = 256
    """Width and height of the images written, in pixels."""
    resize: Literal["square", "shorter", "none"] = "square"
    """square: the shorter side to --size, the centre cropped; shorter: the same without the crop;
    none: the files as they are, if valid baseline JPEGs (checked without decoding); loaders resize them to --size."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """raw: pixels that need no decoding, about eight times the size; only with --resize square."""
    restarts: bool = False
    """Write restart markers into the JPEGs: the same pixels in 1 % more bytes. They let turbo skip most of what
    lies outside a crop. --resize none then rewrites the files, without loss and without metadata."""
    max_pixels: int = MAX_PIXELS
    """Images whose header claims more pixels are quarantined, not decoded."""
    statistics_images: int = 4096
    """With --resize none, how many train images at most are decoded for the statistics; otherwise all are used."""
    quality: int = 90
    """JPEG quality, 1 to 95."""
    shard_mb: float = 256
    """Approximate size of a shard in MB; smaller for a small dataset, so that there is work for 16 processes."""
    workers: int = os.cpu_count() or 1
    """Processes that write shards; their number does not change the bytes."""
    cluster: str | None = None
    """Address of a Dask scheduler (tcp://host:8786) whose workers write the shards; they see the same files."""
    max_bad: float = 0.001
    """Fraction of the images that may be quarantined; with more, the run ends with an error."""
    repair: bool = False
    """Write the damaged shards of a finished OUT again; give the options that OUT was made with."""
    seed: int = 0
    """Seed of the order of the train images."""
    splits: tuple[str, ...] = ("train", "val")
    """The splits of SOURCE to shard."""
    layout: Literal["auto", "official", "folders", "kaggle", "parquet"] = "auto"
    """The layout of SOURCE; auto: detect it."""
    md5: bool = False
    """First compare ImageNet's official archives with their published md5."""
    classes: str | None = None
    """A subset: a file with a wnid per line, or N for the first N classes. Labels count within the subset."""
    per_class: int | None = None
    """Use only so many train images of each class, drawn with the seed."""

    def __post_init__(self) -> None:
        alone = self.verify + self.index
        require(alone < 2 and (self.out is None) == alone, "give SOURCE and OUT, --verify OUT, or --index FOLDER")
        require(self.index or self.label is None, "--label goes with --index only")
        require(check_label(self.label), f"--label is {self.label}, it is cls, json:FIELD or none")
        in_range("size", self.size, 32, 4096)
        require(
            1 <= self.max_pixels <= PILLOW_MAX_PIXELS,
            f"--max-pixels is {self.max_pixels}, it goes from 1 to {PILLOW_MAX_PIXELS}, Pillow's own limit",
        )
        in_range("statistics_images", self.statistics_images, 1)
        require(
            self.encoding == "jpeg" or self.resize == "square",
            f"--encoding raw goes with --resize square only, not {self.resize}: raw images need one shape for all",
        )
        require(self.encoding == "jpeg" or not self.restarts, "--restarts goes with --encoding jpeg only")
        in_range("max_bad", self.max_bad, 0, 1)
        in_range("quality", self.quality, 1, 95)
        in_range("shard_mb", self.shard_mb, 0.01, 1_000_000)
        in_range("workers", self.workers, 1)
        require(
            bool(self.splits) and all(split.isascii() and split.isalpha() and split.islower() for split in self.splits),
            f"--splits is {' '.join(self.splits)!r}, it takes folder names of small letters",
        )
        require(self.per_class is None or self.per_class >= 1, f"--per-class is {self.per_class}, it starts at 1")
        number = self.classes is not None and re.fullmatch(r"-?[0-9]+", self.classes)
        require(not number or int(number[0]) >= 1, f"--classes is {self.classes}, it starts at 1")


def main(options: Options) -> None:
    if options.verify:
        verify(options.source, options.workers)
        return
    if options.index:
        index_folder(
            options.source,
            label=options.label,
            size=options.size,
            statistics_images=options.statistics_images,
            max_bad=options.max_bad,
            workers=options.workers,
        )
        return
    assert options.out is not None
    start = time.monotonic()
    source = find_images(
        options.source,
        options.splits,
        options.seed,
        layout=options.layout,
        md5=options.md5,
        classes=options.classes,
        per_class=options.per_class,
    )
    quality = options.quality if options.encoding == "jpeg" else 0
    image = ImageFormat(options.encoding, options.resize, options.size, quality, restarts=options.restarts)
    if options.restarts and not has_native():
        raise DataError("--restarts needs turbo's compiled part, which pip builds with a C compiler and libjpeg")
    tasks = plan(source, options, image)
    if options.repair:
        repair(options, source, tasks)
        return
    with claim(options.out, fingerprint(tasks, options.seed)):
        write_shards(options, source, tasks)
        source_bytes = finish(options.out, options.seed, source, tasks)
    report(load_manifest(options.out), source_bytes, time.monotonic() - start)


def plan(source: Source, options: Options, image: ImageFormat) -> list[ShardTask]:
    """Assign each sample a shard and a place in it, as a function of source, seed and options alone."""
    assert options.out is not None
    width = len(str(len(source.classes) - 1))
    tasks = []
    for split, samples in source.splits.items():
        sample_bytes = expected_bytes(image, samples, source.sizes) + 1792  # with three tar headers and their padding
        wanted = options.statistics_images if image.resize == "none" else None
        shards = math.ceil(len(samples) * sample_bytes / (options.shard_mb * 1e6))
        shards = min(len(samples), max(shards, min(SPREAD_SHARDS, len(samples) // SPREAD_SAMPLES)))
        for i in range(shards):
            start, stop = len(samples) * i // shards, len(samples) * (i + 1) // shards
            part, name = samples[start:stop], f"{split}-{i:06d}"
            measured = range(0)
            if split == options.splits[0]:
                measured = measured_samples(start, stop, len(samples), wanted)
            tasks.append(
                ShardTask(
                    name,
                    options.source,
                    options.out,
                    part,
                    image=image,
                    label_width=width,
                    measured=measured,
                    max_pixels=options.max_pixels,
                )
            )
    return tasks


def spooled(tasks: list[ShardTask], source: Source) -> list[ShardTask]:
    """Return the tasks with samples that can be read by offset. Call it under the lock: it may copy the source."""
    if source.spool is None or not tasks:
        return tasks
    work = tasks[0].out / WORK / SPOOL
    placed = iter(source.spool.copy([sample for task in tasks for sample in task.samples], work))
    return [replace(task, source=work, samples=tuple(islice(placed, len(task.samples)))) for task in tasks]


def write_shards(options: Options, source: Source, tasks: list[ShardTask]) -> None:
    """Write the shards that are missing or not as recorded. Raises DataError, OSError."""
    earlier = {task.name: record for task in tasks if (record := read_record(task))}
    todo = spooled([task for task in tasks if task.name not in earlier], source)
    total, left = (sum(len(task.samples) for task in some) for some in (tasks, todo))
    progress = ShardingProgress(total, total - left, options.max_bad)
    try:
        for entry in (entry for record in earlier.values() for entry in record.quarantined):
            progress.quarantine(entry)
        if options.cluster:
            write_on_cluster(todo, options.cluster, progress)
        else:
            write_on_this_machine(todo, options.workers, progress)
    finally:
        progress.close()


def repair(options: Options, source: Source, tasks: list[ShardTask]) -> None:
    """Write damaged shards again in a scratch folder, and move them into place if they match the manifest.

    Raises DataError, with every shard left as it was, if another source or other options made the folder.
    """
    assert options.out is not None
    manifest = load_manifest(options.out, check_shards=False)
    expected = {shard.path: shard for split in manifest.splits.values() for shard in split.shards}
    wrong = find_problems(manifest, options.workers)
    scratch = options.out / ".repair"
    todo = [replace(task, out=scratch) for task in tasks if task.tar_path.name in wrong]
    if len(todo) != len(wrong):
        raise DataError(f"{options.out} was made with other options: it has shards that these do not make")
    link = next((path for path in (options.out / p for task in todo for p in task.files) if path.is_symlink()), None)
    if link:
        raise DataError(f"{link} is a symbolic link: put a copy of the file in its place first")
    with claim(scratch, fingerprint(tasks, options.seed), (tasks, source)):
        write_shards(options, source, todo)
        for task in todo:
            record = read_record(task)
            if not record or record.shard != expected[task.tar_path.name]:
                raise DataError(
                    f"{task.tar_path.name}, written again, is not what {options.out} had: the source or the options "
                    "differ from those it was made with; nothing was changed"
                )
        for task in todo:
            for name in task.files:
                (scratch / name).replace(options.out / name)
        discard(scratch, leftovers(scratch, tasks, source))
        if not any(scratch.iterdir()):
            scratch.rmdir()
    print(f"{options.out}: {len(todo)} shards written again")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
