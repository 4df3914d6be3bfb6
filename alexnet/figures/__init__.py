"""Figures of a run and of what a network has learned. Each function returns a matplotlib Figure and opens no window."""

from alexnet.figures.curves import compared_curves, training_curves
from alexnet.figures.images import Shown, feature_map, five_answers, mistakes, nearest_neighbours, saliency
from alexnet.figures.network import GREY, activation_maps, conv1_filters, exciting_patches
from alexnet.figures.scores import confusion_matrix, reliability_diagram
from alexnet.figures.tiles import shortened, shortened_text

__all__ = [
    "GREY",
    "Shown",
    "activation_maps",
    "compared_curves",
    "confusion_matrix",
    "conv1_filters",
    "exciting_patches",
    "feature_map",
    "five_answers",
    "mistakes",
    "nearest_neighbours",
    "reliability_diagram",
    "saliency",
    "shortened",
    "shortened_text",
    "training_curves",
]
