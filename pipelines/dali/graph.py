"""The DALI graph: the steps from a shard to an image, in their order. The same graph runs on a GPU and on the CPU.

Deterministic paths give the same pixels as any other backend. Random crops, flips and colours have the same
distributions, but not the same values. ``resized`` crops are resized by DALI's default, linear and antialiased
(triangular), from the whole decoded image: on a GPU decoding only a region has crashed decoders
(https://github.com/NVIDIA/nvImageCodec/issues/55), and on a CPU it gained nothing.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pipelines.augment import Augment, Jitter, lighting_matrix, load_mean_image
from pipelines.images.limits import PILLOW_MAX_PIXELS, most_elongated
from pipelines.plan import Plan
from pipelines.shards.manifest import ImageFormat, Manifest

SHUFFLE_BUFFER = 4096  # samples; the shards already hold them in a global random permutation
DECODER_PADDING = 1 << 22  # bytes reserved for an image, so that a large one does not stall the pipeline
# The ten crops of the paper; torchvision's ten_crop gives the same, its last five mirrored before they are cut
TEN = tuple((x, y, mirror) for mirror in (0, 1) for x, y in ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)))


@dataclass(frozen=True)
class Graph:
    """A graph from a split's shards to images and the digits of their labels. Call its methods inside a Pipeline."""

    manifest: Manifest
    split: str
    plan: Plan
    augment: Augment
    _: KW_ONLY
    gpu: bool
    seed: int

    def read(self) -> tuple[Any, Any]:
        """Return encoded images and the digits of labels, as uint8.

        In training the archives are shuffled for each epoch, in the same order on every rank. Each rank reads its own
        range of that order, and a buffer shuffles samples that are close to each other.
        """
        from nvidia.dali import fn

        paths = [str(self.manifest.folder / shard.path) for shard in self.manifest.split(self.split).shards]
        training = self.plan.training
        encoded, digits = fn.readers.webdataset(  # type: ignore[misc]
            paths=paths,
            index_paths=[path.removesuffix("tar") + "idx" for path in paths],
            ext=[self.manifest.image.extension, "cls"],
            missing_component_behavior="error",
            random_shuffle=training,
            initial_fill=SHUFFLE_BUFFER,
            seed=self.rank_seed,
            shuffle_after_epoch=training,
            shuffle_after_epoch_seed=self.seed if training else None,
            stick_to_shard=not training,  # implied by shuffle_after_epoch
            shard_id=self.plan.rank,
            num_shards=self.plan.world_size,
            pad_last_batch=True,
            name="reader",
        )
        return encoded, digits

    @property
    def rank_seed(self) -> int:
        return self.seed * 4096 + self.plan.rank

    def images(self, encoded: Any) -> Any:
        """Return the images, size,size,3 each; 10,size,size,3 for ten crops."""
        from nvidia.dali import fn, types

        image, augment = self.manifest.image, self.augment
        pixels = self._decoded(encoded)  # H,W,3
        if augment.crop == "resized":
            pixels = self._resized(pixels)
        elif image.resize == "none":  # images of any size: resize as sharding with ``shorter`` would have
            part = self._random_part(pixels) if augment.crop == "random" else {"resize_shorter": image.size}
            pixels = fn.resize(pixels, **part, interp_type=types.INTERP_CUBIC, antialias=True)
        if augment.jitter:
            pixels = _jittered(pixels, augment.jitter)
        if augment.normalise == "mean_image":  # before the crop, so that the mean image is cropped with the image
            device = "gpu" if self.gpu else "cpu"
            pixels = pixels - types.Constant(load_mean_image(self.manifest), device=device, layout="HWC")
        if augment.crop == "ten":
            return fn.stack(*(self._crop(pixels, *place) for place in TEN))
        x = y = 0.5
        if augment.crop == "random":  # no effect after ``_random_part``, whose result already has the crop's size
            x, y = (fn.random.uniform(range=(0, 1)) for _ in "xy")
        return self._crop(pixels, x, y, fn.random.coin_flip() if augment.flip else 0)

    def _decoded(self, encoded: Any) -> Any:
        from nvidia.dali import fn, types

        if self.manifest.image.encoding == "raw":
            pixels = fn.reshape(fn.decoders.numpy(encoded), layout="HWC")
            return pixels.gpu() if self.gpu else pixels
        return fn.decoders.image(
            _with_header(encoded, self.manifest.image),
            device="mixed" if self.gpu else "cpu",
            output_type=types.RGB,
            device_memory_padding=DECODER_PADDING if self.gpu else None,
            host_memory_padding=DECODER_PADDING if self.gpu else None,
        )

    def _resized(self, pixels: Any) -> Any:
        """Return the inception crop, resized."""
        from nvidia.dali import fn, types

        height_width = pixels.shape(dtype=types.FLOAT)[:2]  # on the CPU, where crops are drawn
        start, extent = fn.random_crop_generator(
            pixels.shape(), random_area=list(self.augment.scale), random_aspect_ratio=list(self.augment.ratio)
        )
        return fn.resize(
            pixels,
            size=(self.augment.size, self.augment.size),
            roi_start=start / height_width,
            roi_end=(start + extent) / height_width,
            roi_relative=True,
        )

    def _random_part(self, pixels: Any) -> dict[str, Any]:
        """Return arguments for ``resize`` that resize only the part which a random crop of the resized image shows."""
        from nvidia.dali import fn, types

        size = self.augment.size
        height_width = pixels.shape(dtype=types.FLOAT)[:2]
        extent = fn.reductions.min(height_width) * (size / self.manifest.image.size) / height_width  # of the whole
        start = fn.random.uniform(range=(0, 1), shape=2) * (1 - extent)
        return {"size": (size, size), "roi_start": start, "roi_end": start + extent, "roi_relative": True}

    def _crop(self, pixels: Any, x: Any, y: Any, mirror: Any) -> Any:
        """Crop at ``x`` and ``y`` (0 to 1: left to right, top to bottom), mirror if ``mirror`` is 1, and normalise."""
        from nvidia.dali import fn, types

        augment = self.augment
        mean, std = augment.mean_and_std(self.manifest.statistics)
        dtype = types.FLOAT16 if self.gpu else types.FLOAT
        return fn.crop_mirror_normalize(
            pixels,
            crop=(augment.size, augment.size),
            crop_pos_x=x,
            crop_pos_y=y,
            mirror=mirror,
            mean=self._lit(mean) if augment.lighting else list(mean),
            std=list(std),
            dtype=types.UINT8 if augment.normalise == "none" else dtype,
            output_layout="HWC",
        )

    def _lit(self, mean: tuple[float, ...]) -> Any:
        """Return the mean minus an image's random light: subtracting it adds the light at no cost."""
        from nvidia.dali import fn, types

        factors = fn.random.normal(shape=(3,), stddev=self.augment.lighting)
        components = types.Constant(np.array(lighting_matrix(self.manifest.statistics), np.float32), device="cpu")
        light = fn.reductions.sum(components * factors, axes=1)  # 3
        return types.Constant(np.array(mean, np.float32), device="cpu") - light


