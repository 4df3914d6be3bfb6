"""FFCV: the JPEGs in its beton, read from the page cache, decoded and cropped in its own compiled threads.

Its ImageNet example continues with ToTorchImage and NormalizeImage on the GPU. The measurement ends before those, as
for the other loaders that give uint8. (On a CPU, ToTorchImage without NormalizeImage loops for ever when it starts.)
"""

from functools import partial
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder, ResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.peers.serve import Batches, PeerSettings, serve


class JpegField(RGBImageField):
    """A field that takes a JPEG's path and stores the file's bytes; its parent decodes and re-encodes."""

    def encode(self, destination, path, malloc) -> None:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        destination["mode"] = IMAGE_MODES["jpg"]
        with Image.open(path) as image:
            destination["width"], destination["height"] = image.size
        destination["data_ptr"], storage = malloc(data.nbytes)
        storage[:] = data


def random_crop(height, width, _, size):
    return np.random.randint(0, height - size + 1), np.random.randint(0, width - size + 1), size, size


class RandomCropDecoder(ResizedCropRGBImageDecoder):
    """A decoder whose crop has the output's size, so that the resizing after it does nothing."""

    get_crop_generator = staticmethod(random_crop)

    def __init__(self, size: int) -> None:
        super().__init__((size, size))
        self.scale, self.ratio = None, size


def write(settings: PeerSettings, beton: Path) -> None:
    fields = {"image": JpegField(), "label": IntField()}
    DatasetWriter(str(beton), fields, num_workers=settings.threads).from_indexed_dataset(settings.files())


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    size = settings.size
    decoder = RandomCropDecoder(size) if settings.crop == "random" else RandomResizedCropRGBImageDecoder((size, size))
    loader = Loader(
        str(settings.once("train.beton", partial(write, settings))),
        batch_size=settings.batch_size,
        num_workers=settings.threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [decoder, RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
        custom_fields={"image": JpegField},
    )
    return loader, "uint8 N,H,W,3; libjpeg-turbo"


if __name__ == "__main__":
    serve(prepare)
