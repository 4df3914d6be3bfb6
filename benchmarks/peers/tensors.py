"""Decoding and augmentation of uint8 tensors by torchvision's fastest way, for loaders that bring no decoder."""

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2


def decode(jpeg: bytes) -> Tensor:
    """Decode a JPEG to 3,H,W uint8."""
    return decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)


def augment(crop: str, size: int) -> v2.Transform:
    """Return a transform of 3,H,W uint8 to 3,size,size uint8. Normalising is left to the device."""
    crops = {"random": v2.RandomCrop(size), "resized": v2.RandomResizedCrop(size, antialias=True)}
    return v2.Compose([crops[crop], v2.RandomHorizontalFlip()])
