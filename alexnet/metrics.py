"""Top-1, top-5, and macro precision, recall and F1, through torchmetrics."""

from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)


def classification_metrics(num_classes: int, device: torch.device) -> MetricCollection:
    """Fractions; the last three average over classes. Update with logits N,num_classes and labels N.

    No argument is validated on update: that would make the host wait for the GPU.
    """
    top5 = min(5, num_classes)
    shared: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(average="micro", **shared),
            "top5": MulticlassAccuracy(average="micro", top_k=top5, **shared),
            "precision": MulticlassPrecision(average="macro", **shared),
            "recall": MulticlassRecall(average="macro", **shared),
            "f1": MulticlassF1Score(average="macro", **shared),
        },
        compute_groups=False,
    ).to(device)
