"""How fast are batches made, beside the limit: libjpeg-turbo decoding the same bytes from memory, nothing else.

python -m benchmarks loader --data data/demo/shards
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
import webdataset

from alexnet.engine import find_device
from benchmarks.timing import interleave, summarise
from pipelines import AUGMENTS, Loader, load_manifest, open_loader
from tools.terminal import require

LIMIT = "decode alone (the limit)"


@dataclass(frozen=True)
class LoaderOptions:
    """Images a second of each backend and augmentation, as a ratio to decoding alone."""

    data: Path = Path("data/demo/shards")
    """A shard folder."""
    batch_size: int = 64
    batches: int = 10
    """Batches that each candidate makes in a round."""
    rounds: int = 5
    threads: int = os.cpu_count() or 1
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    json: Path | None = None
    """Write the result here too."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches", "rounds", "threads"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, it starts at 1")


def run_loader(options: LoaderOptions) -> dict:
    """The settings and a row a candidate."""
    device = find_device(options.device)
    candidates: dict[str, Callable[[], int]] = {LIMIT: decode_alone(options)}
    for augment in AUGMENTS:
        loader = open_loader(
            options.data,
            batch_size=options.batch_size,
            augment=augment,
            device=device,
            backend="dali",
            threads=options.threads,
        )
        candidates[f"dali, {augment}"] = make_batches(loader, options)
    rows = summarise(interleave(candidates, options.rounds), LIMIT)
    settings = {name: getattr(options, name) for name in ("batch_size", "batches", "rounds", "threads")}
    return {
        "benchmark": "loader",
        "unit": "images/s",
        "data": str(options.data),
        "device": str(device),
        **settings,
        "rows": rows,
    }


def make_batches(loader: Loader, options: LoaderOptions) -> Callable[[], int]:
    """Takes batches, epoch after epoch, and waits until the last one is on the device."""
    endless = itertools.chain.from_iterable(itertools.repeat(loader))

    def take() -> int:
        for _ in range(options.batches):
            next(endless)
        if loader.device.type == "cuda":
            torch.cuda.synchronize()
        return options.batches * options.batch_size

    return take


def decode_alone(options: LoaderOptions) -> Callable[[], int]:
    """Decodes as many images as the loaders do, on as many host threads, to uint8 pixels that nobody looks at."""
    torch.set_num_threads(1)  # the threads are ours
    manifest = load_manifest(options.data)
    tars = [str(options.data / shard.path) for shard in manifest.split("train").shards]
    wanted = options.batches * options.batch_size
    samples = itertools.islice(webdataset.WebDataset(tars, shardshuffle=False), wanted)
    jpegs = [torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8) for sample in samples]
    pool = ThreadPoolExecutor(options.threads)

    def decode(part: int) -> int:
        return sum(len(torchvision.io.decode_jpeg(jpeg)) > 0 for jpeg in jpegs[part :: options.threads])

    return lambda: sum(pool.map(decode, range(options.threads)))
