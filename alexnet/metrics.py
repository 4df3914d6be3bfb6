"""Metrics of predictions: loss, accuracy with intervals, precision, recall, F1, calibration, confusions.

Five numbers are kept per image, so memory does not grow with the number of classes, and ranks have little to send. The
metrics are computed from them in float64, as scikit-learn computes them (tests/test_evaluate.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import AlexNetError

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv:1706.04599)
MAX_LOSS = 1e6  # of an image: a probability of zero would make it infinite, which JSON does not have


@dataclass(frozen=True)
class Predictions:
    """The predictions for N images.

    ``labels`` and ``predicted`` are the true and the predicted class, N int64. ``true_rank`` is the number of
    other classes whose logit the true one's does not beat, N int64: 0 is right, below 5 is top-5. ``confidence`` is the
    probability of the predicted class, ``loss`` the cross-entropy, both N float64.
    """

    labels: np.ndarray
    predicted: np.ndarray
    true_rank: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        return self.true_rank == 0

    def __getitem__(self, chosen: np.ndarray) -> "Predictions":
        return Predictions(**{name: column[chosen] for name, column in vars(self).items()})


def score_batch(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 5,N float64, the columns of ``Predictions``, for logits N,C and labels N. Nothing waits for the GPU.

    Of equal logits, that of the higher class number counts as the higher, as in scikit-learn.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    true = logits.gather(1, labels[:, None])
    beaten = (logits < true) | ((logits == true) & (classes < labels[:, None]))  # no NaN beats or is beaten
    true_rank = len(classes) - 1 - beaten.sum(1)
    predicted = len(classes) - 1 - logits.flip(1).argmax(1)
    wide = logits.double()
    whole = wide.logsumexp(1)
    confidence = (wide.amax(1) - whole).exp()
    loss = (whole - true[:, 0].double()).clamp(max=MAX_LOSS)
    return torch.stack([labels.double(), predicted.double(), true_rank.double(), confidence, loss])


def collect(scored: list[Tensor]) -> Predictions:
    """Join the batches of ``score_batch``. Waits for the GPU. Raises AlexNetError if logits were not finite."""
    rows = torch.cat(scored, dim=1).cpu().numpy()
    labels, predicted, true_rank = rows[:3].astype(np.int64)
    lost = np.count_nonzero(~np.isfinite(rows[3]))
    if lost:
        raise AlexNetError(f"the network's scores are not finite for {lost} of {len(labels)} images: it has diverged")
    return Predictions(labels, predicted, true_rank, *rows[3:])


def scores(predictions: Predictions, num_classes: int) -> dict[str, float]:
    """Return the mean loss, top-1, top-5, precision, recall and F1 as fractions, and ``samples``.

    Precision, recall and F1 are means over the classes that occur among labels or predictions.
    """
    table = per_class(predictions, num_classes)
    occurs = (table["images"] > 0) | (table["predicted"] > 0)
    macro = {name: float(table[name][occurs].mean()) for name in ("precision", "recall", "f1")}
    top1, top5 = float(predictions.right.mean()), float((predictions.true_rank < 5).mean())
    loss = float(predictions.loss.mean())
    return {"loss": loss, "top1": top1, "top5": top5} | macro | {"samples": len(predictions)}


def more_scores(predictions: Predictions, num_classes: int) -> dict[str, Any]:
    """Return further metrics: 95 % intervals of top-1 and top-5, means weighted by class size, calibration."""
    table = per_class(predictions, num_classes)
    share = table["images"] / len(predictions)
    weighted = {f"{name}_weighted": float(share @ table[name]) for name in ("precision", "recall", "f1")}
    hits = {"top1": predictions.right, "top5": predictions.true_rank < 5}
    intervals = {f"{name}_interval": wilson(int(hit.sum()), len(predictions)) for name, hit in hits.items()}
    error = calibration_error(reliability(predictions))
    calibration = {"calibration_error": error, "mean_confidence": float(predictions.confidence.mean())}
    return {**intervals, **weighted, **calibration}


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927), which holds for few images and near 0 and 1, too."""
    p = hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def confusion(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Return the confusion matrix, C,C int64: images of the row's class, predicted as the column's."""
    cells = np.bincount(predictions.labels * num_classes + predictions.predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class(predictions: Predictions, num_classes: int) -> dict[str, np.ndarray]:
    """Return columns of C numbers: ``images``, ``predicted``, ``right``, ``top5``, ``precision``, ``recall``, ``f1``.

    A ratio 0 / 0 is 0.
    """

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_classes)

    images, predicted = count(predictions.labels), count(predictions.predicted)
    right, top5 = count(predictions.labels[predictions.right]), count(predictions.labels[predictions.true_rank < 5])
    return {
        "images": images,
        "predicted": predicted,
        "right": right,
        "top5": top5 / np.maximum(images, 1),
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(images, 1),
        "f1": 2 * right / np.maximum(images + predicted, 1),
    }


def most_confused(cells: np.ndarray, count: int = 20) -> list[tuple[int, int, int]]:
    """Return the pairs of classes most often confused, as (true, predicted, images), the most frequent first."""
    wrong = cells * (1 - np.eye(len(cells), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [(int(i) // len(cells), int(i) % len(cells)) for i in order]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def reliability(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return columns of a number per bin, ``BINS`` equal ones of confidence: ``images``, ``confidence``, ``accuracy``.

    The last two are means over the images in the bin, 0 if it has none.
    """
    part = np.clip(np.ceil(predictions.confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(part, minlength=BINS)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(part, values, BINS) / np.maximum(images, 1)

    return {"images": images, "confidence": mean(predictions.confidence), "accuracy": mean(predictions.right)}


def calibration_error(bins: dict[str, np.ndarray]) -> float:
    """Return the expected calibration error: the distance of confidence and accuracy, averaged over images."""
    return float(bins["images"] @ np.abs(bins["confidence"] - bins["accuracy"]) / bins["images"].sum())


def accuracy_by_group(
    predictions: Predictions, groups: Mapping[str, Sequence[tuple[str, np.ndarray]]]
) -> dict[str, list[dict[str, object]]]:
    """Return, by property, a row for each group of images (N bool): its count, top-1 and 95 % interval.

    Empty groups are left out, and so are properties that all images share.
    """
    tables = {name: [_group_row(*group, predictions) for group in found] for name, found in groups.items()}
    kept = {name: [row for row in rows if row["images"]] for name, rows in tables.items()}
    return {name: rows for name, rows in kept.items() if len(rows) > 1}


def _group_row(group: str, members: np.ndarray, predictions: Predictions) -> dict[str, object]:
    right, n = int(predictions.right[members].sum()), int(members.sum())
    return {"group": group, "images": n} | ({"top1": right / n, "interval": wilson(right, n)} if n else {})
