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
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from alexnet import AlexNetError, checkpoint, engine, figures, metrics
from alexnet.figures.saving import save_pictures
from alexnet.metrics import Predictions
from alexnet.ranks import Ranks, join_ranks, rank_device
from alexnet.run_reader import find_checkpoint, find_data
from alexnet.tables import write_csv
from pipelines import Augment, DataError, Manifest, load_manifest, open_loader
from pipelines.arguments import check_cache
from pipelines.factory import BackendName
from pipelines.files import write_atomically
from pipelines.preprocess import Preparation
from pipelines.shards.groups import groups_of
from pipelines.shards.index import list_samples
from pipelines.shards.manifest import ImageFormat
from pipelines.terminal import counting, require, run_command
from pipelines.untrusted import shown


@dataclass(frozen=True)
class Options:
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder (its best.pt, else its last.pt), or a checkpoint."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="SHARDS")] = None
    """A shard folder or a URL; by default the one of the run's training."""
    cache: Path | None = None
    """Read the shards through this folder, as in training."""
    cache_gb: float | None = None
    split: str = "val"
    crops: Literal[1, 10] = 1
    """1: the centre crop; 10: the mean over crops at the corners and the centre, and their flips."""
    batch_size: int = 128
    """Crops that the network sees at once."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        check_cache(self.cache, self.cache_gb)
        require(self.batch_size >= self.crops, f"--batch-size is {self.batch_size}, it starts at {self.crops} here")


def main(options: Options) -> None:
    options = replace(options, checkpoint=find_checkpoint(options.checkpoint))
    with join_ranks() as ranks:
        manifest, part, facts = evaluate(options, ranks)
        predictions, seconds = ranks.gather_predictions(part), max(ranks.gather(facts.pop("seconds")))
        if ranks.rank == 0:
            report(options, manifest, predictions, facts | {"images_per_second": round(len(predictions) / seconds, 1)})


def evaluate(options: Options, ranks: Ranks) -> tuple[Manifest, Predictions, dict[str, Any]]:
    """Predict this rank's share of the split, in order. Return manifest, predictions and facts for metrics.json."""
    device = rank_device(options.device)
    model: nn.Module
    model, state = checkpoint.load_model(options.checkpoint, device)
    cache: dict[str, Any] = {"cache": options.cache, "cache_gb": options.cache_gb}
    manifest = load_manifest(options.data or find_data(options.checkpoint, state), **cache)
    wnids = [entry.wnid for entry in manifest.classes]
    columns = checkpoint.class_columns(state, options.checkpoint, wnids, manifest.location)
    augment = Preparation.of(state).evaluation(options.crops)
    if columns != list(range(len(state["classes"]))):
        model = OfClasses(model, columns)
    if augment.normalise == "mean_image" and not of_training(state, manifest):  # a loader subtracts that of its data
        model = normalising(model, state, augment).to(device)
        augment = replace(augment, normalise="none")
    loader = open_loader(
        manifest.location,
        options.split,
        options.batch_size // options.crops,
        augment,
        device=device,
        backend=options.backend,
        rank=ranks.rank,
        world_size=ranks.world_size,
        training=False,
        **cache,
    )
    batches = counting(loader, "evaluating", loader.plan.own_samples, shown=ranks.rank == 0)
    start = time.perf_counter()
    predictions = engine.predict(model, batches, device)
    facts = {
        "data": manifest.location,
        "classes": len(wnids),
        "network_classes": len(state["classes"]),
        "classes_by": "wnid" if set(wnids) <= {wnid for wnid, _ in state["classes"]} else "number",
        "differences": differences(state, manifest.image),
        "seconds": time.perf_counter() - start,
    }
    return manifest, predictions, facts


class OfClasses(nn.Module):
    """A network that tells only some of its classes apart, in another order: ``columns`` are their numbers."""

    def __init__(self, model: nn.Module, columns: list[int]) -> None:
        super().__init__()
        self.model, self.columns = model, columns

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.columns]


class Normalising(nn.Module):
    """A network that takes pixels from 0 to 255 and normalises them by itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels.float() - self.mean) / self.std)


def normalising(model: nn.Module, state: dict[str, Any], augment: Augment) -> Normalising:
    """Return the network with the mean image of its train images, for pixels of other data. Raises AlexNetError."""
    if augment.crops > 1:
        raise AlexNetError("this network subtracts the mean image of its train images: for other data use --crops 1")
    preparation = Preparation.of(state)
    mean, std = (torch.from_numpy(np.array(v, ndmin=3)).permute(2, 0, 1) for v in (preparation.mean, preparation.std))
    return Normalising(model, mean, std)  # both 3,1,1 or 3,size,size


def of_training(state: dict[str, Any], manifest: Manifest) -> bool:
    """Return true if the data has the colours of the train images, by which a loader normalises."""
    trained, here = state.get("statistics"), vars(manifest.statistics)
    return isinstance(trained, dict) and all(trained.get(name) == here[name] for name in ("mean_rgb", "std_rgb"))


def differences(state: dict[str, Any], image: ImageFormat) -> list[str]:
    """Describe in what the images were made otherwise than those of training, as far as accuracy depends on it."""
    said, here = state.get("image"), vars(image)
    trained: dict[str, Any] = {"size": state.get("image_size")}
    if isinstance(said, dict):  # earlier versions kept only the size
        trained |= said
    return [
        f"{name} {here[name]} here and {shown(trained[name])} in training"
        for name in ("size", "resize", "quality")
        if trained.get(name) and here[name] and trained[name] != here[name]  # quality 0: not encoded
    ]


def report(options: Options, manifest: Manifest, predictions: Predictions, facts: dict[str, Any]) -> None:
    names = [entry.name for entry in manifest.classes]
    cells = metrics.confusion(predictions, len(names))
    keys, sizes = list_samples(manifest, options.split)
    groups = groups_of(manifest, options.split, keys=keys, image_bytes=sizes, labels=predictions.labels)
    found: dict[str, Any] = metrics.scores(predictions, len(names)) | metrics.more_scores(predictions, len(names))
    found |= facts | {
        "split": options.split,
        "crops": options.crops,
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
    if found["classes"] < found["network_classes"]:
        print(f"  among the {found['classes']} classes of the data, of {found['network_classes']} in the network")
    if found["classes_by"] == "number":
        print("  the data's classes are numbers: taken for the network's classes in their order")
    for difference in found["differences"]:
        print(f"  warning: images of {difference}: the accuracy would be another with images made as in training")
    for name in ("top1", "top5") if found["classes"] > 5 else ("top1",):
        low, high = found[f"{name}_interval"]
        print(f"  {name:<10} {100 * found[name]:6.2f} %   (95 %: {100 * low:.2f} to {100 * high:.2f})")
    for name in ("precision", "recall", "f1"):
        print(f"  {name:<10} {100 * found[name]:6.2f} %   weighted by class size {100 * found[name + '_weighted']:.2f}")
    print(f"  {'loss':<10} {found['loss']:6.4f}     mean cross-entropy")
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
