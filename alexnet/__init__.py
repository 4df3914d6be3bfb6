"""The network and how it learns. Knows nothing of files of images or of data sets."""

from alexnet.errors import AlexNetError

__all__ = ["AlexNetError"]
