"""Draw what a checkpoint has learned into pictures/ beside it.

    python tools/visualize.py runs/demo

The files are called NAME.png:

    filters      the kernels of conv1 (figure 3 of the paper)
    activations  each conv layer's activations for an image
    answers      images with the five likeliest classes (figure 4, left)
    neighbours   train images with the nearest features to a val image's (figure 4, right)
    patches      the patches of val images that excite channels most
    saliency     what a prediction depends on: occlusion (Zeiler and Fergus 2014) and Grad-CAM
    features     val images on the plane of their features' first two principal components
    mistakes     val images predicted wrongly, the most certain first; mistakes.csv and thumbnails.png have more of them
    curves       the training: loss, accuracy, learning rate, images/s, data wait
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from alexnet import AlexNet, AlexNetError, checkpoint, figures, inspection, metrics
from alexnet.engine import find_device
from alexnet.figures import Shown, shortened
from alexnet.figures.saving import save_pictures
from alexnet.log import read_lines
from alexnet.mistakes import Mistake, most_certain, write_mistakes
from alexnet.run_reader import find_checkpoint, find_data
from pipelines import DataError, open_loader
from pipelines.images.picture import read_file
from pipelines.preprocess import Preparation
from pipelines.shards.gallery import Gallery
from pipelines.shards.index import list_samples
from pipelines.terminal import counting, in_range, run_command

LAYERS = tuple(f"conv{i}" for i in range(1, 6))
MOST_FEATURES = 2000  # images in features.png
DRAWN_MISTAKES = 30


@dataclass(frozen=True)
class Options:
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder (its best.pt, else its last.pt), or a checkpoint."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="SHARDS")] = None
    """A shard folder or a URL; by default the one of the run's training."""
    cache: Path | None = None
    """Read the shards through this folder, as in training."""
    cache_gb: float | None = None
    images: tuple[Path, ...] = ()
    """Pictures whose activations are drawn, each in a file of its own; by default a val image."""
    searched: int = 50_000
    """How many train images to search for neighbours: the first ones, which are in random order."""
    batch_size: int = 64
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        in_range("batch_size", self.batch_size, 1)
        in_range("searched", self.searched, 1)


def main(options: Options) -> None:
    device = find_device(options.device)
    options = replace(options, checkpoint=find_checkpoint(options.checkpoint))
    model, state = checkpoint.load_model(options.checkpoint, device)
    painter = Painter(options, model, state, device)
    folder = options.checkpoint.with_name("pictures")
    for paint in (painter.network, painter.single_images, painter.searches):
        save_pictures(paint(), folder)
    save_pictures(training(options.checkpoint), folder)


def training(path: Path) -> dict[str, Figure]:
    log = path.with_name("log.jsonl")
    return {"curves": figures.training_curves(read_lines(log))} if log.is_file() else {}