def _with_header(encoded: Any, image: ImageFormat) -> Any:
    """Return the same bytes after checking the header. A damaged one, or one that claims too many pixels, is an error.

    The decoder of DALI 2.4 crashes the process if a damaged header is in the last part of a batch, and allocates what
    a header claims. The check copies nothing and costs little. The decoder's input depends on the header, so it runs
    after the check. For too many pixels the new shape is larger than the bytes, and reshape raises an error.
    """
    from nvidia.dali import fn, types

    shape = fn.peek_image_shape(encoded, dtype=types.INT32)
    height, width = shape[0], shape[1]
    pixels = height * 1.0 * width
    refused = pixels > PILLOW_MAX_PIXELS
    if image.resize != "square":
        ratio = most_elongated(image)
        refused = refused | (height > ratio * width) | (width > ratio * height)
    return fn.reshape(encoded, shape=encoded.shape(dtype=types.INT32) + refused)


def _jittered(pixels: Any, jitter: Jitter) -> Any:
    from nvidia.dali import fn

    ranges = {name: (1 - x, 1 + x) for name, x in vars(jitter).items() if x and name != "hue"}
    if jitter.hue:
        ranges["hue"] = (-360 * jitter.hue, 360 * jitter.hue)  # degrees
    return fn.color_twist(pixels, **{name: fn.random.uniform(range=limits) for name, limits in ranges.items()})
