"""Computations on what a network has learned: activations, nearest neighbours, exciting patches, saliency.

A search over a dataset keeps only the best so far: its memory does not grow with the number of images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.model import AlexNet

DEAD = 1e-6  # activations up to here count as none
ALIKE = 0.95  # correlation of two activation maps that cannot be told apart


@torch.inference_mode()
def layers(model: AlexNet, images: Tensor) -> dict[str, Tensor]:
    """Return activations by name: conv1 to conv5 after ReLU, N,C,H,W; hidden (the last), N,4096; logits, N,num_classes.

    ``images`` N,3,224,224, normalised. The model must be in evaluation mode.
    """
    found: dict[str, Tensor] = {}
    maps = images
    for module in model.features:
        maps = module(maps)
        if isinstance(module, nn.ReLU):
            found[f"conv{len(found) + 1}"] = maps
    found["hidden"] = model.classifier[:-1](maps.flatten(1))
    found["logits"] = model.classifier[-1](found["hidden"])
    return found


def distinct_maps(maps: Tensor, count: int) -> list[int]:
    """Return the channels of ``count`` strong activation maps (C,H,W) that differ from each other, the strongest first.

    Each next one has the largest product of its mean and of 1 - r, where r is its highest correlation with one chosen
    before. Channels that are zero everywhere, or have a correlation above ``ALIKE``, are left out: there may be fewer.
    """
    flat = maps.float().flatten(1)
    strength = flat.mean(1)
    centred = F.normalize(flat - strength[:, None], dim=1)
    highest, chosen = torch.zeros_like(strength), list[int]()
    for _ in range(min(count, len(flat))):
        gain = strength * (1 - highest) * (highest < ALIKE)
        best = int(gain.argmax())
        if gain[best] <= DEAD:
            break
        chosen.append(best)
        highest = torch.maximum(highest, centred @ centred[best])
        highest[best] = 1
    return chosen


class Leaders:
    """A running top-k: the ``count`` largest values of each row over any number of batches, with their numbers."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[Tensor] = []

    def offer(self, values: Tensor, *numbers: Tensor) -> None:
        """Add a batch of values and of numbers that belong to them, each R,N."""
        columns: list[Tensor] = [values, *numbers]
        if self._kept:
            columns = [torch.cat(pair, dim=1) for pair in zip(self._kept, columns, strict=True)]
        best = columns[0].topk(min(self._count, columns[0].shape[1]), dim=1).indices
        self._kept = [column.gather(1, best) for column in columns]

    def result(self) -> list[Tensor]:
        """Return the values, largest first, and their numbers on the CPU: R,count each, fewer if fewer were offered."""
        return [column.cpu() for column in self._kept]


class Neighbours:
    """A search for the images whose features are nearest to the queries (Q,F), by Euclidean distance."""

    def __init__(self, queries: Tensor, count: int = 6) -> None:
        self._queries, self._leaders, self._images = queries.float(), Leaders(count), 0

    def add(self, features: Tensor) -> None:
        """Search the next N images, given their features N,F."""
        numbers = torch.arange(self._images, self._images + len(features), device=features.device)
        distances = torch.cdist(self._queries, features.float())  # Q,N
        self._leaders.offer(-distances, numbers.expand(len(distances), -1))
        self._images += len(features)

    def nearest(self) -> Tensor:
        """Return the numbers of the nearest images, Q,count, the nearest first."""
        return self._leaders.result()[1]


