"""How fast is a training step of each network when it never waits for data, beside torchvision's alexnet, eager.

python -m benchmarks step
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import nn

from alexnet import RECIPES, VARIANTS, AlexNet
from alexnet.engine import TrainStep, compile_model, find_device
from alexnet.optim import make_optimizer
from benchmarks.timing import interleave, summarise
from tools.terminal import require

PEER = "torchvision alexnet, eager"


@dataclass(frozen=True)
class StepOptions:
    """Images a second of a training step, as a ratio to torchvision's alexnet under the same autocast."""

    batch_size: int = 1024 if torch.cuda.is_available() else 32
    steps: int = 30 if torch.cuda.is_available() else 2
    """Steps of each candidate in a round."""
    rounds: int = 5
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    json: Path | None = None
    """Write the result here too."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "rounds"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, it starts at 1")


def run_step(options: StepOptions) -> dict:
    """The settings and a row a candidate."""
    device = find_device(options.device)
    candidates = {PEER: train_steps(torchvision.models.alexnet(weights=None), options, device)}
    for variant in VARIANTS:
        model = AlexNet(variant).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        candidates[variant] = train_steps(compile_model(model, options.compile, device), options, device)
    rows = summarise(interleave(candidates, options.rounds), PEER)
    settings = {name: getattr(options, name) for name in ("batch_size", "steps", "rounds", "precision", "compile")}
    return {"benchmark": "step", "unit": "images/s", "device": str(device), **settings, "rows": rows}


def train_steps(model: nn.Module, options: StepOptions, device: torch.device) -> Callable[[], int]:
    """Runs steps on one batch of noise and waits for the last."""
    recipe = replace(RECIPES["paper"], precision=options.precision)
    step = TrainStep(model.to(device), make_optimizer(model, recipe), recipe, device)
    images = torch.randn(options.batch_size, 3, 224, 224, device=device)
    images = images.to(torch.float16 if device.type == "cuda" else torch.float32, memory_format=torch.channels_last)
    labels = torch.randint(1000, (options.batch_size,), device=device)

    def take() -> int:
        for _ in range(options.steps):
            loss = step(images, labels)
        loss.item()  # waits for the GPU
        return options.steps * options.batch_size

    return take
