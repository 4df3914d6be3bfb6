"""torchvision's ImageFolder and a DataLoader with its own decoder and the v2 transforms on uint8 tensors."""

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from benchmarks.peers.serve import Batches, PeerSettings, serve
from benchmarks.peers.tensors import augment


def load(path: str) -> Tensor:
    return decode_image(path, mode=ImageReadMode.RGB)


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    dataset = ImageFolder(str(settings.images), augment(settings.crop, settings.size), loader=load)
    loader = DataLoader(dataset, shuffle=True, **settings.loading())
    return loader, "uint8 N,3,H,W; torchvision's decoder"


if __name__ == "__main__":
    serve(prepare)
