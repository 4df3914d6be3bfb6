"""Evaluate a checkpoint on a split: accuracy with 95 % intervals, F1, calibration, and confused classes.

    python tools/evaluate.py runs/demo                        # best.pt, on the val split of the run's data
    python tools/evaluate.py runs/paper --crops 10            # as the paper, section 4.1
    torchrun --nproc-per-node 8 tools/evaluate.py runs/paper/last.pt --data SHARDS

Prints a table. Beside the checkpoint it writes metrics.json, classes.csv (a line per class), predictions.csv (a line
per image), pictures/confusions.png and pictures/reliability.png.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from alexnet import AlexNetError, checkpoint, engine, figures, metrics
from alexnet.figures.saving import save_pictures
from alexnet.metrics import Predictions
from alexnet.ranks import Ranks, join_ranks, rank_device
from alexnet.run_reader import find_checkpoint, find_data
from alexnet.tables import write_csv
from pipelines import DataError, Manifest, open_loader
from pipelines.factory import BackendName
from pipelines.files import write_atomically
from pipelines.preprocess import Preparation
from pipelines.shards.groups import groups_of
from pipelines.shards.index import list_samples
from pipelines.terminal import require, run_command


@dataclass(frozen=True)
class Options:
    checkpoint: tyro.conf.Positional[Path]
    """A run folder (its best.pt, else its last.pt), or a checkpoint."""
    data: Path | None = None
    """A shard folder; by default the one of the run's training."""
    split: str = "val"
    crops: Literal[1, 10] = 1
    """1: the centre crop; 10: the mean over crops at the corners and the centre, and their flips."""
    batch_size: int = 128
    """Crops that the network sees at once."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        require(self.batch_size >= self.crops, f"--batch-size is {self.batch_size}, it starts at {self.crops} here")


def main(options: Options) -> None:
    options = replace(options, checkpoint=find_checkpoint(options.checkpoint))
    with join_ranks() as ranks:
        manifest, part, seconds = evaluate(options, ranks)
        predictions, seconds = ranks.gather_predictions(part), max(ranks.gather(seconds))
        if ranks.rank == 0:
            report(options, manifest, predictions, seconds)


def evaluate(options: Options, ranks: Ranks) -> tuple[Manifest, Predictions, float]:
    """Predict this rank's share of the split, in order. Return manifest, predictions and the seconds it took."""
    device = rank_device(options.device)
    model, state = checkpoint.load_model(options.checkpoint, device)
    data = options.data or find_data(options.checkpoint, state)
    loader = open_loader(
        data,
        options.split,
        options.batch_size // options.crops,
        Preparation.of(state).evaluation(options.crops),
        device=device,
        backend=options.backend,
        rank=ranks.rank,
        world_size=ranks.world_size,
        training=False,
    )
    checkpoint.check_classes(state, options.checkpoint, [c.wnid for c in loader.manifest.classes], data)
    batches = tqdm(loader, "evaluate", unit=" batches", dynamic_ncols=True, disable=ranks.rank > 0)
    start = time.perf_counter()
    predictions = engine.predict(model, batches, device)
    return loader.manifest, predictions, time.perf_counter() - start


def report(options: Options, manifest: Manifest, predictions: Predictions, seconds: float) -> None:
    names = [entry.name for entry in manifest.classes]
    cells = metrics.confusion(predictions, len(names))
    keys, sizes = list_samples(manifest, options.split)
    groups = groups_of(manifest, options.split, keys=keys, image_bytes=sizes, labels=predictions.labels)
    found: dict[str, Any] = metrics.scores(predictions, len(names)) | metrics.more_scores(predictions, len(names))
    found |= {
        "data": str(manifest.folder),
        "split": options.split,
        "crops": options.crops,
        "images_per_second": round(len(predictions) / seconds, 1),
        "confused": [[names[true], names[taken], n] for true, taken, n in metrics.most_confused(cells)],
        "by_property": metrics.accuracy_by_group(predictions, groups),
    }
    folder = options.checkpoint.parent
    write_atomically(folder / "metrics.json", json.dumps(found, indent=1).encode() + b"\n")
    write_csv(folder / "classes.csv", class_rows(manifest, metrics.per_class(predictions, len(names))))
    write_csv(folder / "predictions.csv", image_rows(keys, manifest, predictions))
    print_table(options, found)
    bins = metrics.reliability(predictions)
    pictures = {
        "confusions": figures.confusion_matrix(cells, names),
        "reliability": figures.reliability_diagram(bins, found["calibration_error"]),
    }
    save_pictures(pictures, folder / "pictures")
    print(f"{found['images_per_second']:.0f} images/s; metrics.json, classes.csv, predictions.csv are in {folder}")


def print_table(options: Options, found: dict[str, Any]) -> None:
    print(f"{options.checkpoint} on {found['samples']} images of {found['data']}, split {options.split}")
    for name in ("top1", "top5"):
        low, high = found[f"{name}_interval"]
        print(f"  {name:<10} {100 * found[name]:6.2f} %   (95 %: {100 * low:.2f} to {100 * high:.2f})")
    for name in ("precision", "recall", "f1"):
        print(f"  {name:<10} {100 * found[name]:6.2f} %   weighted by class size {100 * found[name + '_weighted']:.2f}")
    print(f"  {'ECE':<10} {100 * found['calibration_error']:6.2f} %   expected calibration error")
    for name, groups in found["by_property"].items():
        print(f"  by {name}: " + ", ".join(f"{g['group']} {100 * g['top1']:.1f} % of {g['images']}" for g in groups))


def class_rows(manifest: Manifest, table: dict[str, np.ndarray]) -> Iterable[Sequence[object]]:
    yield ["class", "wnid", "name", *table]
    for i, (entry, row) in enumerate(zip(manifest.classes, zip(*table.values(), strict=True), strict=True)):
        yield [i, entry.wnid, entry.name, *(round(value.item(), 6) for value in row)]


def image_rows(keys: Sequence[str], manifest: Manifest, predictions: Predictions) -> Iterable[Sequence[object]]:
    yield ["key", "true", "predicted", "rank", "confidence"]
    wnids = [entry.wnid for entry in manifest.classes]
    columns = (predictions.labels, predictions.predicted, predictions.true_rank, predictions.confidence)
    for key, label, predicted, rank, confidence in zip(keys, *columns, strict=True):
        yield [key, wnids[label], wnids[predicted], rank, round(float(confidence), 6)]


if __name__ == "__main__":
    run_command(main, Options, __doc__, errors=(AlexNetError, DataError))
