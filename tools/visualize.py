"""Draw what a checkpoint has learned into pictures/ beside it.

    python tools/visualize.py runs/demo/best.pt --data data/demo/shards

filters.png: the kernels of conv1. activations.png: each conv layer's answer to one image. curves.png: the training.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import webdataset

from alexnet import AlexNetError, checkpoint, figures
from alexnet.log import read_log
from pipelines import DataError, load_manifest
from pipelines.images import read_file, read_member
from pipelines.preprocess import Preparation
from tools.pictures import save
from tools.terminal import run


@dataclass(frozen=True)
class Options:
    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run."""
    data: Path = Path("data/demo/shards")
    """A shard folder; the first image of its split val is shown to the network."""
    image: Path | None = None
    """Show this picture to the network instead."""


def main(options: Options) -> None:
    model, state = checkpoint.load_model(options.checkpoint, torch.device("cpu"))
    image, title = named_image(options.image) if options.image else first_image(options.data)
    preparation = Preparation(state["augment"], state["image_size"], state["statistics"], state.get("mean_image"))
    view = preparation.view(image)
    pictures = {
        "filters": figures.conv1_filters(model),
        "activations": figures.activation_maps(model, preparation.tensor(view)[None], view / 255, title),
    }
    log = options.checkpoint.with_name("log.jsonl")
    if log.is_file():
        pictures["curves"] = figures.training_curves(read_log(log))
    save(pictures, options.checkpoint.with_name("pictures"))


def named_image(path: Path) -> tuple[np.ndarray, str]:
    try:
        return read_file(path).pixels, path.name
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def first_image(data: Path) -> tuple[np.ndarray, str]:
    """The first image of the split val, and what it shows."""
    manifest = load_manifest(data)
    shard = data / manifest.split("val").shards[0].path
    sample = next(iter(webdataset.WebDataset(str(shard), shardshuffle=False)))
    name = manifest.classes[int(sample["cls"])].name
    return read_member(sample[manifest.image.extension], manifest.image), f"{sample['__key__']}: {name}"


if __name__ == "__main__":
    run(main, Options, __doc__, errors=(AlexNetError, DataError))
