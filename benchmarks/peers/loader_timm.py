"""timm's create_loader: Pillow, and uint8 batches by its fast collate.

Its prefetcher normalises on the device. The measurement ends before it, as for the other loaders that give uint8.
"""

import torch
from timm.data import ImageDataset, create_loader
from timm.data.transforms import ToNumpy
from torchvision import transforms

from benchmarks.peers.serve import Batches, PeerSettings, serve


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    dataset = ImageDataset(str(settings.images))
    prefetcher = create_loader(
        dataset,
        input_size=settings.size,
        batch_size=settings.batch_size,
        is_training=True,
        color_jitter=0.0,
        num_workers=settings.threads,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    if settings.crop == "random":  # a crop without resizing is not among its options
        dataset.transform = transforms.Compose(
            [transforms.RandomCrop(settings.size), transforms.RandomHorizontalFlip(), ToNumpy()]
        )
    return prefetcher.loader, "uint8 N,3,H,W; Pillow"


if __name__ == "__main__":
    serve(prepare)
