"""A JPEG to pixels, by simplejpeg (libjpeg-turbo): at 1/2, 1/4 or 1/8 of its size where that is enough.

Python's lock is not held meanwhile. native.py decodes parts of images in less time, where it was built.
"""

import threading

import numpy as np

from pipelines.crops import Box, shrink_to


class Decoder:
    """Shared by threads; each has its own buffer. Methods raise ValueError for what is not a whole JPEG."""

    def __init__(self) -> None:
        self._own = threading.local()

    @staticmethod
    def size(jpeg: memoryview) -> tuple[int, int]:
        """Height and width."""
        import simplejpeg

        return simplejpeg.decode_jpeg_header(jpeg)[:2]

    def part(self, jpeg: memoryview, height: int, width: int, box: Box, least: int) -> np.ndarray:
        """What is in ``box`` of an image of height x width pixels: H,W,3 or H,W,4 uint8, good until this thread's next
        call.

        As it is, or at a half, a quarter or an eighth of its size where ``least`` pixels a side still remain.
        """
        shrink = shrink_to(box, least)
        whole = self.whole(jpeg, -(-height // shrink), -(-width // shrink))
        top, left, box_height, box_width = (number // shrink for number in box)
        return whole[top : top + box_height, left : left + box_width]

    def whole(self, jpeg: memoryview, height: int, width: int) -> np.ndarray:
        """height,width,4 uint8, RGB and nothing: its own size, or that divided by 2, 4 or 8. Good as long as a part."""
        import simplejpeg

        wanted = height * width * 4
        if getattr(self._own, "buffer", None) is None or len(self._own.buffer) < wanted:
            self._own.buffer = _cached_memory(wanted)
        exact = {"fastdct": False, "fastupsample": False}  # Pillow's and DALI's pixels, in no more time
        least = {"min_height": height, "min_width": width}
        return simplejpeg.decode_jpeg(jpeg, "RGBX", **least, buffer=self._own.buffer, **exact)


def _cached_memory(size: int) -> np.ndarray:
    """``size`` uint8, begun half way between two multiples of 32 bytes.

    To an aligned address libjpeg-turbo writes around the cache (vmovntdq), and the crop that is read next comes from
    main memory: a tenth of the time of a 256 x 256 image.
    """
    memory = np.empty(size + 32, np.uint8)
    return memory[(16 - memory.ctypes.data) % 32 :][:size]