class Painter:
    """A painter of the figures that need the network and the images."""

    def __init__(self, options: Options, model: AlexNet, state: dict[str, Any], device: torch.device) -> None:
        self._options, self._model, self._device = options, model, device
        self._preparation = Preparation.of(state)
        self._data = options.data or find_data(options.checkpoint, state)
        self._cache: dict[str, Any] = {"cache": options.cache, "cache_gb": options.cache_gb}
        self._val = Gallery(self._data, "val", self._preparation, **self._cache)
        wnids = [entry.wnid for entry in self._val.manifest.classes]
        checkpoint.check_classes(state, options.checkpoint, wnids, self._val.manifest.location)

    def network(self) -> dict[str, Figure]:
        """Draw the kernels, and the activations for ``--images`` or for a val image."""
        pictures = {"filters": figures.conv1_filters(self._model)}
        for i, (view, title) in enumerate(self._asked()):
            name = "activations" if i == 0 else f"activations-{i + 1}"
            pictures[name] = figures.activation_maps(self._layers([view]), view, title)
        return pictures

    def _asked(self) -> Iterator[tuple[np.ndarray, str]]:
        for path in self._options.images:
            try:
                yield self._preparation.crop(read_file(path).pixels), path.name
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        if not self._options.images:
            shown = self._shown(self._val, self._val.various(1)[0])
            yield shown.picture, shown.name

    def single_images(self) -> dict[str, Figure]:
        eight = [self._val[number] for number in self._val.various(8)]
        probabilities = self._layers([view for view, _ in eight])["logits"].softmax(1).cpu()
        best = probabilities.topk(min(5, probabilities.shape[1]))
        predictions = [
            [(self._val.name(i), p, i == label) for p, i in zip(values, indices, strict=True)]
            for (_, label), values, indices in zip(eight, best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        shown = [Shown(view, self._val.name(label)) for view, label in eight]
        return {"answers": figures.five_answers(shown, predictions), "saliency": self._saliency(self._val.various(5))}

    def _saliency(self, numbers: list[int]) -> Figure:
        """Draw saliency for the class that the network predicts."""
        images, falls, heats = [], [], []
        for number in numbers:
            view, label = self._val[number]
            image = self._tensor([view])
            taken = int(inspection.layers(self._model, image)["logits"].argmax())
            said, true = (shortened(self._val.name(i), 16) for i in (taken, label))
            images.append(Shown(view, said if taken == label else f"{said}; it is {true}", wrong=taken != label))
            falls.append(inspection.occlusion(self._model, image, taken).numpy())
            heats.append(inspection.grad_cam(self._model, image, taken).numpy())
        return figures.saliency(images, falls, heats)

    def searches(self) -> dict[str, Figure]:
        """Draw the figures that need a pass over all of val, and one over train."""
        patches = {name: inspection.Patches() for name in LAYERS}
        every = -(-len(self._val) // MOST_FEATURES)
        features, start = [], 0  # of the batch
        scored = []
        for layers in self._passing("val", len(self._val)):
            scored.append(metrics.score_batch(layers["logits"].float(), layers["labels"]))
            for name, found in patches.items():
                found.add(layers[name])
            hidden = layers["hidden"]
            features.append(hidden[-start % every :: every].cpu())  # images 0, every, 2 every, ...
            start += len(hidden)
        return {
            "patches": self._patches(patches),
            "features": self._features(torch.cat(features), every),
            "neighbours": self._neighbours(),
            "mistakes": self._mistakes(metrics.collect(scored)),
        }

    def _mistakes(self, predictions: metrics.Predictions) -> Figure:
        """Draw the most certain mistakes. Write more of them, with thumbnails, for the report."""
        numbers, classes = most_certain(predictions), self._val.manifest.classes
        keys, _ = list_samples(self._val.manifest, "val")
        found, shown = [], []
        for number in numbers:
            view, label = self._val[number]
            predicted, probability = int(predictions.predicted[number]), float(predictions.confidence[number])
            found.append(Mistake(keys[number], classes[label].wnid, classes[predicted].wnid, probability))
            said, true = (shortened(self._val.name(i), 22) for i in (predicted, label))
            shown.append(Shown(view, f"{said}, {100 * probability:.0f} %\nis {true}"))
        write_mistakes(self._options.checkpoint.parent, found, [one.picture for one in shown])
        return figures.mistakes(shown[:DRAWN_MISTAKES], total=int((~predictions.right).sum()), searched=len(self._val))

    def _patches(self, patches: dict[str, inspection.Patches], channels: int = 9) -> Figure:
        rows = {}
        for name, found in patches.items():
            field = inspection.receptive_field(self._model, name)
            chosen = found.most_selective(channels)
            rows[name] = [(i, [self._cut(field, *place) for place in found.strongest(i)]) for i in chosen]
        return figures.exciting_patches(rows, len(self._val))

    def _cut(self, field: inspection.Field, number: int, row: int, column: int) -> np.ndarray:
        """Return the part of a val image that one place of a layer sees, size,size,3, grey beyond its edges."""
        view, _ = self._val[number]
        beyond = [(max(0, -field.first), field.size)] * 2  # wider than need be
        padded = np.pad(view, [*beyond, (0, 0)], constant_values=figures.GREY)
        top, left = (max(0, field.first) + place * field.stride for place in (row, column))
        return padded[top : top + field.size, left : left + field.size]

    def _neighbours(self, queries: int = 5) -> Figure:
        chosen, train = self._val.various(queries), Gallery(self._data, "train", self._preparation, **self._cache)
        search = inspection.Neighbours(self._layers([self._val[number][0] for number in chosen])["hidden"])
        searched = min(self._options.searched, len(train))
        for layers in self._passing("train", searched):
            search.add(layers["hidden"])
        shown = [self._shown(self._val, number) for number in chosen]
        labels = [self._val[number][1] for number in chosen]
        rows = [
            [self._shown(train, number, beside=label) for number in row]
            for label, row in zip(labels, search.nearest().tolist(), strict=True)
        ]
        title = f"val images, and the train images (of {searched}) with the nearest features; red: of another class"
        return figures.nearest_neighbours(shown, rows, title)

    def _features(self, features: Tensor, every: int) -> Figure:
        places, share = inspection.principal_plane(features)
        labels, thumbnails = [], []
        for number in range(0, len(self._val), every):
            view, label = self._val[number]
            labels.append(label)
            thumbnails.append(view[::4, ::4].copy())
        names = [entry.name for entry in self._val.manifest.classes]
        return figures.feature_map(places.numpy(), np.array(labels), names, thumbnails, share=share)

    def _passing(self, split: str, count: int) -> Iterator[dict[str, Tensor]]:
        """Yield the layers' activations for the first ``count`` images of a split, in order, batch by batch."""
        augment = self._preparation.evaluation()
        how: dict[str, Any] = {"device": self._device, "training": False} | self._cache
        loader = open_loader(self._data, split, self._options.batch_size, augment, **how)
        batches = islice(loader, -(-count // self._options.batch_size))
        for batch in counting(batches, f"features of {split}", count):
            valid = min(batch.valid, count)
            count -= valid
            found = inspection.layers(self._model, batch.images.float()) | {"labels": batch.labels}
            yield {name: values[:valid] for name, values in found.items()}

    def _shown(self, gallery: Gallery, number: int, beside: int | None = None) -> Shown:
        """Return a picture and its class, marked if that is not the class ``beside``."""
        view, label = gallery[number]
        return Shown(view, gallery.name(label), wrong=beside not in (None, label))

    def _layers(self, views: list[np.ndarray]) -> dict[str, Tensor]:
        return inspection.layers(self._model, self._tensor(views))

    def _tensor(self, views: list[np.ndarray]) -> Tensor:
        """Return the crops as N,3,224,224, normalised, on the device."""
        return torch.stack([self._preparation.tensor(view) for view in views]).to(self._device)


if __name__ == "__main__":
    run_command(main, Options, __doc__, errors=(AlexNetError, DataError))
