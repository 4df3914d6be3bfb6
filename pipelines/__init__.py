"""Data: sharding images, and loading shards as batches. Nothing here depends on a network."""

from pipelines.augment import AUGMENTS, Augment
from pipelines.backend import Batch
from pipelines.errors import DataError
from pipelines.factory import BACKENDS, open_loader
from pipelines.loader import Loader
from pipelines.shards.manifest import Manifest, load_manifest

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
