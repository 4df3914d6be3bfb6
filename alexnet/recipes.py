"""Training recipes as data. Every field is an option of ``train.py``. Sources are in docs/recipes.md."""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import tyro

from alexnet.errors import AlexNetError

RecipeName = Literal["demo", "paper", "source2012", "torchvision", "modern", "small"]
Steps = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Recipe:
    """A training recipe. Raises ValueError if a value is out of range."""

    variant: Literal["paper", "ungrouped", "source2012", "one_weird_trick", "bn"]
    """The network."""
    augment: str
    """The augmentation, a name in pipelines.AUGMENTS."""
    epochs: int
    """Passes over the train images; 0: as many as make the given number of steps."""
    batch_size: int
    """Images per step, over all ranks."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])]
    """The highest rate of the schedule."""
    schedule: Literal["plateau", "cosine", "steps"]
    """plateau: a tenth when validation stops improving, three times. cosine: down to zero. steps: by rate-steps."""
    steps: int = 0
    """Steps of the run, rounded up to whole epochs, if epochs is 0."""
    rate_steps: Steps = ()
    """Pairs of an epoch and a factor: from this epoch on, the rate is the learning rate times this factor."""
    conv1_steps: Steps = ()
    """The same for the first layer, which follows the schedule until the first pair; 0 freezes it."""
    bias_rate_factor: float | None = None
    """The rate of biases is the learning rate times this, in the whole run; none: the same rate as weights."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises from zero; a shorter run ends below the full rate."""
    update: Literal["torch", "paper"] = "torch"
    """torch: as in torch.optim.SGD. paper: rate and weight decay inside the velocity."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: Literal["all", "weights"] = "all"
    """Which parameters weight decay applies to; weights: neither biases nor batch normalisation."""
    label_smoothing: float = 0.0
    dropout: float = 0.5
    average_decay: float = 0.0
    """Decay per step of an exponential moving average (EMA) of the weights, to evaluate and save; 0: no EMA."""
    late_augment: str = ""
    """The augmentation from late-augment-epoch on; if empty, it does not change."""
    late_augment_epoch: int = 0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 on a CPU. fp16: with loss scaling."""

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (0, 10_000),
            "steps": (0, 1_000_000_000),
            "batch_size": (2, 1_000_000),
            "learning_rate": (0.0, 100.0),
            "bias_rate_factor": (0.0, 100.0),
            "warmup_epochs": (0.0, 10_000.0),
            "momentum": (0.0, 0.999),
            "weight_decay": (0.0, 1.0),
            "label_smoothing": (0.0, 0.9),
            "dropout": (0.0, 0.9),
            "average_decay": (0.0, 0.999999),
            "late_augment_epoch": (0, 10_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}, it goes from {low} to {high}")
        if not self.epochs and not self.steps:
            raise ValueError("epochs is 0, and so is steps: give one of them")
        for name in ("rate_steps", "conv1_steps"):
            pairs = getattr(self, name)
            if list(pairs) != sorted(pairs) or any(epoch < 0 or factor < 0 for epoch, factor in pairs):
                raise ValueError(
                    f"{name} is {pairs}: pairs of an epoch and a factor, none negative, in order of epochs"
                )

    def with_epochs(self, steps_per_epoch: int) -> "Recipe":
        """Return the recipe with the number of epochs that its ``steps`` stand for."""
        return self if self.epochs else dataclasses.replace(self, epochs=math.ceil(self.steps / steps_per_epoch))

    def augment_at(self, epoch: int) -> str:
        """Return the name of the augmentation in that epoch, counted from 0."""
        return self.late_augment if self.late_augment and epoch >= self.late_augment_epoch else self.augment


def read_recipe(fields: dict[str, Any]) -> Recipe:
    """Return a recipe from its fields as read from JSON. Raises AlexNetError; for a wrong name it gives the nearest."""
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in set(fields) - set(known):
        near = ", ".join(difflib.get_close_matches(name, known)) or f"none of {', '.join(known)}"
        raise AlexNetError(f"a recipe has no field {name!r}; the nearest: {near}")
    try:
        return msgspec.convert(fields, Recipe)
    except msgspec.ValidationError as error:
        raise AlexNetError(f"not a recipe: {error}") from error


RECIPES: dict[RecipeName, Recipe] = {
    # Ten classes of drawings in minutes on two CPU cores.
    "demo": Recipe(
        "bn",
        "crop_flip",
        epochs=5,
        batch_size=32,
        learning_rate=0.02,
        schedule="cosine",
        warmup_epochs=1.5,
        dropout=0.2,
    ),
    # Hundreds to thousands of pictures, from scratch: chosen among few, docs/recipes.md.
    "small": Recipe(
        "bn",
        "strong",
        epochs=0,
        steps=6000,
        batch_size=32,
        learning_rate=0.01,
        schedule="cosine",
        warmup_epochs=2,
        decay="weights",
        label_smoothing=0.1,
        dropout=0.2,
    ),
    # Section 5 of the paper.
    "paper": Recipe(
        "paper", "paper", epochs=90, batch_size=128, learning_rate=0.01, schedule="plateau", update="paper"
    ),
    # The log at the end of layer-params-145.cfg.
    "source2012": Recipe(
        "source2012",
        "source2012",
        epochs=91,
        batch_size=128,
        learning_rate=0.01,
        schedule="steps",
        rate_steps=((25, 0.1), (51, 0.01), (79, 0.001)),
        conv1_steps=((67, 0.001), (72, 0.0)),
        bias_rate_factor=2.0,
        update="paper",
        decay="weights",
        late_augment="source2012_quiet",
        late_augment_epoch=67,
    ),
    # The reference script of torchvision: eight GPUs with 32 images each.
    "torchvision": Recipe(
        "one_weird_trick",
        "torchvision",
        epochs=90,
        batch_size=256,
        learning_rate=0.01,
        schedule="steps",
        rate_steps=((30, 0.1), (60, 0.01)),
        weight_decay=1e-4,
    ),
    # Designed to beat 60.43 % top-1 with one crop; not yet run on ImageNet.
    "modern": Recipe(
        "bn",
        "modern",
        epochs=90,
        batch_size=1024,
        learning_rate=0.08,
        schedule="cosine",
        warmup_epochs=5,
        decay="weights",
        label_smoothing=0.1,
        average_decay=0.9995,
        precision="bf16",
    ),
}
