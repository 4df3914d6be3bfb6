"""Write a folder of images as webdataset tar shards, once, for every loader and every run after it.

    python tools/shard_imagenet.py SOURCE OUT       # ImageNet as it ships, or pictures of your own in class folders
    python tools/shard_imagenet.py SOURCE OUT --labels labels.csv
    python tools/shard_imagenet.py SOURCE s3://bucket/imagenet
    python tools/shard_imagenet.py --verify OUT     # read everything again and compare
    python tools/shard_imagenet.py --index FOLDER   # tars that webdataset wrote: index and manifest beside them

docs/own-pictures.md shows the layouts that SOURCE may have. Images become 256x256 JPEGs (shorter side resized, centre
cropped) in one seeded global permutation, unless options such as --resize say otherwise. An image that cannot be
decoded is skipped and listed in OUT/manifest.json under its key "quarantined"; one that had to be altered to be a plain
upright JPEG, under "repaired". After a stop, the same command continues where it was; after the end, it says so and
does nothing. The same source, options and seed give the same bytes with any number of workers.
"""

import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.errors import DataError
from pipelines.images.limits import MAX_PIXELS, PILLOW_MAX_PIXELS
from pipelines.remote.url import URL, remote_url
from pipelines.sharding.bucket import shard_into_bucket
from pipelines.sharding.folder import begun_image, claim, fingerprint, finish, is_finished
from pipelines.sharding.indexing import check_label, index_folder
from pipelines.sharding.plan import plan
from pipelines.sharding.repair import repair
from pipelines.sharding.report import report, report_finished
from pipelines.sharding.runners import write_shards
from pipelines.sharding.sources import Source, find_images
from pipelines.sharding.verify import verify
from pipelines.shards.manifest import ImageFormat, load_manifest
from pipelines.terminal import in_range, require, run_command
from pipelines.turbo.native import has_native
from pipelines.untrusted import printable


@dataclass(frozen=True)
class Options:
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The folder with class folders, train/ and val/, ImageNet's archives or parquet files; with --verify, the
    shards."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None
    """The shard folder to make, or its place in a bucket (s3://bucket/name)."""
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
    restarts: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write restart markers into the JPEGs, as --resize square does anyway: the same pixels in 1 % more bytes. They let
    turbo skip most of what lies outside a crop. --resize none then rewrites the files, without loss or metadata."""
    no_restarts: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write square JPEGs without restart markers: other programs decode them a tenth faster, the backend gpu cannot."""
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
    """Fraction of the images that may be quarantined, but at least five (or half of a few); 0: none. With more, the
    run ends with an error."""
    repair: bool = False
    """Write the damaged shards of a finished OUT again; give the options that OUT was made with."""
    seed: int = 0
    """Seed of the order of the train images."""
    splits: tuple[str, ...] = ("train", "val")
    """The splits of SOURCE to shard. A test/ is taken as val if there is no val."""
    val_share: float | None = None
    """The share of each class's pictures that becomes val if SOURCE has none (then 0.1 unless given), drawn with the
    seed."""
    labels: Path | None = None
    """A CSV file with the labels of pictures anywhere below SOURCE: columns such as filename and label, by name."""
    layout: Literal["auto", "official", "folders", "kaggle", "parquet", "classes"] = "auto"
    """The layout of SOURCE; auto: detect it."""
    md5: bool = False
    """First compare ImageNet's official archives with their published md5."""
    classes: str | None = None
    """A subset: a file with a class per line (golden retriever, n02099601), or N for the first N classes. Labels count
    within the subset."""
    per_class: int | None = None
    """Use only so many train images of each class, drawn with the seed."""

    def __post_init__(self) -> None:
        alone = self.verify + self.index
        require(alone < 2 and (self.out is None) == alone, "give SOURCE and OUT, --verify OUT, or --index FOLDER")
        require(self.index or self.label is None, "--label goes with --index only")
        require(check_label(self.label), f"--label is {self.label}, it is cls, json:FIELD or none")
        away = self.out is not None and URL.fullmatch(str(self.out))
        require(
            not (away and self.repair), "--repair goes with a folder only: docs/remote.md says how to mend a bucket"
        )
        require(not (away and self.cluster), "--cluster goes with a folder only: a Dask worker may have no credentials")
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
        require(not (self.restarts and self.no_restarts), "--restarts and --no-restarts contradict each other")
        in_range("max_bad", self.max_bad, 0, 1)
        in_range("quality", self.quality, 1, 95)
        in_range("shard_mb", self.shard_mb, 0.01, 1_000_000)
        in_range("workers", self.workers, 1)
        require(
            bool(self.splits) and all(split.isascii() and split.isalpha() and split.islower() for split in self.splits),
            f"--splits is {' '.join(self.splits)!r}, it takes folder names of small letters",
        )
        require(
            self.val_share is None or 0 < self.val_share < 1,
            f"--val-share is {self.val_share}, it lies between 0 and 1",
        )
        require(not self.labels or self.layout == "auto", "--labels says the layout: leave --layout out")
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
    make_shards(options, options.out)


def make_shards(options: Options, out: Path) -> None:
    """Write the shards that ``out`` lacks, or repair it. Raises DataError, OSError."""
    start = time.monotonic()
    source = find_source(options, out)
    quality = options.quality if options.encoding == "jpeg" else 0
    marked = with_markers(options, out)
    image = ImageFormat(options.encoding, options.resize, options.size, quality, restarts=marked)
    tasks = plan(
        source,
        out,
        image,
        shard_mb=options.shard_mb,
        statistics_images=options.statistics_images,
        max_pixels=options.max_pixels,
    )
    write = partial(write_shards, workers=options.workers, cluster=options.cluster, max_bad=options.max_bad)
    if options.repair:
        repair(out, options.seed, source, tasks, workers=options.workers, write=write)
        return
    if url := remote_url(out):
        manifest, written = shard_into_bucket(url, options.seed, source, tasks, write)
        if written is None:
            report_finished(manifest, url)
        else:
            report(manifest, written, source.left_out, time.monotonic() - start)
        return
    wanted = fingerprint(tasks, options.seed)
    if is_finished(out, wanted):
        report_finished(load_manifest(out), out)
        return
    with claim(out, wanted):
        write(source, tasks)
        source_bytes = finish(out, options.seed, source, tasks)
    report(load_manifest(out), source_bytes, source.left_out, time.monotonic() - start)


def with_markers(options: Options, out: Path) -> bool:
    """Return true if the JPEGs get restart markers. If no option says so, do as ``out`` was begun; a new folder of
    square JPEGs gets them.

    Raises DataError if they would, and the compiled part that writes them is missing.
    """
    if options.no_restarts or options.encoding != "jpeg":
        return False
    marked = options.restarts
    if not marked and options.resize == "square":
        begun = begun_image(out)
        marked = begun is None or begun.get("restarts") is True
    if marked and not has_native():
        raise DataError(
            "restart markers need turbo's compiled part, which was not built: install a C compiler and libjpeg-turbo's "
            "headers, then run make -B env; or add --no-restarts, for shards that every backend but gpu reads"
        )
    return marked


def find_source(options: Options, out: Path) -> Source:
    """List the images and print how the layout was understood. Raises DataError."""
    source = find_images(
        options.source,
        options.splits,
        options.seed,
        layout=options.layout,
        labels=options.labels,
        md5=options.md5,
        classes=options.classes,
        per_class=options.per_class,
        val_share=options.val_share,
        out=out,
    )
    for note in source.notes:
        print(printable(note), flush=True)
    return source


if __name__ == "__main__":
    run_command(main, Options, __doc__)
