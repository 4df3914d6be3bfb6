"""Evaluate a checkpoint on a split: how often it is right, how sure that is, and what it takes for what.

    python tools/evaluate.py runs/demo/best.pt --data data/demo/shards
    python tools/evaluate.py runs/paper/best.pt --data SHARDS --crops 10      # as the paper, section 4.1
    torchrun --nproc-per-node 8 tools/evaluate.py runs/paper/best.pt --data SHARDS

Prints a table. Beside the checkpoint it writes metrics.json, classes.csv (a line a class), predictions.csv (a line an
image), pictures/confusions.png and pictures/reliability.png.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from alexnet import AlexNetError, checkpoint, engine, figures, metrics
from alexnet.metrics import Answers
from pipelines import AUGMENTS, DataError, Manifest, open_loader
from pipelines.index import list_samples
from pipelines.loader import BackendName
from pipelines.shards import write_atomically
from tools.pictures import save
from tools.properties import accuracy_by_property
from tools.ranks import Ranks, rank_device, ranks
from tools.tables import write_csv
from tools.terminal import require, run


@dataclass(frozen=True)
class Options:
    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run."""
    data: Path = Path("data/demo/shards")
    """A shard folder."""
    split: str = "val"
    crops: Literal[1, 10] = 1
    """1: the centre; 10: the mean over corners, centre and their mirror images."""
    batch_size: int = 128
    """Views that the network sees at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        require(self.batch_size >= self.crops, f"--batch-size is {self.batch_size}, it starts at {self.crops} here")


def main(options: Options) -> None:
    with ranks() as here:
        manifest, part, seconds = evaluate(options, here)
        answers, seconds = here.gather_answers(part), max(here.gather(seconds))
        if here.rank == 0:
            report(options, manifest, answers, seconds)


def evaluate(options: Options, here: Ranks) -> tuple[Manifest, Answers, float]:
    """This rank's share of the split, in its order, and the seconds it took."""
    device = rank_device(options.device)
    model, state = checkpoint.load_model(options.checkpoint, device)
    loader = open_loader(
        options.data,
        options.split,
        options.batch_size // options.crops,
        AUGMENTS[state["augment"]].for_evaluation(options.crops),
        device,
        options.backend,
        here.rank,
        here.world_size,
        training=False,
    )
    checkpoint.check_classes(state, options.checkpoint, [c.wnid for c in loader.manifest.classes], options.data)
    batches = tqdm(loader, "evaluate", unit=" batches", dynamic_ncols=True, disable=here.rank > 0)
    start = time.perf_counter()
    answers = engine.answer(model, batches, device)
    return loader.manifest, answers, time.perf_counter() - start


def report(options: Options, manifest: Manifest, answers: Answers, seconds: float) -> None:
    names = [entry.name for entry in manifest.classes]
    cells = metrics.confusion(answers, len(names))
    keys, image_bytes = list_samples(manifest, options.split)
    found: dict[str, Any] = metrics.scores(answers, len(names)) | metrics.more_scores(answers, len(names))
    found |= {
        "data": str(options.data),
        "split": options.split,
        "crops": options.crops,
        "images_per_second": round(len(answers) / seconds, 1),
        "confused": [[names[true], names[taken], n] for true, taken, n in metrics.most_confused(cells)],
        "by_property": accuracy_by_property(answers, manifest, options.split, keys, image_bytes),
    }
    folder = options.checkpoint.parent
    write_atomically(folder / "metrics.json", json.dumps(found, indent=1).encode() + b"\n")
    write_csv(folder / "classes.csv", class_rows(manifest, metrics.per_class(answers, len(names))))
    write_csv(folder / "predictions.csv", image_rows(keys, manifest, answers))
    print_table(options, found)
    bins = metrics.reliability(answers)
    pictures = {
        "confusions": figures.confusion_matrix(cells, names),
        "reliability": figures.reliability_diagram(bins, found["calibration_error"]),
    }
    save(pictures, folder / "pictures")
    print(f"{found['images_per_second']:.0f} images/s; metrics.json, classes.csv, predictions.csv are in {folder}")


def print_table(options: Options, found: dict[str, Any]) -> None:
    print(f"{options.checkpoint} on {found['samples']} images of {options.data}, split {options.split}")
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


def image_rows(keys: Sequence[str], manifest: Manifest, answers: Answers) -> Iterable[Sequence[object]]:
    yield ["key", "true", "predicted", "rank", "confidence"]
    wnids = [entry.wnid for entry in manifest.classes]
    columns = (answers.labels, answers.predicted, answers.rank, answers.confidence)
    for key, label, predicted, rank, confidence in zip(keys, *columns, strict=True):
        yield [key, wnids[label], wnids[predicted], rank, round(float(confidence), 6)]


if __name__ == "__main__":
    run(main, Options, __doc__, errors=(AlexNetError, DataError))
