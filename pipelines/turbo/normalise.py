"""Normalisation, the last step from uint8 pixels to the network's input: of a batch on a GPU, of an image on a CPU."""

import logging

import numpy as np
import torch

from pipelines.augment import Augment, lighting_matrix, load_mean_image
from pipelines.shards.manifest import Manifest

LOG = logging.getLogger(__name__)


class Normalise:
    """The map (pixels - mean + light) / std, in which mean is a colour, or the mean image cropped as the image was.

    ``crop`` is where an image was cropped: top, left, and if it is flipped. ``light`` is the colour that lighting adds.
    """

    def __init__(self, manifest: Manifest, augment: Augment, device: torch.device) -> None:
        self.normalises = augment.normalise != "none"
        self.dtype = torch.uint8 if not self.normalises else torch.float16 if device.type == "cuda" else torch.float32
        mean, std = (np.array(values, np.float32) for values in augment.mean_and_std(manifest.statistics))
        self._size = augment.size
        self._mean, self._scale = mean, 1 / std
        self._images = None  # the mean image and its mirror image
        if augment.normalise == "mean_image":
            image = load_mean_image(manifest)
            self._images = image, np.ascontiguousarray(image[:, ::-1])
        self._lighting = np.array(lighting_matrix(manifest.statistics), np.float32) * augment.lighting
        self._lit = augment.lighting > 0
        self.batch = OnDevice(self._images, self._scale, device, self.dtype)

    @property
    def mean_image(self) -> np.ndarray | None:
        """The mean image to subtract, H,W,3 float32, or None."""
        return None if self._images is None else self._images[0]

    @property
    def scale(self) -> np.ndarray:
        """The reciprocals of the deviations, 3 float32."""
        return self._scale

    def colours(self, lights: np.ndarray) -> np.ndarray:
        """Return N,3 float32, the colour to add to each image before the division, from N,3 standard normal factors."""
        added = np.broadcast_to(-self._mean, lights.shape)
        return (added + lights.astype(np.float32) @ self._lighting.T if self._lit else added).astype(np.float32)

    def one(self, pixels: np.ndarray, crop: tuple[int, int, bool], colour: np.ndarray, out: np.ndarray) -> None:
        """Normalise ``pixels``, H,W,3 uint8, into ``out``, H,W,3 float32. Rows of W*3 numbers are faster in numpy."""
        height, width, _ = pixels.shape
        flat, source = out.reshape(height, width * 3), pixels.reshape(height, width * 3)
        row = np.tile(colour, width)
        if self._images is None:
            np.add(source, row, out=flat)
        else:
            np.subtract(pixels, self._part(self._images, crop), out=out)
            if self._lit:
                flat += row
        if (self._scale != 1).any():
            flat *= np.tile(self._scale, width)

    def _part(self, images: tuple[np.ndarray, np.ndarray], crop: tuple[int, int, bool]) -> np.ndarray:
        (image, mirrored), (top, left, flipped) = images, crop
        if flipped:
            image, left = mirrored, image.shape[1] - self._size - left
        return image[top : top + self._size, left : left + self._size]


class OnDevice:
    """The same map for a whole batch on its device: N,H,W,3, uint8 or floating, to ``dtype``.

    On a GPU it is one kernel (``pipelines.turbo.normalise_kernel``), elsewhere a few operations of torch.
    """

    def __init__(
        self,
        images: tuple[np.ndarray, np.ndarray] | None,
        scale: np.ndarray,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._image = None if images is None else torch.from_numpy(images[0]).to(device)
        self._scale = torch.from_numpy(scale).to(device)
        self._dtype, self._fused = dtype, device.type == "cuda"

    def __call__(self, pixels: torch.Tensor, crops: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Return N,H,W,3 from pixels, crops (N,3 int64) and colours (N,3 float32), all on the device."""
        if self._fused:
            try:
                from pipelines.turbo.normalise_kernel import normalise

                return normalise(pixels, self._image, crops, colours, self._scale, self._dtype)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:  # Triton or a C compiler is missing, or it does not know this GPU
                self._fused = False
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                LOG.warning("batches are normalised by several kernels, not by one of Triton's: %s", reason)
        return self._by_operations(pixels, crops, colours)

    def _by_operations(self, pixels: torch.Tensor, crops: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        lit = pixels + colours[:, None, None]
        if self._image is not None:
            lit -= self._parts(self._image, crops, pixels.shape[1])
        return lit.mul_(self._scale).to(self._dtype)

    def _parts(self, image: torch.Tensor, crops: torch.Tensor, size: int) -> torch.Tensor:
        """Return N,size,size,3: the mean image cropped and flipped as each image was."""
        top, left, flipped = crops.unbind(1)
        steps = torch.arange(size, device=crops.device)
        rows = top[:, None] + steps
        columns = left[:, None] + torch.where(flipped[:, None] > 0, size - 1 - steps, steps)
        return image[rows[:, :, None], columns[:, None, :]]
