"""The pixels and labels of each loader's batches while a GPU is busy, compared with turbo's on a CPU.

    python -m benchmarks pixels --data SHARDS

A batch is copied behind other work on the GPU, its tensors are dropped, and the next batch is asked for meanwhile. A
loader that hands out a batch too early, or writes into memory that is still to be read, gives wrong images. nvJPEG's
batched decoding did so on H100s (pytorch/vision pull request 9606, August 2026).
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from alexnet.engine import find_device
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.pixels import busy, compare
from benchmarks.harness.timing import Deadline, Missing
from pipelines import Augment, Batch, DataError, load_manifest, open_loader
from pipelines.factory import FOR_ALL
from pipelines.terminal import in_range, require

NORMALISE = ("none", "mean_std")
ROUNDING = 0.25  # of 255: what float16 adds to pixels that are equal to the bit; gpu's are
Copies = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PixelsOptions(MeasureOptions):
    """Pixels of each loader under load, beside turbo's on a CPU."""

    data: tuple[Path, ...] = (Path("data/demo/shards"),)
    """Shard folders."""
    backends: tuple[Literal["turbo", "dali", "gpu"], ...] = ("turbo", "dali")
    batch_size: int = 256
    batches: int = 8
    """Batches of the train split that are compared in each round, with center crops."""
    rounds: int = 3

    def __post_init__(self) -> None:
        require(bool(self.data and self.backends), "--data and --backends take one value or more")
        for name in ("batch_size", "batches", "rounds"):
            in_range(name, getattr(self, name), 1)


def run_pixels(options: PixelsOptions) -> Iterator[dict]:
    """Yield a row per dataset, loader, kind of pixels and order of samples, after each of them."""
    deadline, device, missing = Deadline.after(options.minutes), find_device(options.device), Missing()
    rows: list[dict[str, Any]] = []
    for name, data, given in cases(options):
        if rows and deadline.left() <= 0:
            missing.left_out.append(name)
            continue
        try:
            rows.append({"name": name} | compared(data, given, device, options))
        except DataError as error:
            missing.failed[name] = str(error)
        yield described(options, rows, missing, device)
    for row in rows:
        print(
            "{name:<44}{compared:>8} images, mean {mean_difference}, most {max_difference}, {wrong} wrong".format(**row)
        )


def described(options: PixelsOptions, rows: list[dict], missing: Missing, device: torch.device) -> dict[str, Any]:
    wrong = [row["name"] for row in rows if row["wrong"] or row["wrong_labels"]]
    unit = "steps of 0 to 255 from turbo on a CPU"
    about = {"benchmark": "pixels", "unit": unit, "device": str(device), "batch_size": options.batch_size}
    about |= {"wrong": f"wrong pixels or labels: {', '.join(wrong)}"} if wrong else {}
    said = [f"failed: {name}: {why}" for name, why in missing.failed.items()]
    return about | {"rows": rows, "diagnosis": said} | missing.described()


def cases(options: PixelsOptions) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield name, shard folder and arguments of ``open_loader``. Shuffled, DALI has another order and draws.

    What gpu draws at random is turbo's too, so its random crops are compared, from files and from memory.
    """
    for data in options.data:
        for backend in options.backends:
            for normalise in NORMALISE:
                for training in (False, True) if backend in FOR_ALL else (False,):
                    order, own = "shuffled" if training else "in order", training and backend == "gpu"
                    augment = Augment("random" if own else "center", flip=own, normalise=normalise)  # type: ignore[arg-type]
                    given = {"backend": backend, "augment": augment, "training": training, "resident": False}
                    yield f"{data.name}: {backend}, {normalise}, {order}", data, given
                    if own:
                        yield f"{data.name}: gpu resident, {normalise}, {order}", data, given | {"resident": True}


def compared(data: Path, given: dict[str, Any], device: torch.device, options: PixelsOptions) -> dict[str, Any]:
    """Compare the batches of all rounds. Raises DataError if the loader cannot run."""
    augment = replace(given["augment"], normalise="none")
    with closing(open_loader(data, "train", options.batch_size, **given | {"device": device})) as loader:
        found = [copy for _ in range(options.rounds) for copy in copies(islice(loader, options.batches), device)]
    with closing(
        open_loader(
            data, "train", options.batch_size, **given | {"backend": "turbo", "augment": augment, "resident": False}
        )
    ) as reference:
        epochs = options.rounds if given["training"] else 1
        expected = [copy for _ in range(epochs) for copy in copies(islice(reference, options.batches), None)]
    expected *= options.rounds // epochs
    pairs = zip(found, expected, strict=True)
    labels = sum(not torch.equal(mine.cpu(), theirs) for (_, mine), (_, theirs) in pairs)
    mean, deviation = (
        np.array(values, np.float32) for values in Augment().mean_and_std(load_manifest(data).statistics)
    )
    scale = (deviation, mean) if given["augment"].normalise != "none" else (np.float32(1), np.float32(0))
    every = (
        (one.cpu().float().numpy() * scale[0] + scale[1], other.float().numpy())
        for (mine, _), (theirs, _) in zip(found, expected, strict=True)
        for one, other in zip(mine.permute(0, 2, 3, 1), theirs.permute(0, 2, 3, 1), strict=True)
    )
    return compare(every, ROUNDING if given["backend"] == "gpu" else None) | {"wrong_labels": labels}


def copies(batches: Iterator[Batch], device: torch.device | None) -> Copies:
    """Copy each batch behind other work, and drop it before the next one comes."""
    found: Copies = []
    with busy(device is not None and device.type == "cuda") as queue:
        for batch in batches:
            queue()
            found.append((batch.images[: batch.valid].clone(), batch.labels[: batch.valid].clone()))
            del batch
    return found
