"""Photographs for benchmarks, in ImageNet's layout: random views of those in scikit-image and scikit-learn.

    python -m benchmarks.corpus data/corpus --images 4000

About 110 KB each at 500x375, 4:2:0 JPEG, as ImageNet's are; the same seed gives the same files. With --copies, each
view is linked several times (hard links): a large dataset in a short time.
"""

import os
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

from pipelines import DataError
from pipelines.sharding.processes import WorkerPool
from pipelines.terminal import in_range, require, run_command

PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "ihc.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
CLASSES = 10


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """Folder to make, with train/ and val/."""
    images: int = 4000
    """Number of views. A tenth of them are for val."""
    copies: int = 1
    """Files (hard links) of each view."""
    width: int = 500
    height: int = 375
    quality: int = 98
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("images", self.images, 10 * CLASSES)
        in_range("copies", self.copies, 1)
        in_range("quality", self.quality, 1, 100)
        require(min(self.width, self.height) >= 16, "--width and --height start at 16")


def main(options: Options) -> None:
    if options.out.exists():
        raise DataError(f"{options.out} is there already: choose another folder, or delete it first")
    sources = photographs()
    for split in ("train", "val"):
        for number in range(CLASSES):
            (options.out / split / f"c{number}").mkdir(parents=True)
    with WorkerPool(os.cpu_count() or 1) as pool:
        views = [pool.submit(save_view, options, sources, number) for number in range(options.images)]
        total = sum(view.result() for view in tqdm(views, unit=" images", desc="corpus"))
    print(f"{options.images * options.copies} files, {total / options.images / 1000:.1f} KB each")


def photographs() -> list[Path]:
    """Return the paths of the photographs. Raises DataError if a package is missing."""
    found = []
    for package, names in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise DataError("the photographs come with two packages: pip install 'alexnet-pipelines[bench]'")
        found += [Path(spec.origin).parent / FOLDERS[package] / name for name in names]
    return found


def save_view(options: Options, sources: list[Path], number: int) -> int:
    """Cut a view out of a photograph and write it. Return its size in bytes."""
    rng = random.Random(f"{options.seed}/{number}")
    with Image.open(rng.choice(sources)) as photograph:
        image = photograph.convert("RGB")
    width = min(image.width, image.height * options.width / options.height) * rng.uniform(0.6, 1)
    height = width * options.height / options.width
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    view = image.resize((options.width, options.height), Image.Resampling.BICUBIC, box)
    split = "val" if number % 10 == 9 else "train"
    path = options.out / split / f"c{number // 10 % CLASSES}" / f"{number:06d}.JPEG"
    view.save(path, quality=options.quality, subsampling="4:2:0")
    for copy in range(1, options.copies):
        path.with_name(f"{path.stem}_{copy}.JPEG").hardlink_to(path)
    return path.stat().st_size


if __name__ == "__main__":
    run_command(main, Options, __doc__)
