"""What bounds sharding: the same files copied, or decoded, resized and encoded in memory, by as many processes.

python benchmarks/shard_limits.py copy|memory SOURCE OUT WORKERS
"""

import io
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps


def copy(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / path.name)


def memory(path: Path, folder: Path) -> None:
    """What must be done to an image, with the library that sharding uses; the result is thrown away."""
    image = ImageOps.fit(Image.open(path).convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
    image.save(io.BytesIO(), "JPEG", quality=90, subsampling="4:2:0")


def main() -> None:
    work, source, out, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(parents=True)
    files = sorted((source / "train").rglob("*.JPEG"))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map({"copy": copy, "memory": memory}[work], files, [out] * len(files), chunksize=64):
            pass


if __name__ == "__main__":
    main()
