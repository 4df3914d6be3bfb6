"""What is in these pictures? Five names with their probabilities for each.

python tools/predict.py runs/demo/best.pt cat.jpg dog.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from alexnet import AlexNet, AlexNetError, checkpoint
from alexnet.engine import find_device
from pipelines import DataError
from pipelines.images import read_file
from pipelines.preprocess import Preparation
from tools.terminal import run


@dataclass(frozen=True)
class Options:
    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run."""
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""


def main(options: Options) -> None:
    device = find_device(options.device)
    model, state = checkpoint.load_model(options.checkpoint, device)
    preparation = Preparation(state["augment"], state["image_size"], state["statistics"], state.get("mean_image"))
    unreadable = 0
    for path in options.pictures:
        try:
            image = preparation.tensor(preparation.view(read_file(path).pixels))
        except (DataError, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            unreadable += 1
            continue
        print(path)
        for name, probability in best_names(model, image[None].to(device), state["classes"]):
            print(f"  {100 * probability:6.2f} %  {name}")
    if unreadable:
        raise DataError(f"{unreadable} of {len(options.pictures)} pictures could not be read")


@torch.inference_mode()
def best_names(
    model: AlexNet, image: torch.Tensor, classes: list[list[str]], count: int = 5
) -> list[tuple[str, float]]:
    """The names of the likeliest classes and their probabilities. ``image`` 1,3,224,224, normalised."""
    best = model(image).softmax(dim=1)[0].topk(min(count, len(classes)))
    return [(classes[i][1], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


if __name__ == "__main__":
    run(main, Options, __doc__, errors=(AlexNetError, DataError))
