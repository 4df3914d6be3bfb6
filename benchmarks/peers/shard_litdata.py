"""Sharding with LitData's optimize: the same decoding, resizing and encoding, its own chunk format.

python benchmarks/peers/shard_litdata.py SOURCE OUT WORKERS
"""

import io
import random
import sys
from pathlib import Path

from litdata import optimize
from PIL import Image, ImageOps


def convert(item: tuple[str, int]) -> dict:
    path, label = item
    image = ImageOps.fit(Image.open(path).convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return {"image": buffer.getvalue(), "label": label}


def main() -> None:
    source, out, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    classes = sorted(path.name for path in (source / "train").iterdir())
    files = [(str(path), classes.index(path.parent.name)) for path in sorted((source / "train").rglob("*.JPEG"))]
    random.Random(0).shuffle(files)
    optimize(fn=convert, inputs=files, output_dir=out, chunk_bytes="64MB", num_workers=workers)


if __name__ == "__main__":
    main()
