"""Learning of the networks of 2012 at their published rate: each memorises 32 crops of two photographs in 200 steps.

    python -m benchmarks.learning                    # benchmarks/results/learning.json and docs/learning.png

Rate 0.01, momentum 0.9, decay 0.0005, dropout 0.5 and 1000 classes, as published; each crop is a class of its own. The
networks of 2012 see pixels on the 0..255 scale less their mean, as their initial weights expect; bn sees them divided
by their standard deviation. The photographs are scikit-learn's samples china.jpg and flower.jpg.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from alexnet import RECIPES, AlexNet
from alexnet.engine import TrainStep, find_device, forward
from alexnet.optim import Schedule, make_optimizer
from alexnet.recipes import RecipeName
from pipelines.files import write_atomically
from pipelines.terminal import in_range, require, run_command

PHOTOGRAPHS = 32
CHECK_STEPS = 20
RECIPE_OF: dict[str, RecipeName] = {"paper": "paper", "source2012": "source2012", "bn": "demo"}


@dataclass(frozen=True)
class Options:
    variants: tuple[str, ...] = tuple(RECIPE_OF)
    steps: int = 200
    seed: int = 0
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    json: Path = Path("benchmarks/results/learning.json")
    picture: Path = Path("docs/learning.png")

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)
        unknown = set(self.variants) - set(RECIPE_OF)
        require(not unknown, f"--variants has {', '.join(unknown)}, known: {', '.join(RECIPE_OF)}")


@dataclass(frozen=True)
class CurvePoint:
    step: int
    loss: float
    right: int | None
    """Photographs predicted correctly, without dropout; every CHECK_STEPS steps."""


def photographs(seed: int = 0) -> Tensor:
    """Return 32,3,224,224 float32: random crops of the two in turn, on the 0..255 scale, less their mean colour."""
    from sklearn.datasets import load_sample_images

    generator, sources = np.random.default_rng(seed), load_sample_images().images
    crops = []
    for number in range(PHOTOGRAPHS):
        source = sources[number % len(sources)]
        y, x = (generator.integers(size - 223) for size in source.shape[:2])
        crops.append(source[y : y + 224, x : x + 224].astype(np.float32))
    pixels = np.stack(crops)
    return torch.from_numpy(pixels - pixels.mean((0, 1, 2))).permute(0, 3, 1, 2)  # channels-last


def learn(
    variant: str, steps: int, device: torch.device, seed: int = 0, precision: Any = "fp32"
) -> Iterator[CurvePoint]:
    """Train the variant on all photographs at each step. Yield a point of its curve after each."""
    torch.manual_seed(seed)
    recipe = replace(RECIPES[RECIPE_OF[variant]], learning_rate=0.01, dropout=0.5, precision=precision, warmup_epochs=0)
    model = AlexNet(variant, 1000, recipe.dropout)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, recipe)
    Schedule(recipe, steps_per_epoch=steps).set_rate(optimizer, 0)  # the first epoch's rate throughout
    step = TrainStep(model, optimizer, recipe, device)
    images = photographs(seed).to(device)
    scale: Any = {"bn": images.std(), "source2012": 1.1}.get(variant, 1.0)
    images, labels = images / scale, torch.arange(PHOTOGRAPHS, device=device)
    for number in range(1, steps + 1):
        loss = step(images, labels).item()  # every step is drawn; a benchmark of learning, not of speed
        right = None
        if number % CHECK_STEPS == 0:
            with torch.inference_mode():
                predicted = forward(model.eval(), images, precision, device).argmax(dim=1)
            right = int((predicted == labels).sum())
            model.train()
        yield CurvePoint(number, loss, right)


def draw(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, right = figure.subplots(1, 2)
    for variant, entries in curves.items():
        loss.plot([e["step"] for e in entries], [e["loss"] for e in entries], label=variant, linewidth=1)
        checked = [e for e in entries if e["right"] is not None]
        right.plot([e["step"] for e in checked], [e["right"] for e in checked], "o-", label=variant, ms=3)
    loss.set(xlabel="step", ylabel="training loss, with dropout", yscale="log")
    right.set(xlabel="step", ylabel=f"of {PHOTOGRAPHS} photographs right, without dropout", ylim=(0, PHOTOGRAPHS + 1))
    loss.legend()
    return figure


def main(options: Options) -> None:
    device = find_device(options.device)
    curves: dict[str, list[dict[str, Any]]] = {}
    settings = {"rate": 0.01, "photographs": PHOTOGRAPHS, "seed": options.seed, "torch": torch.__version__}
    result = {"benchmark": "learning", "device": str(device), **settings, "curves": curves}
    for variant in options.variants:
        steps = tqdm(learn(variant, options.steps, device, options.seed), variant, options.steps, dynamic_ncols=True)
        curves[variant] = []
        for progress in steps:
            curves[variant].append(asdict(progress))
            if progress.right is not None:
                print(f"{variant}, step {progress.step}: loss {progress.loss:.3f}, {progress.right} right")
                write_atomically(options.json, json.dumps(result).encode() + b"\n")
    draw(curves).savefig(options.picture, dpi=110)
    print(f"written to {options.json} and {options.picture}")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
