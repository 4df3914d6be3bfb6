"""MosaicML's streaming: the files written as MDS, then its dataset in a DataLoader.

Its JPEG column comes back as Pillow images; bytes, decoded by torchvision, are faster and used here.
"""

from functools import partial
from pathlib import Path

from streaming import MDSWriter, StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.peers.serve import Batches, PeerSettings, serve
from benchmarks.peers.tensors import augment, decode


class ImageNet(StreamingDataset):
    """A dataset whose items are 3,size,size uint8 and a label."""

    def __init__(self, folder: Path, transform: v2.Transform, batch_size: int) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=batch_size)
        self.augment = transform

    def __getitem__(self, index) -> tuple[Tensor, int]:
        sample = super().__getitem__(index)
        return self.augment(decode(sample["image"])), sample["label"]


def write(settings: PeerSettings, folder: Path) -> None:
    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for path, label in settings.files():
            writer.write({"image": Path(path).read_bytes(), "label": label})


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    folder = settings.once("mds", partial(write, settings))
    dataset = ImageNet(folder, augment(settings.crop, settings.size), settings.batch_size)
    loader: DataLoader = DataLoader(dataset, **settings.loading())
    return loader, "uint8 N,3,H,W; torchvision's decoder"


if __name__ == "__main__":
    serve(prepare)
