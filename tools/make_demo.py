"""Make a small ImageNet-shaped folder, so that a machine without ImageNet has something to train on in minutes.

    python tools/make_demo.py demo            # 1,000 + 200 drawn images of 10 classes
    python tools/make_demo.py solar --elpv    # 2,624 real photographs of solar cells in 2 classes

The drawn classes differ in shape and texture; all share the same palettes, so colour alone identifies none.
The wnids n90000000 to n90000009 are made up: WordNet has no such synsets. The same seed draws the same bytes,
whatever the number of workers.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from pipelines import DataError
from pipelines.images.drawings import CLASSES, draw_image
from pipelines.sharding.processes import WorkerPool
from pipelines.terminal import require, run_command

ELPV_PACKAGE = "elpv-dataset==1.0.0.post1"
ELPV_WORDS = {"mono": "monocrystalline solar cell", "poly": "polycrystalline solar cell"}


@dataclass(frozen=True)
class Options:
    """The folder to write, and the number of images."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to make; must not exist, or be empty."""
    train: int = 1000
    """Training images, all classes together."""
    val: int = 200
    """Validation images, all classes together."""
    seed: int = 0
    """The same seed makes the same files."""
    workers: int | None = None
    """Processes that draw; one for each core unless given."""
    elpv: bool = False
    """Copy the photographs of the pip package elpv-dataset instead of drawing; only --seed has an effect then."""

    def __post_init__(self) -> None:
        require(self.train >= 10, f"--train {self.train}: at least 10, one for each class")
        require(self.val >= 10, f"--val {self.val}: at least 10, one for each class")
        require(self.seed >= 0, f"--seed {self.seed}: at least 0")
        require(self.workers is None or self.workers >= 1, f"--workers {self.workers}: at least 1")


def save_image(job: tuple[Path, str, list[int]]) -> None:
    """Draw one image and write it the way photographs on the web are written."""
    path, wnid, seed = job
    rng = np.random.default_rng(seed)
    image = draw_image(CLASSES[wnid], rng)
    if rng.random() < 0.03:
        image = image.convert("L")
    quality, progressive = int(rng.integers(85, 96)), bool(rng.random() < 0.05)
    image.save(path, "JPEG", quality=quality, progressive=progressive, subsampling="4:2:0")


@contextmanager
def new_folder(out: Path, words: dict[str, str]) -> Iterator[Path]:
    """Yield a folder to fill and rename it to ``out`` when done, so that a run cut short leaves no folder ``out``."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: choose another folder, or delete it first")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    for folder in (partial / split / wnid for split in ("train", "val") for wnid in words):
        folder.mkdir(parents=True)
    (partial / "synset_words.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in words.items()))
    yield partial
    partial.replace(out)


def make_demo(out: Path, train: int = 1000, val: int = 200, seed: int = 0, workers: int | None = None) -> None:
    """Draw ``train`` + ``val`` images of 10 classes into the new folder ``out``.

    Raises DataError if ``out`` is not empty.
    """
    with new_folder(out, {wnid: draw.__name__.replace("_", " ") for wnid, draw in CLASSES.items()}) as partial:
        jobs = []
        for split, count in enumerate([train, val]):
            for index, wnid in zip(range(count), cycle(CLASSES), strict=False):
                path = f"val/{wnid}/demo_val_{index + 1:08}.JPEG" if split else f"train/{wnid}/{wnid}_{index + 1}.JPEG"
                jobs.append((partial / path, wnid, [seed, split, index]))
        with WorkerPool(workers or os.cpu_count() or 1) as pool:
            for drawn in tqdm([pool.submit(save_image, job) for job in jobs], desc="drawing", unit=" images"):
                drawn.result()


def lay_out_elpv(out: Path, seed: int = 0) -> None:
    """Copy the photographs of elpv-dataset into the new folder ``out``, a quarter of each class for validation.

    Raises DataError if ``out`` is not empty or the package is missing.
    """
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DataError(f"the photographs are not installed: run pip install {ELPV_PACKAGE}")
    data = Path(package.origin).parent / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text().splitlines()]  # path, defect probability, class
    rng = np.random.default_rng(seed)
    with new_folder(out, ELPV_WORDS) as partial:
        for name in ELPV_WORDS:
            paths = rng.permutation([path for path, _, kind in rows if kind == name])
            for index, path in enumerate(paths):
                split = "val" if index < len(paths) // 4 else "train"
                shutil.copyfile(data / path, partial / split / name / Path(path).name)
    print(f"{len(rows)} photographs from {ELPV_PACKAGE}, licence CC BY-NC-SA 4.0: not for commercial use")


def main(options: Options) -> None:
    if options.elpv:
        lay_out_elpv(options.out, options.seed)
    else:
        make_demo(options.out, options.train, options.val, options.seed, workers=options.workers)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
