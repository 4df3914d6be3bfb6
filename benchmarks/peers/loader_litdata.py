"""LitData: the files optimized into its chunks, which keep a JPEG as it is, then a StreamingDataLoader.

Its JPEGs come back as uint8 tensors, decoded by torchvision.
"""

from functools import partial
from pathlib import Path

from litdata import StreamingDataLoader, StreamingDataset, optimize
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.peers.serve import Batches, PeerSettings, serve
from benchmarks.peers.tensors import augment


class ImageNet(StreamingDataset):
    """A dataset whose items are 3,size,size uint8 and a label."""

    def __init__(self, folder: Path, transform: v2.Transform) -> None:
        super().__init__(str(folder), shuffle=True, drop_last=True)
        self.augment = transform

    def __getitem__(self, index) -> tuple[Tensor, int]:
        sample = super().__getitem__(index)
        return self.augment(sample["image"]), sample["label"]


def read(item: tuple[str, int]) -> dict:
    """Open a JPEG. LitData stores an open JPEG as the bytes of its file."""
    path, label = item
    return {"image": Image.open(path), "label": label}


def write(settings: PeerSettings, folder: Path) -> None:
    optimize(fn=read, inputs=settings.files(), output_dir=str(folder), chunk_bytes="64MB", num_workers=settings.threads)


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    dataset = ImageNet(settings.once("litdata", partial(write, settings)), augment(settings.crop, settings.size))
    loader = StreamingDataLoader(dataset, shuffle=True, **settings.loading())
    return loader, "uint8 N,3,H,W; torchvision's decoder"


if __name__ == "__main__":
    serve(prepare)
