"""From shards to batches. Knows nothing of networks."""

from pipelines.shards import DataError

__all__ = ["DataError"]
