"""The network and how it is trained. It knows nothing of image files or datasets."""

from alexnet.errors import AlexNetError
from alexnet.model import VARIANTS, AlexNet
from alexnet.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "VARIANTS", "AlexNet", "AlexNetError", "Recipe"]
