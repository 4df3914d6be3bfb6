"""The network and how it learns. Knows nothing of files of images or of data sets."""

from alexnet.errors import AlexNetError
from alexnet.model import VARIANTS, AlexNet
from alexnet.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "VARIANTS", "AlexNet", "AlexNetError", "Recipe"]
