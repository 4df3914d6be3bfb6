"""Evaluate a checkpoint on a split: top-1, top-5, macro precision, recall and F1.

    python tools/evaluate.py runs/demo/best.pt --data data/demo/shards

Prints a table and writes metrics.json beside the checkpoint.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from alexnet import AlexNetError, checkpoint, engine
from pipelines import DataError, open_loader
from pipelines.loader import BackendName
from pipelines.shards import write_atomically
from tools.terminal import require, run


@dataclass(frozen=True)
class Options:
    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run."""
    data: Path = Path("data/demo/shards")
    """A shard folder."""
    split: str = "val"
    batch_size: int = 128
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}, it starts at 1")


def main(options: Options) -> None:
    device = engine.find_device(options.device)
    model, state = checkpoint.load_model(options.checkpoint, device)
    loader = open_loader(
        options.data,
        options.split,
        options.batch_size,
        state["augment"],
        device,
        options.backend,
        training=False,
    )
    checkpoint.check_classes(state, options.checkpoint, [c.wnid for c in loader.manifest.classes], options.data)
    start = time.perf_counter()
    batches = tqdm(loader, "evaluate", unit=" batches", dynamic_ncols=True)
    metrics = engine.evaluate(model, batches, len(loader.manifest.classes), device)
    seconds = time.perf_counter() - start
    path = options.checkpoint.with_name("metrics.json")
    write_atomically(path, json.dumps(metrics, indent=1).encode() + b"\n")
    print(f"{options.checkpoint} on {metrics['samples']} images of {options.data}, split {options.split}")
    for name in ("top1", "top5", "precision", "recall", "f1"):
        print(f"  {name:<10} {100 * metrics[name]:6.2f} %")
    print(f"{metrics['samples'] / seconds:.0f} images/s; written to {path}")


if __name__ == "__main__":
    run(main, Options, __doc__, errors=(AlexNetError, DataError))
