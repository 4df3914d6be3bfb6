"""Decoding of JPEGs by simplejpeg (libjpeg-turbo), at 1/2, 1/4 or 1/8 of the size if that is enough for the crop.

Python's lock is released meanwhile. If the compiled part was built, native.py decodes crops in less time.
"""

import threading

import numpy as np

from pipelines.crops import Box, shrink_to
from pipelines.errors import DataError
from pipelines.images.jpeg import check_agreed, inspect
from pipelines.images.limits import PILLOW_MAX_PIXELS, check_jpeg, check_shape
from pipelines.images.picture import read_picture
from pipelines.shards.manifest import ImageFormat
from pipelines.shards.npy import read_npy
from pipelines.turbo.native import has_native, is_whole


class Decoder:
    """A decoder that threads may share; each has its own buffer. Methods raise ValueError unless a JPEG is whole."""

    def __init__(self) -> None:
        self._own = threading.local()

    @staticmethod
    def size(jpeg: bytes | memoryview, image: ImageFormat) -> tuple[int, int]:
        """Return the height and width of a shard's JPEG after checking that it is safe to decode.

        Raises ValueError if it is too large, has too many scans, is not of the shards' size, or if decoders would
        disagree on its pixels.
        """
        import simplejpeg

        data = bytes(jpeg)
        header = check_agreed(data)
        try:
            height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
        except KeyError as error:  # a sampling that simplejpeg has no name for
            raise ValueError(f"decoders disagree on its chroma sampling, {error}") from None
        check_jpeg(data, header, (height, width), image)
        if image.resize == "square" and (height, width) != (image.size, image.size):
            raise ValueError(f"it has {width} x {height} pixels instead of {image.size} x {image.size}")
        return height, width

    def part(self, jpeg: memoryview, shape: tuple[int, int], box: Box, least: int) -> np.ndarray:
        """Return the pixels in ``box`` of an image of ``shape`` (height, width): H,W,4 uint8, valid until the next call
        of this thread.

        They are at full size, or at 1/2, 1/4 or 1/8 of it if at least ``least`` pixels a side remain.
        """
        shrink = shrink_to(box, least)
        whole = self.whole(jpeg, -(-shape[0] // shrink), -(-shape[1] // shrink))
        top, left, box_height, box_width = (number // shrink for number in box)
        return whole[top : top + box_height, left : left + box_width]

    def whole(self, jpeg: bytes | memoryview, height: int, width: int) -> np.ndarray:
        """Return height,width,4 uint8, RGB and padding, at full size or at 1/2, 1/4 or 1/8. Valid as long as a part."""
        import simplejpeg

        wanted = height * width * 4
        if getattr(self._own, "buffer", None) is None or len(self._own.buffer) < wanted:
            self._own.buffer = _cached_memory(wanted)
        exact = {"fastdct": False, "fastupsample": False}  # the same pixels as Pillow and DALI, in no more time
        least = {"min_height": height, "min_width": width}
        return simplejpeg.decode_jpeg(jpeg, "RGBX", **least, buffer=self._own.buffer, **exact)


def decode_unusual(data: bytes, image: ImageFormat) -> np.ndarray | None:
    """Decode a whole image, H,W,3 uint8, that is no plain upright JPEG: a PNG, or a JPEG with an EXIF turn or in CMYK.

    Return None for a plain JPEG, which a ``Decoder`` decodes. Raises ValueError if it cannot be decoded.
    """
    jpeg = inspect(data)
    if not jpeg.obstacles and not jpeg.cuts:
        return None
    try:
        pixels = read_picture(data, "", PILLOW_MAX_PIXELS, jpeg).pixels
    except DataError as error:
        raise ValueError(str(error)) from None
    check_shape(pixels.shape[0], pixels.shape[1], image)
    return pixels


def read_member(data: bytes, image: ImageFormat) -> np.ndarray:
    """Decode an image of a shard to H,W,3 uint8, as the loaders do. Raises DataError if they would refuse it."""
    try:
        if image.encoding == "raw":
            return read_npy(data, (image.size, image.size, 3), np.uint8)
        unusual = decode_unusual(data, image) if image.encoding == "any" else None
        if unusual is not None:
            return unusual
        height, width = Decoder.size(data, image)
        return Decoder().whole(data, height, width)[..., :3].copy()
    except ValueError as error:
        raise DataError(str(error)) from error


def check_data(jpeg: bytes) -> None:
    """Raise ValueError unless a plain JPEG decodes without a warning. The compiled part takes a third of the time."""
    import simplejpeg

    if not (has_native() and is_whole(jpeg)):
        simplejpeg.decode_jpeg(jpeg, "GRAY")


def _cached_memory(size: int) -> np.ndarray:
    """Return ``size`` uint8 whose address is half way between two multiples of 32 bytes.

    To an aligned address libjpeg-turbo writes around the cache (vmovntdq), and the crop that is read next would come
    from main memory, which takes a tenth of the time of a 256 x 256 image.
    """
    memory = np.empty(size + 32, np.uint8)
    return memory[(16 - memory.ctypes.data) % 32 :][:size]
