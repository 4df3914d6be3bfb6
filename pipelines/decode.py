"""A JPEG, or a part of one, to pixels, in a fraction of the time where only a part or a smaller image is needed.

simplejpeg (libjpeg-turbo) decodes whole images, at 1/2, 1/4 or 1/8 of their size where that is enough. nvImageCodec's
CPU decoder (libjpeg-turbo too: the same pixels) stops below the region that is needed; it comes with DALI and may be
missing. Neither holds Python's lock while it decodes.
"""

import threading
from typing import Any

import numpy as np

from pipelines.crops import Box

CPU_ONLY = -99999  # nvImageCodec's number for "no GPU"


class Decoder:
    """Shared by threads; each has its own buffer. Methods raise ValueError for what is not a whole JPEG."""

    def __init__(self, regions: bool = True) -> None:
        """``regions``: use nvImageCodec, where it is installed."""
        self._codec = _find_codec() if regions else None
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
        shrink = _shrink(box, least)
        if shrink > 1:
            whole = self.whole(jpeg, -(-height // shrink), -(-width // shrink))
            box = Box(*(number // shrink for number in box))
        elif self._codec and _region_pays(height, width, box):
            return self._region(self._codec, jpeg, box)
        else:
            whole = self.whole(jpeg, height, width)
        return whole[box.top : box.top + box.height, box.left : box.left + box.width]

    def whole(self, jpeg: memoryview, height: int, width: int) -> np.ndarray:
        """height,width,4 uint8, RGB and nothing: its own size, or that divided by 2, 4 or 8. Good as long as a part."""
        import simplejpeg

        wanted = height * width * 4
        if getattr(self._own, "buffer", None) is None or len(self._own.buffer) < wanted:
            self._own.buffer = _cached_memory(wanted)
        exact = {"fastdct": False, "fastupsample": False}  # Pillow's and DALI's pixels, in no more time
        least = {"min_height": height, "min_width": width}
        return simplejpeg.decode_jpeg(jpeg, "RGBX", **least, buffer=self._own.buffer, **exact)

    def _region(self, nvimgcodec: Any, jpeg: memoryview, box: Box) -> np.ndarray:
        if getattr(self._own, "decoder", None) is None:
            backend = nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)
            self._own.decoder = nvimgcodec.Decoder(device_id=CPU_ONLY, max_num_cpu_threads=1, backends=[backend])
        region = nvimgcodec.Region(box.top, box.left, box.top + box.height, box.left + box.width)
        stream = nvimgcodec.CodeStream(np.frombuffer(jpeg, np.uint8)).get_sub_code_stream(region=region)
        pixels = self._own.decoder.decode(stream)
        if pixels is None:
            raise ValueError("nvImageCodec cannot decode it")
        return np.asarray(pixels.cpu())


def _cached_memory(size: int) -> np.ndarray:
    """``size`` uint8, begun half way between two multiples of 32 bytes.

    To an aligned address libjpeg-turbo writes around the cache (vmovntdq), and the crop that is read next comes from
    main memory: a tenth of the time of a 256 x 256 image.
    """
    memory = np.empty(size + 32, np.uint8)
    return memory[(16 - memory.ctypes.data) % 32 :][:size]


def _shrink(box: Box, least: int) -> int:
    """1, 2, 4 or 8."""
    return next((times for times in (8, 4, 2) if min(box.height, box.width) >= times * least), 1)


def _region_pays(height: int, width: int, box: Box) -> bool:
    """Whether nvImageCodec is faster: it decodes the rows down to the bottom of the box, and converts the box alone.

    Of the time of a whole decode 0.7 for the rows and 0.45 for the box, and as much as 13,000 pixels to begin:
    measured at 256 x 256 and 500 x 375, to about a tenth.
    """
    pixels = height * width
    rows, area = (box.top + box.height) / height, box.height * box.width / pixels
    return 0.7 * rows + 0.45 * area + 13_000 / pixels < 1


def _find_codec() -> Any:
    try:
        from nvidia import nvimgcodec
    except ImportError:
        return None
    return nvimgcodec
