"""How each network is trained, as data. ``train.py`` shows every field as an option."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Raises ValueError for a value out of range."""

    variant: Literal["paper", "one_weird_trick", "bn"]
    """The network."""
    augment: str
    """What happens to an image; a name in pipelines.AUGMENTS."""
    epochs: int
    batch_size: int
    learning_rate: float
    """The highest rate of the schedule."""
    schedule: Literal["plateau", "cosine"]
    """plateau: a tenth, three times, when the validation error stops improving. cosine: down to zero."""
    warmup_epochs: float = 0.0
    """Over which the rate rises from zero; a shorter run ends on the way up."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    dropout: float = 0.5
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 on a CPU."""

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 10_000),
            "batch_size": (2, 1_000_000),
            "learning_rate": (0.0, 100.0),
            "warmup_epochs": (0.0, 10_000.0),
            "momentum": (0.0, 0.999),
            "weight_decay": (0.0, 1.0),
            "label_smoothing": (0.0, 0.9),
            "dropout": (0.0, 0.9),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, it goes from {low} to {high}")


RECIPES = {
    # Section 5 of the paper; the decay stands outside the velocity, as in torch's SGD.
    "paper": Recipe("paper", "paper", epochs=90, batch_size=128, learning_rate=0.01, schedule="plateau"),
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
}
