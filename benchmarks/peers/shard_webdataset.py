"""Sharding as webdataset's examples do it: one ShardWriter per process, each with its part of the files.

python benchmarks/peers/shard_webdataset.py SOURCE OUT WORKERS [fast]

It uses Pillow, as those examples do; "fast" uses this project's libraries instead.
"""

import io
import multiprocessing
import os
import random
import sys
from pathlib import Path

import simplejpeg
import webdataset
from PIL import Image, ImageOps

from pipelines.images.resize import square


def pillow(path: Path) -> bytes:
    image = ImageOps.fit(Image.open(path).convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def fast(path: Path) -> bytes:
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), fastdct=False, fastupsample=False)
    return simplejpeg.encode_jpeg(square(pixels, 256), 90, "RGB", "420", fastdct=False)


def write_part(job: tuple[int, list[tuple[Path, int]], Path, bool]) -> None:
    number, files, out, is_fast = job
    convert = fast if is_fast else pillow
    with webdataset.ShardWriter(str(out / f"train-{number}-%06d.tar"), maxsize=256e6, verbose=0) as writer:
        for path, label in files:
            writer.write({"__key__": path.stem, "jpg": convert(path), "cls": label})


def main() -> None:
    source, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True)
    classes = sorted(path.name for path in (source / "train").iterdir())
    files = [(path, classes.index(path.parent.name)) for path in sorted((source / "train").rglob("*.JPEG"))]
    random.Random(0).shuffle(files)
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process: they share the cores already
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(
            write_part, [(number, files[number::workers], out, sys.argv[4:] == ["fast"]) for number in range(workers)]
        )


if __name__ == "__main__":
    main()
