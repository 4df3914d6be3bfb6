"""How well recipes learn small sets of pictures from scratch, compared with a random forest on hand-made features.

    python -m benchmarks small --json benchmarks/results/small.json

A seed chooses the pictures, the split by group, the initial weights and the augmentation; all methods see the same
split. A network is evaluated once, after its last epoch: no epoch is chosen by looking at the test pictures.
Results already in the JSON file are kept, so that an interrupted command goes on where it stopped.
"""

import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from alexnet import RECIPES, AlexNet, Recipe
from alexnet.ema import EMA
from alexnet.engine import TrainStep, find_device, predict
from alexnet.metrics import scores
from alexnet.optim import Schedule, make_optimizer
from benchmarks.small_forest import forest
from benchmarks.small_sets import SETS, SetName
from pipelines import AUGMENTS, open_loader
from pipelines.files import write_atomically
from pipelines.loader import Loader
from pipelines.terminal import require
from tools import shard_imagenet

TEST_SHARE = 0.3
# What was tried besides recipes by their names: fields of a recipe that differ from ``small``.
MILD: dict[str, Any] = {"epochs": 60, "augment": "modern", "average_decay": 0.99}
VARIATIONS: dict[str, dict[str, Any]] = {
    "batch 16": MILD | {"batch_size": 16, "learning_rate": 0.005},
    "batch 32": MILD,
    "batch 32, strong augmentation": MILD | {"augment": "strong"},
    "batch 32, strong augmentation, no EMA": {"epochs": 60},
    "small, no jitter": {"epochs": 60, "augment": "torchvision"},
    "small, decay 0.01": {"epochs": 60, "weight_decay": 0.01},
    "small, decay 0.03": {"epochs": 60, "weight_decay": 0.03},
    "small, decay 0.1": {"epochs": 60, "weight_decay": 0.1},
    "small, rate 0.02, decay 0.03": {"epochs": 60, "learning_rate": 0.02, "weight_decay": 0.03},
    "small, rate 0.03": {"epochs": 60, "learning_rate": 0.03},
    "batch 32, rate 0.02, decay 0.01": MILD | {"learning_rate": 0.02, "weight_decay": 0.01},
    "batch 32, rate 0.02, decay 0.005, plain crops, no smoothing": MILD
    | {"learning_rate": 0.02, "weight_decay": 0.005, "augment": "crop_flip", "label_smoothing": 0.0},
}


