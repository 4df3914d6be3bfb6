"""Write a folder of images as webdataset tar shards, once, for every loader and every run after it.

    python tools/shard_imagenet.py SOURCE OUT       # SOURCE/train/<class>/*.JPEG, SOURCE/val/<class>/*.JPEG
    python tools/shard_imagenet.py --verify OUT     # read everything again and compare

Images become 256x256 JPEGs (shorter side resized, centre kept) in one seeded global permutation, or what --resize and
--encoding say. One that cannot be decoded is listed in OUT/manifest.json under "quarantined", and the run goes on; one
that had to be altered to be a plain JPEG that looks as it should, under "repaired". The same command run again after a
stop continues where it was; the same source, options and seed give the same bytes whatever the number of workers.
"""

import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from pipelines.images import MAX_PIXELS, PILLOW_MAX_PIXELS
from pipelines.shards import DataError, ImageFormat, Manifest, Shard, Split, write_atomically
from tools.image_members import expected_bytes
from tools.pixel_statistics import measured_samples, summarise
from tools.shard_writer import WORK, ShardTask, write_shard
from tools.sources import Source, find_images
from tools.terminal import require, run
from tools.verify_shards import verify


@dataclass(frozen=True)
class Options:
    source: tyro.conf.Positional[Path]
    """The folder with train/ and val/; with --verify, the shard folder."""
    out: tyro.conf.Positional[Path | None] = None
    """The shard folder to make."""
    verify: bool = False
    """Re-read a shard folder: sizes, sha256, counts, labels, indices, and that each image decodes."""
    size: int = 256
    """Width and height of the images written, in pixels."""
    resize: Literal["square", "shorter", "none"] = "square"
    """square: the shorter side to --size, the centre kept; shorter: the same without the cut; none: the files as they
    are, if they are healthy baseline JPEGs, checked without decoding them; loaders resize them to --size."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """raw: pixels that need no decoding, about eight times the size; only with --resize square."""
    max_pixels: int = MAX_PIXELS
    """Images whose header claims more are not decoded, but quarantined."""
    statistics_images: int = 4096
    """At most how many train images are decoded for the statistics under --resize none; else they are of all."""
    quality: int = 90
    """JPEG quality, 1 to 95."""
    shard_mb: float = 256
    """About how many megabytes a shard has."""
    workers: int = os.cpu_count() or 1
    """Processes. They do not change the bytes."""
    seed: int = 0
    """Of the order of the train images."""
    splits: tuple[str, ...] = ("train", "val")
    """Folders below SOURCE to shard."""

    def __post_init__(self) -> None:
        require((self.out is None) == self.verify, "give SOURCE and OUT, or --verify OUT")
        require(32 <= self.size <= 4096, f"--size is {self.size}, it goes from 32 to 4096")
        require(
            1 <= self.max_pixels <= PILLOW_MAX_PIXELS,
            f"--max-pixels is {self.max_pixels}, it goes from 1 to {PILLOW_MAX_PIXELS}, Pillow's own limit",
        )
        require(self.statistics_images >= 1, f"--statistics-images is {self.statistics_images}, it starts at 1")
        require(
            self.encoding == "jpeg" or self.resize == "square",
            f"--encoding raw goes with --resize square only, not {self.resize}: raw images need one shape for all",
        )
        require(1 <= self.quality <= 95, f"--quality is {self.quality}, it goes from 1 to 95")
        require(0.01 <= self.shard_mb <= 1e6, f"--shard-mb is {self.shard_mb}, it goes from 0.01 to 1000000")
        require(self.workers >= 1, f"--workers is {self.workers}, it starts at 1")
        require(
            bool(self.splits) and all(split.isascii() and split.isalpha() and split.islower() for split in self.splits),
            f"--splits is {' '.join(self.splits)!r}, it takes folder names of small letters",
        )


def main(options: Options) -> None:
    if options.verify:
        verify(options.source, options.workers)
        return
    assert options.out is not None
    source = find_images(options.source, options.splits, options.seed)
    quality = options.quality if options.encoding == "jpeg" else 0
    image = ImageFormat(options.encoding, options.resize, options.size, quality)
    tasks = plan(source, options, image)
    with claim(options.out, fingerprint(tasks, options.seed)):
        write_shards([task for task in tasks if not task.record_path.exists()], tasks, options.workers)
        manifest = finish(options, image, source, tasks)
    report(manifest)


def plan(source: Source, options: Options, image: ImageFormat) -> list[ShardTask]:
    """Which sample goes into which shard, at which place: a function of source, seed and options alone."""
    assert options.out is not None
    width = len(str(len(source.classes) - 1))
    tasks = []
    for split, samples in source.splits.items():
        sample_bytes = expected_bytes(image, samples, options.source) + 1792  # with three tar headers and their padding
        wanted = options.statistics_images if image.resize == "none" else None
        shards = min(len(samples), math.ceil(len(samples) * sample_bytes / (options.shard_mb * 1e6)))
        for i in range(shards):
            start, stop = len(samples) * i // shards, len(samples) * (i + 1) // shards
            part, name = samples[start:stop], f"{split}-{i:06d}"
            measured = range(0)
            if split == options.splits[0]:
                measured = measured_samples(start, stop, len(samples), wanted)
            tasks.append(ShardTask(name, options.source, options.out, part, image, width, measured, options.max_pixels))
    return tasks


def fingerprint(tasks: list[ShardTask], seed: int) -> dict:
    """What must be equal for an unfinished run to be continued."""
    samples = hashlib.sha256()
    for task in tasks:
        samples.update(repr((task.name, task.samples)).encode())
    return {
        "seed": seed,
        "image": vars(tasks[0].image),
        "max_pixels": tasks[0].max_pixels,
        "statistics_images": sum(len(task.measured) for task in tasks),
        "shards": len(tasks),
        "samples": samples.hexdigest(),
    }


@contextmanager
def claim(out: Path, plan: dict) -> Iterator[None]:
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
        earlier = json.loads(path.read_bytes())
        if earlier != plan:
            names = ", ".join(
                f"{key} was {earlier.get(key)}, is {plan[key]}" for key in plan if earlier.get(key) != plan[key]
            )
            raise DataError(
                f"{out} is unfinished with another plan ({names}): give the same options, or delete it first"
            )
        yield


def write_shards(todo: list[ShardTask], tasks: list[ShardTask], workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    total, left = (sum(len(task.samples) for task in some) for some in (tasks, todo))
    with (
        tqdm(total=total, initial=total - left, unit=" images", smoothing=0.02, desc="shard") as bar,
        ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(counter,)) as pool,
    ):
        try:
            futures = {pool.submit(_write_in_worker, task) for task in todo}
            while futures:
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                bar.update(total - left + counter.value - bar.n)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, of too little memory perhaps: run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_counter: Any = None  # in a worker process: images done by all workers


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback


def _write_in_worker(task: ShardTask) -> None:
    def progress(images: int) -> None:
        with _counter.get_lock():
            _counter.value += images

    write_shard(task, progress)


def finish(options: Options, image: ImageFormat, source: Source, tasks: list[ShardTask]) -> Manifest:
    """Gather the shards' records, write the mean image and, last, the manifest."""
    assert options.out is not None
    records = [json.loads(task.record_path.read_bytes()) for task in tasks]
    splits = {}
    for split in source.splits:
        written = [Shard(**r["shard"]) for task, r in zip(tasks, records, strict=True) if task.split == split]
        shards = tuple(shard for shard in written if shard.samples)
        splits[split] = Split(sum(shard.samples for shard in shards), shards)
    repaired, quarantined = (tuple(e for r in records for e in r[kind]) for kind in ("repaired", "quarantined"))
    for split, found in splits.items():
        if not found.samples:
            first = next(entry for entry in quarantined if entry["split"] == split)
            raise DataError(f"no image of {split} can be used; the first, {first['source']}: {first['reason']}")
    parts = [task.pixels_path for task in tasks if task.split == options.splits[0]]
    statistics, mean_image = summarise(parts, image.mean_image_size)
    if mean_image is not None:
        np.save(options.out / "mean.npy", mean_image)
    for task, record in zip(tasks, records, strict=True):
        if not record["shard"]["samples"]:
            task.tar_path.unlink(missing_ok=True)
            task.index_path.unlink(missing_ok=True)
    manifest = Manifest(
        options.out, options.seed, image, source.classes, splits, statistics, tuple(repaired), tuple(quarantined)
    )
    manifest.save()
    shutil.rmtree(options.out / WORK)
    return manifest


def report(manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name}: {split.samples} images in {len(split.shards)} shards, {megabytes:.1f} MB")
    print(f"repaired: {len(manifest.repaired)}, quarantined: {len(manifest.quarantined)} (listed in manifest.json)")
    for entry in manifest.quarantined[:5]:
        print(f"  {entry['source']}: {entry['reason']}")


if __name__ == "__main__":
    run(main, Options, __doc__)
