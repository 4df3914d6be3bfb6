"""Pictures of a run and of what a network has learned. Each function gives a matplotlib Figure; none opens a window."""

from alexnet.figures.curves import training_curves
from alexnet.figures.network import activation_maps, conv1_filters
from alexnet.figures.scores import confusion_matrix, reliability_diagram

__all__ = [
    "activation_maps",
    "confusion_matrix",
    "conv1_filters",
    "reliability_diagram",
    "training_curves",
]
