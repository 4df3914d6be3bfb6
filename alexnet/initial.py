"""Initial weights from a file: torchvision's AlexNet, or a checkpoint of ours (``train.py --init``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet import checkpoint
from alexnet.errors import AlexNetError
from alexnet.model import AlexNet
from alexnet.run_reader import find_checkpoint

LAST_LAYER = "classifier.6"  # in every variant
TORCHVISION = "torchvision's AlexNet"
# What torchvision's transforms do, as a checkpoint of ours would say it: Normalize's mean and std times 255.
TORCHVISION_PREPARATION = {
    "augment": "torchvision",
    "image_size": 256,
    "statistics": {
        "mean_rgb": (123.675, 116.28, 103.53),
        "std_rgb": (58.395, 57.12, 57.375),
        "eigenvalues": (0.0, 0.0, 0.0),
        "eigenvectors": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        "mean_image": None,
    },
}
# torchvision's file names no classes. Among 1000, these wnids stand at these places in ImageNet 2012 alone.
IMAGENET_PLACES = {0: "n01440764", 207: "n02099601", 388: "n02510455", 817: "n04285008", 999: "n15075141"}


@dataclass(frozen=True)
class Initial:
    """Weights to start from, the wnids of their classes (None: ImageNet 2012, as torchvision orders it), and
    ``preparation``, the entries of a checkpoint that say how images were prepared for them."""

    path: Path
    kind: str
    variant: str
    weights: dict[str, Tensor]
    wnids: list[str] | None
    preparation: dict[str, Any]

    def load_into(self, model: AlexNet, wnids: list[str]) -> str:
        """Load the weights into a network for the classes ``wnids``. Its last layer keeps its own, random weights if
        the classes are others or in another order. Return what was done, in words.

        Raises AlexNetError if the weights are of another variant, have a wrong shape, or are not finite.
        """
        if model.variant != self.variant:
            raise AlexNetError(
                f"{self.path} holds {self.kind}, a network of variant {self.variant}, and this run is of "
                f"{model.variant}: use --variant {self.variant}"
            )
        own, kept = model.state_dict(), self._fits(wnids)
        fresh = set() if kept else {name for name in own if name.startswith(LAST_LAYER + ".")}
        self._check(own, fresh)
        model.load_state_dict(own | {name: value for name, value in self.weights.items() if name not in fresh})
        layer = "its last layer too, as the classes are the same" if kept else f"a new last layer, {len(wnids)} classes"
        return f"initial weights from {self.path}, {self.kind}; {layer}"

    def _fits(self, wnids: list[str]) -> bool:
        """Return true if the last layer's outputs are these classes, in this order."""
        if self.wnids is not None:
            return self.wnids == wnids
        return len(wnids) == 1000 and all(wnids[place] == wnid for place, wnid in IMAGENET_PLACES.items())

    def _check(self, own: dict[str, Tensor], fresh: set[str]) -> None:
        """Raise AlexNetError, with the name of the first tensor that is missing, unknown, or not as in ``own``."""
        for name in own.keys() | self.weights.keys():
            found, expected = self.weights.get(name), own.get(name)
            if found is None or expected is None:
                fault = f"lacks {name}" if found is None else f"has {name!r:.80}, which {self.variant} does not have"
                raise AlexNetError(f"{self.path} {fault}: it is no state dict of this network")
            if name not in fresh and found.shape != expected.shape:
                shapes = f"{tuple(found.shape)}, and {self.variant} has {tuple(expected.shape)}"
                raise AlexNetError(f"{self.path}: {name} has the shape {shapes}")
            if found.is_floating_point() != expected.is_floating_point() or not bool(found.isfinite().all()):
                raise AlexNetError(f"{self.path}: {name} holds values that no trained network has")


def read_initial(path: Path) -> Initial:
    """Read weights from a run folder (best.pt, else last.pt), a checkpoint of ours, or torchvision's state dict.

    Raises AlexNetError.
    """
    path = find_checkpoint(path)
    state = checkpoint.read(path)
    if "format" not in state:
        return Initial(path, TORCHVISION, "one_weird_trick", _state_dict(state, path), None, TORCHVISION_PREPARATION)
    model, state = checkpoint.build_model(state, path)
    wnids = [wnid for wnid, _ in state["classes"]]
    return Initial(path, "a checkpoint of train.py", model.variant, model.state_dict(), wnids, state)


def _state_dict(state: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return ``state`` if it is a state dict. Raises AlexNetError."""
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise AlexNetError(f"{path} is neither a checkpoint of train.py nor a state dict, as torchvision's file is")
    return state
