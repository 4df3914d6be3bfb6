"""A JPEG to pixels, by simplejpeg (libjpeg-turbo): at 1/2, 1/4 or 1/8 of its size where that is enough.

Python's lock is not held meanwhile. native.py decodes parts of images in less time, where it was built.
"""

import threading

import numpy as np

from pipelines.crops import Box, shrink_to
from pipelines.errors import DataError
from pipelines.images.jpeg import check_agreed
from pipelines.images.limits import check_jpeg
from pipelines.shards.manifest import ImageFormat
from pipelines.shards.npy import read_npy
from pipelines.turbo.native import has_native, is_whole


class Decoder:
    """Shared by threads; each has its own buffer. Methods raise ValueError for what is not a whole JPEG."""

    def __init__(self) -> None:
        self._own = threading.local()

    @staticmethod
    def size(jpeg: bytes | memoryview, image: ImageFormat) -> tuple[int, int]:
        """Return the height and width of a shard's JPEG, once it is safe to decode.

        Raises ValueError where it is too large, has too many scans, is not of the shards' size, or where decoders would
        disagree on its pixels.
        """
        import simplejpeg

        check_agreed(bytes(jpeg))
        try:
            height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
        except KeyError as error:  # a sampling that simplejpeg has no name for
            raise ValueError(f"decoders disagree on its chroma sampling, {error}") from None
        check_jpeg(jpeg, height, width, image)
        if image.resize == "square" and (height, width) != (image.size, image.size):
            raise ValueError(f"it has {width} x {height} pixels instead of {image.size} x {image.size}")
        return height, width

    def part(self, jpeg: memoryview, height: int, width: int, box: Box, least: int) -> np.ndarray:
        """What is in ``box`` of an image of height x width pixels: H,W,3 or H,W,4 uint8, good until this thread's next
        call.

        As it is, or at a half, a quarter or an eighth of its size where ``least`` pixels a side still remain.
        """
        shrink = shrink_to(box, least)
        whole = self.whole(jpeg, -(-height // shrink), -(-width // shrink))
        top, left, box_height, box_width = (number // shrink for number in box)
        return whole[top : top + box_height, left : left + box_width]

    def whole(self, jpeg: bytes | memoryview, height: int, width: int) -> np.ndarray:
        """height,width,4 uint8, RGB and nothing: its own size, or that divided by 2, 4 or 8. Good as long as a part."""
        import simplejpeg

        wanted = height * width * 4
        if getattr(self._own, "buffer", None) is None or len(self._own.buffer) < wanted:
            self._own.buffer = _cached_memory(wanted)
        exact = {"fastdct": False, "fastupsample": False}  # Pillow's and DALI's pixels, in no more time
        least = {"min_height": height, "min_width": width}
        return simplejpeg.decode_jpeg(jpeg, "RGBX", **least, buffer=self._own.buffer, **exact)


def read_member(data: bytes, image: ImageFormat) -> np.ndarray:
    """Decode an image of a shard to H,W,3 uint8, as the loaders do. Raises DataError where they would refuse it."""
    try:
        if image.encoding == "raw":
            return read_npy(data, (image.size, image.size, 3), np.uint8)
        height, width = Decoder.size(data, image)
        return Decoder().whole(data, height, width)[..., :3].copy()
    except ValueError as error:
        raise DataError(str(error)) from error


def check_data(jpeg: bytes) -> None:
    """Check that a plain JPEG is decoded without a warning, in a third of the time of that where native.py's library is
    there. Raises ValueError."""
    import simplejpeg

    if not (has_native() and is_whole(jpeg)):
        simplejpeg.decode_jpeg(jpeg, "GRAY")


def _cached_memory(size: int) -> np.ndarray:
    """``size`` uint8, begun half way between two multiples of 32 bytes.

    To an aligned address libjpeg-turbo writes around the cache (vmovntdq), and the crop that is read next comes from
    main memory: a tenth of the time of a 256 x 256 image.
    """
    memory = np.empty(size + 32, np.uint8)
    return memory[(16 - memory.ctypes.data) % 32 :][:size]
