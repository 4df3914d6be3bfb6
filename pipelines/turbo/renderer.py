"""Rendering of a sample to uint8 pixels: decode, crop, resize, flip and jitter, in this order."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.augment import Augment
from pipelines.crops import Box, center_box, in_source, random_box, resized_box, shorter_sides, shrink_to, ten_boxes
from pipelines.images.resize import resize
from pipelines.shards.manifest import Manifest
from pipelines.shards.npy import raw_header_of
from pipelines.shards.records import Record
from pipelines.turbo.decode import Decoder, decode_unusual
from pipelines.turbo.native import Worker
from pipelines.turbo.randomness import Draws, SampleDraws


class Crop(NamedTuple):
    """A record of where an image was cropped (after its shorter side had the manifest's size), and if it is flipped."""

    top: int
    left: int
    flipped: bool


class Renderer:
    """A renderer that threads may share.

    Random crops are resized by OpenCV's linear filter, which reads four pixels for each result. Before that a JPEG is
    decoded at 1/2, 1/4 or 1/8 if that is still large enough, so the filter skips every other pixel at most. Other
    crops are resized by the antialiased bicubic filter that the shards are made with.
    """

    def __init__(self, manifest: Manifest, augment: Augment) -> None:
        self._image, self._augment = manifest.image, augment
        self._decoder = Decoder()
        self._raw_header = raw_header_of(manifest.image)

    def render(self, record: Record, sample_draws: SampleDraws, out: np.ndarray) -> list[Crop]:
        """Fill ``out``, crops,size,size,3 uint8. Return where the image was cropped. Raises SampleError."""
        try:
            whole = self._whole(record)
            height, width = self._decoder.size(record.data, self._image) if whole is None else whole.shape[:2]
            chosen = self._choose(height, width, sample_draws)
            if chosen:
                box, crop = chosen
                crops = [crop]
                self._put(self._part(record, whole, height, width, box), sample_draws.flip, out[0])
            else:
                crops = self._render_fixed(record, whole, (height, width), sample_draws.flip, out)
        except ValueError as error:
            raise record.error(f"cannot be decoded: {error}") from error
        if sample_draws.colour is not None:
            _recolour(out, sample_draws.colour)
        return crops

    def render_natively(self, worker: Worker, numbers: Sequence[int], draws: Draws, out: np.ndarray) -> np.ndarray:
        """Render several samples by the compiled part into ``out``, N,size,size,3 uint8. Return N native.SAMPLE.

        Those that are not ``done`` are left to ``render``, which may raise an error. Raises DataError for a damaged
        index.
        """
        samples = worker.render(numbers, draws.crop_draws, draws.flips, out)
        for place, pixels in worker.parts(samples):
            self._put(pixels, False, out[place])
        if draws.colours is not None:
            for place in np.flatnonzero(samples["done"]).tolist():
                _recolour(out[place], draws.colours[place])
        return samples

    def _choose(self, height: int, width: int, sample_draws: SampleDraws) -> tuple[Box, Crop] | None:
        """Return the box to decode, if one box is all that the crop needs; None if the whole image is needed."""
        augment = self._augment
        if augment.crop == "resized":
            box = resized_box(sample_draws.crop_draws, (height, width), augment.scale, augment.ratio)
            return box, Crop(0, 0, sample_draws.flip)
        resized = self._resized_size(height, width)
        if augment.crop == "random":
            down, across = sample_draws.crop_draws[:2]
            box = random_box(down, across, *resized, augment.size)
        elif augment.crop == "center" and resized == (height, width):
            box = center_box(*resized, augment.size)
        else:
            return None
        crop = Crop(box.top, box.left, sample_draws.flip)
        return (box if resized == (height, width) else in_source(box, height, width, *resized)), crop

    def _render_fixed(
        self, record: Record, whole: np.ndarray | None, shape: tuple[int, int], flip: bool, out: np.ndarray
    ) -> list[Crop]:
        """Render the center or ten crops of the whole image, resized. Return where it was cropped."""
        pixels = self._decoder.whole(record.data, *shape) if whole is None else whole
        resized = self._resized_size(*shape)
        if resized != shape:
            pixels = resize(pixels, *resized)
        size = self._augment.size
        boxes = ten_boxes(*resized, size) if self._augment.crop == "ten" else [center_box(*resized, size)]
        crops = [Crop(box.top, box.left, flip != (number >= 5)) for number, box in enumerate(boxes)]
        for box, crop, place in zip(boxes, crops, out, strict=True):
            self._put(pixels[box.top : box.top + size, box.left : box.left + size], crop.flipped, place)
        return crops

    def _whole(self, record: Record) -> np.ndarray | None:
        """Return the whole image, H,W,3 uint8, unless it is a JPEG for the decoder: then None. Raises ValueError."""
        wanted = self._image.size
        if self._image.encoding == "any":
            return decode_unusual(bytes(record.data), self._image)
        if not self._raw_header:
            return None
        if bytes(record.data[: len(self._raw_header)]) != self._raw_header:
            raise ValueError(f"it is not an array of {wanted},{wanted},3 uint8")
        return np.frombuffer(record.data[len(self._raw_header) :], np.uint8).reshape(wanted, wanted, 3)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        return shorter_sides(height, width, self._image.size)

    def _part(self, record: Record, whole: np.ndarray | None, height: int, width: int, box: Box) -> np.ndarray:
        """Return the box, H,W,3 or H,W,4 uint8, at the crop's size or larger."""
        if whole is None:
            return self._decoder.part(record.data, (height, width), box, self._augment.size)
        pixels = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        return _shrunk(pixels, shrink_to(box, self._augment.size))

    def _put(self, pixels: np.ndarray, flip: bool, out: np.ndarray) -> None:
        """Flip, resize and drop a fourth channel, if necessary, and write to ``out`` once: it is not in the cache."""
        import cv2

        if flip:
            pixels = _mirrored(pixels)
        if pixels.shape[:2] != out.shape[:2]:
            pixels = cv2.resize(pixels, out.shape[:2], interpolation=cv2.INTER_LINEAR)
        if pixels.shape[2] == 4:
            cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB, dst=out)
        else:
            np.copyto(out, pixels)


def _shrunk(pixels: np.ndarray, times: int) -> np.ndarray:
    """Return the means of ``times`` x ``times`` pixels, as a JPEG decoded at 1/2, 1/4 or 1/8 has them."""
    import cv2

    if times == 1:
        return pixels
    height, width = pixels.shape[0] // times, pixels.shape[1] // times
    return cv2.resize(pixels[: height * times, : width * times], (width, height), interpolation=cv2.INTER_AREA)


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    """Return H,W,4, mirrored. OpenCV mirrors pixels of four bytes, as one int32, in a sixth of the time of three."""
    import cv2

    if pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    return cv2.flip(pixels.view(np.int32)[..., 0], 1).view(np.uint8).reshape(*pixels.shape)


def prepare_opencv() -> None:
    """Choose this thread's faster linear filter. It is also closer to the exact one (0.51 off at most, not 0.76)."""
    import cv2

    if hasattr(cv2, "ipp"):  # builds for x86
        cv2.ipp.setUseIPP_NotExact(True)


def _recolour(images: np.ndarray, matrix: np.ndarray) -> None:
    """Apply the jitter in place; results are rounded and clipped to uint8, as by DALI's color_twist."""
    import cv2

    flat = images.reshape(-1, images.shape[-2], 3)
    cv2.transform(flat, matrix, dst=flat)
