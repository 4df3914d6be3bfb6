"""The plan of a shard folder: which sample goes to which shard, as a function of source, seed and options alone."""

import math
from pathlib import Path

from pipelines.images.limits import MAX_PIXELS
from pipelines.sharding.members import expected_bytes
from pipelines.sharding.sources import Source
from pipelines.sharding.statistics import measured_samples
from pipelines.sharding.writer import ShardTask
from pipelines.shards.manifest import ImageFormat

SPREAD_SHARDS, SPREAD_SAMPLES = 16, 128  # a small dataset is cut into so many shards, of at least so many samples


def plan(
    source: Source,
    out: Path,
    image: ImageFormat,
    *,
    shard_mb: float = 256,
    statistics_images: int = 4096,
    max_pixels: int = MAX_PIXELS,
) -> list[ShardTask]:
    """Assign each sample a shard and a place in it. The statistics are those of the first split."""
    width = len(str(len(source.classes) - 1))
    tasks = []
    for split, samples in source.splits.items():
        sample_bytes = expected_bytes(image, samples, source.sizes) + 1792  # with three tar headers and their padding
        wanted = statistics_images if image.resize == "none" else None
        shards = math.ceil(len(samples) * sample_bytes / (shard_mb * 1e6))
        shards = min(len(samples), max(shards, min(SPREAD_SHARDS, len(samples) // SPREAD_SAMPLES)))
        for i in range(shards):
            start, stop = len(samples) * i // shards, len(samples) * (i + 1) // shards
            measured = range(0)
            if split == next(iter(source.splits)):
                measured = measured_samples(start, stop, len(samples), wanted)
            tasks.append(
                ShardTask(
                    f"{split}-{i:06d}",
                    source.folder,
                    out,
                    samples[start:stop],
                    image=image,
                    label_width=width,
                    measured=measured,
                    max_pixels=max_pixels,
                )
            )
    return tasks
