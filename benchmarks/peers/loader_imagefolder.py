"""torchvision's ImageFolder, Pillow and a DataLoader, as in torchvision's references/classification."""

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.peers.serve import Batches, PeerSettings, serve


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    crops = {"random": transforms.RandomCrop, "resized": transforms.RandomResizedCrop}
    augment = transforms.Compose(
        [
            crops[settings.crop](settings.size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(ImageFolder(str(settings.images), augment), shuffle=True, **settings.loading())
    return loader, "float32 N,3,H,W, normalised; Pillow"


if __name__ == "__main__":
    serve(prepare)
