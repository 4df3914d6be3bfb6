"""The references of sharding: the same files copied, or decoded, resized and encoded in memory, by as many processes.

python -m benchmarks.harness.shard_references copy|memory SOURCE OUT WORKERS
"""

import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import simplejpeg

from pipelines.images.resize import square


def copy(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / path.name)


def memory(path: Path, folder: Path) -> None:
    """Decode, resize and encode an image with the libraries that sharding uses. Discard the result."""
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), fastdct=False, fastupsample=False)
    simplejpeg.encode_jpeg(square(pixels, 256), 90, "RGB", "420", fastdct=False)


def main() -> None:
    work, source, out, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(parents=True)
    files = sorted((source / "train").rglob("*.JPEG"))
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process: they share the cores already
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map({"copy": copy, "memory": memory}[work], files, [out] * len(files), chunksize=64):
            pass


if __name__ == "__main__":
    main()
