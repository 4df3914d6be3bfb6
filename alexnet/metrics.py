"""What a network's answers are worth: accuracy with intervals, precision, recall, F1, calibration, confusions.

Four numbers are kept of each image, so memory does not grow with the classes, and ranks have little to send. The
figures are computed from them in float64, as scikit-learn computes them (tests/test_evaluate.py).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import AlexNetError

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv:1706.04599)


@dataclass(frozen=True)
class Answers:
    """Of N images: the true class, the one predicted (N int64), how many classes the true one's score does not beat
    (N int64; 0 is right, below 5 is top-5), and the probability given to the prediction (N float64)."""

    labels: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        return self.rank == 0

    def __getitem__(self, chosen: np.ndarray) -> "Answers":
        return Answers(self.labels[chosen], self.predicted[chosen], self.rank[chosen], self.confidence[chosen])


def judge(logits: Tensor, labels: Tensor) -> Tensor:
    """4,N float64: the columns of ``Answers`` for logits N,C and labels N. Nothing waits for the GPU.

    Of equal scores the one of the higher class is taken as the higher one, which is scikit-learn's way.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    true = logits.gather(1, labels[:, None])
    beaten = (logits < true) | ((logits == true) & (classes < labels[:, None]))  # a NaN beats all and is beaten by none
    rank = len(classes) - 1 - beaten.sum(1)
    predicted = len(classes) - 1 - logits.flip(1).argmax(1)
    wide = logits.double()
    confidence = (wide.amax(1) - wide.logsumexp(1)).exp()
    return torch.stack([labels.double(), predicted.double(), rank.double(), confidence])


def collect(judged: list[Tensor]) -> Answers:
    """The batches of ``judge`` as one. Waits for the GPU. Raises AlexNetError where scores were not finite."""
    rows = torch.cat(judged, dim=1).cpu().numpy()
    labels, predicted, rank = rows[:3].astype(np.int64)
    lost = np.count_nonzero(~np.isfinite(rows[3]))
    if lost:
        raise AlexNetError(f"the network's scores are not finite for {lost} of {len(labels)} images: it has diverged")
    return Answers(labels, predicted, rank, rows[3])


def scores(answers: Answers, num_classes: int) -> dict[str, float]:
    """Fractions, and ``samples``; the last three of the five are means over the classes that occur."""
    table = per_class(answers, num_classes)
    occurs = (table["images"] > 0) | (table["predicted"] > 0)
    macro = {name: float(table[name][occurs].mean()) for name in ("precision", "recall", "f1")}
    top1, top5 = float(answers.right.mean()), float((answers.rank < 5).mean())
    return {"top1": top1, "top5": top5} | macro | {"samples": len(answers)}


def more_scores(answers: Answers, num_classes: int) -> dict[str, Any]:
    """What stands beside ``scores``: 95 % intervals of top-1 and top-5, means weighted by class size, calibration."""
    table = per_class(answers, num_classes)
    share = table["images"] / len(answers)
    weighted = {f"{name}_weighted": float(share @ table[name]) for name in ("precision", "recall", "f1")}
    hits = {"top1": answers.right, "top5": answers.rank < 5}
    intervals = {f"{name}_interval": wilson(int(hit.sum()), len(answers)) for name, hit in hits.items()}
    error = calibration_error(reliability(answers))
    calibration = {"calibration_error": error, "mean_confidence": float(answers.confidence.mean())}
    return {**intervals, **weighted, **calibration}


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), which holds for few images and near 0 and 1, too."""
    p = hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def confusion(answers: Answers, num_classes: int) -> np.ndarray:
    """C,C int64: images of the class of the row, predicted as that of the column."""
    cells = np.bincount(answers.labels * num_classes + answers.predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class(answers: Answers, num_classes: int) -> dict[str, np.ndarray]:
    """Columns of C numbers: ``images``, ``predicted``, ``right``, ``top5``, ``precision``, ``recall``, ``f1``.

    A ratio of nothing to nothing is 0.
    """

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_classes)

    images, predicted = count(answers.labels), count(answers.predicted)
    right, top5 = count(answers.labels[answers.right]), count(answers.labels[answers.rank < 5])
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
    """The pairs of classes most often taken for each other: true, predicted, images; most first."""
    wrong = cells * (1 - np.eye(len(cells), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [(int(i) // len(cells), int(i) % len(cells)) for i in order]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def reliability(answers: Answers) -> dict[str, np.ndarray]:
    """Columns of a number for each of ``BINS`` equal parts of confidence: ``images``, ``confidence``, ``accuracy``.

    The last two are means over the images of the part, 0 where there are none.
    """
    part = np.clip(np.ceil(answers.confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(part, minlength=BINS)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(part, values, BINS) / np.maximum(images, 1)

    return {"images": images, "confidence": mean(answers.confidence), "accuracy": mean(answers.right)}


def calibration_error(bins: dict[str, np.ndarray]) -> float:
    """The expected calibration error: how far confidence and accuracy lie apart, the mean over images."""
    return float(bins["images"] @ np.abs(bins["confidence"] - bins["accuracy"]) / bins["images"].sum())
