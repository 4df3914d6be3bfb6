"""DALI as in its own ImageNet example for PyTorch, with that example's settings, except the number of threads.

docs/examples/use_cases/pytorch/resnet50/main.py: files, not shards; decoded and cropped in one step, on the GPU if
there is one. With ``random`` crops, which the example does not have, fn.decoders.image_crop takes its place.
"""

from collections.abc import Iterator
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy
from torch import Tensor

from benchmarks.peers.serve import Batches, PeerSettings, serve

GPU = torch.cuda.is_available()
DEVICE = {"device": "mixed", "device_memory_padding": 211025920, "host_memory_padding": 140544512}


@pipeline_def
def graph(settings: PeerSettings) -> tuple[Any, Any]:
    """Return N,3,size,size float32, normalised, and labels."""
    decoding: dict[str, Any] = (DEVICE if GPU else {"device": "cpu"}) | {"output_type": types.RGB}
    encoded, labels = fn.readers.file(
        file_root=str(settings.images), random_shuffle=True, pad_last_batch=True, name="Reader"
    )
    size = (settings.size, settings.size)
    if settings.crop == "random":
        x, y = (fn.random.uniform(range=(0, 1)) for _ in "xy")
        images = fn.decoders.image_crop(encoded, **decoding, crop=size, crop_pos_x=x, crop_pos_y=y)
    else:
        window: dict[str, Any] = {"random_aspect_ratio": [0.8, 1.25], "random_area": [0.1, 1.0], "num_attempts": 100}
        images = fn.decoders.image_random_crop(encoded, **decoding, **window)
        images = fn.resize(images, resize_x=size[0], resize_y=size[1], interp_type=types.INTERP_TRIANGULAR)
    images = fn.crop_mirror_normalize(
        images.gpu() if GPU else images,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=size,
        mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
        std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
        mirror=fn.random.coin_flip(probability=0.5),
    )
    return images, labels.gpu() if GPU else labels


class Epochs:
    """Batches of one epoch per iteration. The last batch has the remaining images."""

    def __init__(self, settings: PeerSettings) -> None:
        pipeline = graph(
            settings,
            batch_size=settings.batch_size,
            num_threads=settings.threads,
            device_id=0 if GPU else None,
            seed=12,
        )
        pipeline.build()
        self._batches = DALIClassificationIterator(
            pipeline, reader_name="Reader", last_batch_policy=LastBatchPolicy.PARTIAL
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for (batch,) in self._batches:
            yield batch["data"], batch["label"].squeeze(-1).long()
        self._batches.reset()
        if GPU:
            torch.cuda.synchronize()


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    return Epochs(settings), f"float32 N,3,H,W on {'a GPU' if GPU else 'the CPU'}, normalised; DALI"


if __name__ == "__main__":
    serve(prepare)
