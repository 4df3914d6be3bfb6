"""torchvision's ImageFolder and DataLoader, which only read, and its decode_jpeg for whole batches on the GPU (nvJPEG).

Crops and flips are the v2 transforms, on the GPU too, each image by itself.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from benchmarks.peers.serve import Batches, PeerSettings, serve
from benchmarks.peers.tensors import augment


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, list[int], Tensor]:
    """Return all bytes, each file's size, and labels. A tensor per file would cost a file descriptor each."""
    files, labels = zip(*samples, strict=True)
    return torch.cat(files), [len(file) for file in files], torch.tensor(labels)


class Epochs:
    """Batches of N,3,size,size uint8 on the GPU and labels on the CPU, one epoch per iteration."""

    def __init__(self, settings: PeerSettings) -> None:
        files = ImageFolder(str(settings.images), loader=read_file)
        self._files = DataLoader(files, shuffle=True, collate_fn=collate, **settings.loading())
        self._augment = augment(settings.crop, settings.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for data, lengths, labels in self._files:
            images = decode_jpeg(list(data.split(lengths)), ImageReadMode.RGB, "cuda")
            yield torch.stack([self._augment(image) for image in images]), labels
        torch.cuda.synchronize()


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    if not torch.cuda.is_available():
        sys.exit("it decodes on a GPU, and there is none here")
    return Epochs(settings), "uint8 N,3,H,W on a GPU; nvJPEG by torchvision"


if __name__ == "__main__":
    serve(prepare)
