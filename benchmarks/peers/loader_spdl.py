"""SPDL: threads, no processes, each making a batch at a time, as in its ImageNet example.

Its own decoder, FFmpeg, crops, resizes and flips too. It needs FFmpeg's libraries (README.md).
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torch import Tensor

from benchmarks.peers.serve import Batches, PeerSettings, serve


def box(crop: str, size: int, width: int, height: int) -> tuple[int, int]:
    """Draw width and height of a crop: ten tries as in torchvision, then the largest centred square."""
    if crop == "random":
        return size, size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            return w, h
    return min(width, height), min(width, height)


def decode(path: str, crop: str, size: int) -> spdl.io.ImageFrames:
    packets = spdl.io.demux_image(path)
    w, h = box(crop, size, packets.width, packets.height)
    x, y = random.randint(0, packets.width - w), random.randint(0, packets.height - h)
    steps = [f"crop={w}:{h}:{x}:{y}"]
    if crop == "resized":
        steps.append(f"scale={size}:{size}:flags=bilinear")
    if random.random() < 0.5:
        steps.append("hflip")
    return spdl.io.decode_packets(packets, filter_desc=",".join([*steps, "format=pix_fmts=rgb24"]))


@dataclass(frozen=True)
class Epochs:
    """Batches of one epoch per iteration, each epoch in another order."""

    settings: PeerSettings
    files: list[tuple[str, int]]

    def batch(self, items: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        """Return N,H,W,3 uint8 and N int64."""
        frames = [decode(path, self.settings.crop, self.settings.size) for path, _ in items]
        return spdl.io.to_torch(spdl.io.convert_frames(frames)), torch.tensor([label for _, label in items])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        threads = self.settings.threads
        builder: Any = PipelineBuilder()  # its types cannot be named before each stage is there
        pipeline = (
            builder.add_source(random.sample(self.files, len(self.files)))
            .aggregate(self.settings.batch_size, drop_last=True)
            .pipe(self.batch, concurrency=threads)
            .add_sink(2 * threads)
            .build(num_threads=threads)
        )
        with pipeline.auto_stop():
            yield from pipeline


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    return Epochs(settings, settings.files()), "uint8 N,H,W,3; FFmpeg"


if __name__ == "__main__":
    serve(prepare)