class Patches:
    """A search for the images that excite each channel of a layer most, and where: one place per image."""

    def __init__(self, count: int = 9) -> None:
        self._leaders, self._images, self._width = Leaders(count), 0, 1
        self._sum: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Search the next N images, given the layer's activations N,C,H,W."""
        peaks = maps.float().flatten(2).max(dim=2)  # N,C
        numbers = torch.arange(self._images, self._images + len(maps), device=maps.device)[:, None].expand_as(peaks[1])
        self._leaders.offer(peaks.values.T, numbers.T, peaks.indices.T)
        total = peaks.values.double().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._images, self._width = self._images + len(maps), maps.shape[3]

    def strongest(self, channel: int) -> list[tuple[int, int, int]]:
        """Return image number, row and column in the layer of the channel's strongest places, the strongest first.

        There are fewer than ``count`` if the channel is above zero in fewer images: any other place is no answer.
        """
        values, images, places = (column[channel].tolist() for column in self._leaders.result())
        found = zip(values, images, places, strict=True)
        return [(image, *divmod(place, self._width)) for value, image, place in found if value > DEAD]

    def most_selective(self, count: int) -> list[int]:
        """Return the channels whose highest activations exceed their mean over all images by the largest factor.

        Channels that share more than a third of their images with an earlier one are left out, so there may be fewer
        than ``count``.
        """
        assert self._sum is not None
        values, images, _ = self._leaders.result()
        contrast = values.double().mean(1) / (self._sum.cpu() / self._images).clamp(min=1e-12)
        chosen: dict[int, set[int]] = {}
        for channel in contrast.argsort(descending=True).tolist():
            own = set(images[channel].tolist())
            alive = values[channel, 0] > DEAD
            if alive and len(chosen) < count and all(len(own & other) <= len(own) / 3 for other in chosen.values()):
                chosen[channel] = own
        return list(chosen)


@dataclass(frozen=True)
class Field:
    """A layer's receptive field in pixels: place i sees ``size`` pixels from ``first + i * stride`` on.

    It may reach beyond the image.
    """

    size: int
    stride: int
    first: int


def receptive_field(model: AlexNet, layer: str) -> Field:
    """Return the receptive field of conv1 to conv5, after ReLU, along either side. Raises ValueError.

    Normalisation over neighbouring places is ignored: it counts as its centre.
    """
    size, stride, first, relus = 1, 1, 0, 0
    for module in model.features:
        if isinstance(module, nn.ZeroPad2d):
            first -= module.padding[0] * stride
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d):
            kernel, step, padding = (_one(getattr(module, name)) for name in ("kernel_size", "stride", "padding"))
            first -= padding * stride
            size += (kernel - 1) * stride
            stride *= step
        relus += isinstance(module, nn.ReLU)
        if f"conv{relus}" == layer:
            return Field(size, stride, first)
    raise ValueError(f"no layer {layer!r}")


def _one(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def grad_cam(model: AlexNet, image: Tensor, label: int) -> Tensor:
    """Return the Grad-CAM of a class, 224,224, from 0, on the maps before the last pooling (Selvaraju et al. 2017).

    Its unit is the logit's, so that images can be compared. ``image`` 1,3,224,224, normalised.
    """
    last = max(i for i, module in enumerate(model.features) if isinstance(module, nn.MaxPool2d))
    with torch.enable_grad():
        maps = model.features[:last](image).detach().requires_grad_()
        score = model.classifier(model.features[last:](maps).flatten(1))[0, label]
        (gradient,) = torch.autograd.grad(score, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps.detach()).sum(1, keepdim=True).relu()  # 1,1,13,13
    return F.interpolate(heat, image.shape[2:], mode="bilinear", align_corners=False)[0, 0].cpu()


@torch.inference_mode()
def occlusion(model: AlexNet, image: Tensor, label: int, box: int = 48, step: int = 22) -> Tensor:
    """Return, as 224,224, how far the class's logit falls if a grey square covers a pixel: the mean over such squares.

    Zeiler and Fergus 2014. ``image`` 1,3,224,224, normalised; grey is 0, the mean of the data.
    """
    size = image.shape[-1]
    corners = [(y, x) for y in range(0, size - box + 1, step) for x in range(0, size - box + 1, step)]
    covered = image.repeat(len(corners), 1, 1, 1)
    for one, (y, x) in zip(covered, corners, strict=True):
        one[:, y : y + box, x : x + box] = 0
    falls = model(image)[0, label] - model(covered)[:, label]
    total, times = torch.zeros(2, size, size)
    for (y, x), fall in zip(corners, falls.cpu(), strict=True):
        total[y : y + box, x : x + box] += fall
        times[y : y + box, x : x + box] += 1
    return total / times.clamp(min=1)


def principal_plane(features: Tensor) -> tuple[Tensor, float]:
    """Project features N,F on their first two principal components. Return N,2 and their share of the variance."""
    centred = features.float() - features.float().mean(0)
    _, deviations, components = torch.pca_lowrank(centred, q=min(6, *centred.shape), center=False, niter=4)
    share = (deviations[:2] ** 2).sum() / (centred**2).sum().clamp(min=1e-12)
    return centred @ components[:, :2], share.item()
