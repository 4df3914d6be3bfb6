"""From shards to batches. Knows nothing of networks."""

from pipelines.augment import AUGMENTS, Augment
from pipelines.epochs import Batch, Loader
from pipelines.loader import BACKENDS, open_loader
from pipelines.shards import DataError, Manifest, load_manifest

__all__ = [
    "AUGMENTS",
    "BACKENDS",
    "Augment",
    "Batch",
    "DataError",
    "Loader",
    "Manifest",
    "load_manifest",
    "open_loader",
]
