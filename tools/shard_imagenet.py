"""Write a folder of images as webdataset tar shards, once, for every loader and every run after it.

    python tools/shard_imagenet.py SOURCE OUT       # ImageNet as it ships: archives, folders, Kaggle or parquet
    python tools/shard_imagenet.py --verify OUT     # read everything again and compare

Images become 256x256 JPEGs (shorter side resized, centre kept) in one seeded global permutation. One that cannot be
decoded is listed in OUT/manifest.json under "quarantined", and the run goes on. The same command run again after a
stop continues where it was; the same source, options and seed give the same bytes whatever the number of workers.
"""

import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from pipelines.shards import DataError, ImageFormat, Manifest, Shard, Split, Statistics, write_atomically
from tools.shard_writer import WORK, PixelSums, ShardTask, write_shard
from tools.sources import Source, find_images
from tools.terminal import require, run
from tools.verify_shards import verify


@dataclass(frozen=True)
class Options:
    source: tyro.conf.Positional[Path]
    """The folder with ImageNet's archives, train/ and val/, ILSVRC/ or parquet files; with --verify, the shards."""
    out: tyro.conf.Positional[Path | None] = None
    """The shard folder to make."""
    verify: bool = False
    """Re-read a shard folder: sizes, sha256, counts, labels, indices, and that each image decodes."""
    size: int = 256
    """Width and height of the images written, in pixels."""
    quality: int = 90
    """JPEG quality, 1 to 95."""
    shard_mb: float = 256
    """About how many megabytes a shard has."""
    workers: int = os.cpu_count() or 1
    """Processes. They do not change the bytes."""
    seed: int = 0
    """Of the order of the train images."""
    splits: tuple[str, ...] = ("train", "val")
    """The splits of SOURCE to shard."""
    layout: Literal["auto", "official", "folders", "kaggle", "parquet"] = "auto"
    """How SOURCE holds the images, where looking at it does not tell."""
    md5: bool = False
    """First compare ImageNet's official archives with their published md5."""
    classes: str | None = None
    """A subset: a file with a wnid a line, or N for the first N classes. Labels are ranks within it."""
    per_class: int | None = None
    """Only so many train images of each class, drawn by the seed."""

    def __post_init__(self) -> None:
        require((self.out is None) == self.verify, "give SOURCE and OUT, or --verify OUT")
        require(32 <= self.size <= 4096, f"--size is {self.size}, it goes from 32 to 4096")
        require(1 <= self.quality <= 95, f"--quality is {self.quality}, it goes from 1 to 95")
        require(0.01 <= self.shard_mb <= 1e6, f"--shard-mb is {self.shard_mb}, it goes from 0.01 to 1000000")
        require(self.workers >= 1, f"--workers is {self.workers}, it starts at 1")
        require(
            bool(self.splits) and all(split.isascii() and split.isalpha() and split.islower() for split in self.splits),
            f"--splits is {' '.join(self.splits)!r}, it takes folder names of small letters",
        )
        require(self.per_class is None or self.per_class >= 1, f"--per-class is {self.per_class}, it starts at 1")
        require(
            self.classes is None or not re.fullmatch(r"-?\d+", self.classes) or int(self.classes) >= 1,
            f"--classes is {self.classes}, it starts at 1",
        )


def main(options: Options) -> None:
    if options.verify:
        verify(options.source, options.workers)
        return
    assert options.out is not None
    source = find_images(
        options.source,
        options.splits,
        options.seed,
        layout=options.layout,
        md5=options.md5,
        classes=options.classes,
        per_class=options.per_class,
    )
    image = ImageFormat("jpeg", "square", options.size, options.quality)
    tasks = plan(source, options, image)
    with claim(options.out, fingerprint(tasks, options.seed)):
        todo = [task for task in tasks if not task.record_path.exists()]
        write_shards(spooled(todo, source), tasks, options.workers)
        manifest = finish(options, image, source, tasks)
    report(manifest)


def plan(source: Source, options: Options, image: ImageFormat) -> list[ShardTask]:
    """Which sample goes into which shard, at which place: a function of source, seed and options alone."""
    assert options.out is not None
    sample_bytes = 0.34 * image.size**2 + 1792  # a photograph at quality 90, and three tar headers with their padding
    width = len(str(len(source.classes) - 1))
    tasks = []
    for split, samples in source.splits.items():
        shards = min(len(samples), math.ceil(len(samples) * sample_bytes / (options.shard_mb * 1e6)))
        for i in range(shards):
            part = samples[len(samples) * i // shards : len(samples) * (i + 1) // shards]
            tasks.append(ShardTask(f"{split}-{i:06d}", options.source, options.out, part, image, width))
    return tasks


def fingerprint(tasks: list[ShardTask], seed: int) -> dict:
    """What must be equal for an unfinished run to be continued."""
    samples = hashlib.sha256()
    for task in tasks:
        lines = [
            f"{key}\t{s}\t{label}\t{file}\t{offset}\t{size}\n" for key, s, label, file, offset, size in task.samples
        ]
        samples.update(f"{task.name}\n{''.join(lines)}".encode(errors="surrogateescape"))
    return {"seed": seed, "image": vars(tasks[0].image), "shards": len(tasks), "samples": samples.hexdigest()}


def spooled(tasks: list[ShardTask], source: Source) -> list[ShardTask]:
    """The tasks with samples that can be read by offset; under the lock, where the source has to be copied for that."""
    if source.spool is None or not tasks:
        return tasks
    work = tasks[0].out / WORK / "spool"
    placed = iter(source.spool([sample for task in tasks for sample in task.samples], work))
    return [replace(task, source=work, samples=tuple(islice(placed, len(task.samples)))) for task in tasks]


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
    statistics, mean_image = summarise([task for task in tasks if task.split == options.splits[0]], image.size)
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


def summarise(tasks: list[ShardTask], size: int) -> tuple[Statistics, np.ndarray]:
    """Statistics of the first split (train) and its mean image, size,size,3 float32; exact but for a last rounding."""
    sums = PixelSums(size)
    for task in tasks:
        with np.load(task.pixels_path, allow_pickle=False) as part:
            sums.merge(int(part["images"]), part["pixels"], part["products"])
    n = sums.images * size * size
    totals = [int(total) for total in sums.pixels.sum(axis=(0, 1))]
    products = [[int(value) for value in row] for row in sums.products]
    covariance = np.array([[(n * products[i][j] - totals[i] * totals[j]) / n**2 for j in range(3)] for i in range(3)])
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])  # a sign that does not wander
    statistics = Statistics(
        mean_rgb=tuple(total / n for total in totals),
        std_rgb=tuple(float(value) for value in np.sqrt(np.diag(covariance))),
        eigenvalues=tuple(float(value) for value in values),
        eigenvectors=tuple(tuple(float(value) for value in row) for row in vectors),
        mean_image="mean.npy",
    )
    return statistics, (sums.pixels / sums.images).astype(np.float32)


def report(manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name}: {split.samples} images in {len(split.shards)} shards, {megabytes:.1f} MB")
    print(f"repaired: {len(manifest.repaired)}, quarantined: {len(manifest.quarantined)} (listed in manifest.json)")
    for entry in manifest.quarantined[:5]:
        print(f"  {entry['source']}: {entry['reason']}")


if __name__ == "__main__":
    run(main, Options, __doc__)