@dataclass(frozen=True)
class SmallOptions:
    """How well recipes learn small sets of pictures, compared with a random forest on hand-made features."""

    sets: tuple[SetName, ...] = ("surfaces", "stamps", "cells")
    methods: tuple[str, ...] = ("forest", "demo", "small")
    """forest, names of recipes, and variations."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    side: Literal[224, 112] = 224
    """112: pictures and network of half the width and height, to try more in the same time."""
    epochs: int | None = None
    """Epochs instead of the recipe's own; the demo's stay 5."""
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: int = 1
    folder: Path = Path("data/small")
    """Downloads, and shards while they are needed."""
    json: Path | None = None
    """Write the results here after each, and keep those that are there."""

    def __post_init__(self) -> None:
        unknown = set(self.methods) - {"forest", *RECIPES, *VARIATIONS}
        require(not unknown, f"--methods has {', '.join(unknown)}, known: forest, {', '.join([*RECIPES, *VARIATIONS])}")
        require(self.threads >= 1, "--threads starts at 1")


def run_small(options: SmallOptions) -> Iterator[dict]:
    torch.set_num_threads(options.threads)
    kept = json.loads(options.json.read_text())["results"] if options.json and options.json.exists() else []
    results = {_key(row): row for row in kept}
    for name, seed, method in product(options.sets, options.seeds, options.methods):
        recipe = None if method == "forest" else recipe_of(method, options)
        row = {"set": name, "seed": seed, "method": method, "side": options.side, "epochs": recipe and recipe.epochs}
        if _key(row) in results:
            continue
        shards, start = make_shards(name, seed, options), time.perf_counter()
        found = learn(shards, recipe, options, seed) if recipe else forest(shards, seed)
        results[_key(row)] = row | found | {"seconds": round(time.perf_counter() - start, 1)}
        print(json.dumps(results[_key(row)]), flush=True)
        if options.json:
            write_atomically(options.json, json.dumps({"results": [*results.values()]}, indent=1).encode())
    rows = [*results.values()]
    about = {"precision": options.precision, "threads": options.threads}
    yield {"benchmark": "small", **about, "rows": [], "diagnosis": summary(rows), "results": rows}


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in ("set", "seed", "method", "side", "epochs")])


def summary(results: list[dict[str, Any]]) -> list[str]:
    """Return a line for each set and method: top-1 and its lead over the forest, with standard errors over seeds.

    The lead is the mean of differences on the same seed, that is, on the same pictures and split.
    """
    forests = {(row["set"], row["side"], row["seed"]): row["top1"] for row in results if row["method"] == "forest"}
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in results:
        found = groups[row["set"], row["side"], row["method"], row["epochs"]]
        forest_top1 = forests.get((row["set"], row["side"], row["seed"]))
        for name in ("top1", "ten_crops"):
            if name in row:
                found[name].append(100 * row[name])
                if forest_top1 is not None and row["method"] != "forest":
                    found[f"{name} less the forest's"].append(100 * (row[name] - forest_top1))
    lines = []
    for (name, side, method, epochs), found in sorted(groups.items(), key=str):
        title = f"{name}, {side} pixels, {method}" + (f", {epochs} epochs" if epochs else "")
        lines.append(f"{title}: {', '.join(map(_mean, found, found.values()))}; {len(found['top1'])} seeds")
    return lines


def _mean(name: str, values: list[float]) -> str:
    """Return the mean of percentages, with its standard error if there are several."""
    error = f" +- {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{name} {statistics.mean(values):.1f}{error}"


def make_shards(name: SetName, seed: int, options: SmallOptions) -> Path:
    """Return the shards of the set as the seed splits it, after making them if they are missing."""
    out, rng = options.folder / f"{name}-{seed}-{options.side}", np.random.default_rng([seed, 0])
    if (out / "shards" / "manifest.json").exists():
        return out / "shards"
    shutil.rmtree(out, ignore_errors=True)
    pictures = list(SETS[name](options.folder, seed))
    held_out = held_out_groups([(picture.label, picture.group) for picture in pictures], rng)
    for number, (label, group, image) in enumerate(pictures):
        path = out / "images" / ("val" if group in held_out else "train") / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, compress_level=1)
    how: dict[str, Any] = {"size": options.side * 8 // 7, "quality": 95, "workers": 1, "seed": seed}
    shard_imagenet.main(shard_imagenet.Options(out / "images", out / "shards", **how))
    return out / "shards"


def held_out_groups(pairs: list[tuple[str, str]], rng: np.random.Generator) -> set[str]:
    """Return TEST_SHARE of the groups of each class, of pairs of class and group; a group has its commonest class."""
    labels: dict[str, list[str]] = defaultdict(list)
    for label, group in pairs:
        labels[group].append(label)
    by_class: dict[str, list[str]] = defaultdict(list)
    for group, found in sorted(labels.items()):
        by_class[statistics.mode(found)].append(group)
    chosen = [rng.permutation(groups)[: round(TEST_SHARE * len(groups))] for groups in by_class.values()]
    return set(np.concatenate(chosen).tolist())


def recipe_of(method: str, options: SmallOptions) -> Recipe:
    fields: dict[str, Any] = {"precision": options.precision}
    fields |= {"epochs": options.epochs} if options.epochs and method != "demo" else {}
    if method in VARIATIONS:
        return replace(RECIPES["small"], **VARIATIONS[method] | fields)
    return replace(RECIPES[method], **fields)  # type: ignore[index]


def learn(shards: Path, recipe: Recipe, options: SmallOptions, seed: int) -> dict[str, Any]:
    """Train by the recipe to its end. Return top-1 of the weights to evaluate, and of those in training.

    ``train_top1_by_epoch`` counts the augmented train images as each step met them, before its update.
    """
    device = find_device("cpu")
    torch.manual_seed(seed)
    how: dict[str, Any] = {"device": device, "seed": seed, "threads": options.threads}
    augment = replace(AUGMENTS[recipe.augment], size=options.side)
    loader = open_loader(shards, "train", recipe.batch_size, augment, **how)
    recipe = recipe.with_epochs(len(loader))
    tests = open_loader(shards, "val", 64, augment, **how)
    ten = open_loader(shards, "val", 16, augment.for_evaluation(crops=10), training=False, **how)
    kind = AlexNet if options.side == 224 else HalfAlexNet
    model = kind(recipe.variant, len(loader.manifest.classes), recipe.dropout)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, len(loader))
    ema = EMA(model, recipe.average_decay) if recipe.average_decay else None
    step = TrainStep(model, optimizer, recipe, device, ema=ema)
    curve: list[float] = []
    known: list[float] = []
    for number in tqdm(range(recipe.epochs), leave=False, unit=" epochs", dynamic_ncols=True):
        model.train()
        losses: list[Tensor] = []
        for done, batch in enumerate(loader):
            schedule.set_rate(optimizer, number * len(loader) + done)
            losses.append(step(batch.images, batch.labels))
        curve.append(round(float(torch.stack(losses).mean()), 3))
        known.append(round(step.take_right() / (len(losses) * recipe.batch_size), 2))
    averaged = ema.model if ema else model
    nets = {"raw_top1": (model, tests), "top1": (averaged, tests), "ten_crops": (averaged, ten)}
    found = {name: top1(*pair, recipe, device) for name, pair in nets.items()}
    samples = {split: loader.manifest.split(split).samples for split in ("train", "val")}
    curves = {"loss_by_epoch": curve, "train_top1_by_epoch": known}
    return found | {"steps": recipe.epochs * len(loader), **samples, **curves}


def top1(model: nn.Module, tests: Loader, recipe: Recipe, device: torch.device) -> float:
    return round(scores(predict(model, tests, device, recipe.precision), len(tests.manifest.classes))["top1"], 4)


class HalfAlexNet(AlexNet):
    """An AlexNet for N,3,112,112, whose maps of 2 x 2 stand for those of 6 x 6: fc6 learns as fast as the whole one's.

    That is fc6 with each input nine times, which 1024 inputs equal if they are tripled and the weights a third.
    """

    def __init__(self, variant: str, num_classes: int, dropout: float) -> None:
        super().__init__(variant, num_classes, dropout)
        place = next(i for i, layer in enumerate(self.classifier) if isinstance(layer, nn.Linear))
        self.classifier[place] = layer = nn.Linear(1024, 4096)
        with torch.no_grad():
            layer.weight.div_(3)
            layer.bias.div_(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(3 * self.features(images).flatten(1))
