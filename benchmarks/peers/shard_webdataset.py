"""Sharding as webdataset's examples do it: one ShardWriter a process, each with its part of the files.

python benchmarks/peers/shard_webdataset.py SOURCE OUT WORKERS
"""

import io
import multiprocessing
import random
import sys
from pathlib import Path

import webdataset
from PIL import Image, ImageOps


def write_part(job: tuple[int, list[tuple[Path, int]], Path]) -> None:
    number, files, out = job
    with webdataset.ShardWriter(str(out / f"train-{number}-%06d.tar"), maxsize=256e6, verbose=0) as writer:
        for path, label in files:
            image = ImageOps.fit(Image.open(path).convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            writer.write({"__key__": path.stem, "jpg": buffer.getvalue(), "cls": label})


def main() -> None:
    source, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True)
    classes = sorted(path.name for path in (source / "train").iterdir())
    files = [(path, classes.index(path.parent.name)) for path in sorted((source / "train").rglob("*.JPEG"))]
    random.Random(0).shuffle(files)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(write_part, [(number, files[number::workers], out) for number in range(workers)])


if __name__ == "__main__":
    main()
