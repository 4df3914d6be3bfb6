"""Decoding of batches of JPEGs that share a header, from their bytes to the network's input, on a GPU or emulated."""

import torch
from torch import Tensor

from pipelines.gpu.layout import JpegLayout

# Meanings of the status of a row, for messages: f"cannot be decoded: {PROBLEMS[status]}".
PROBLEMS = {
    1: "it does not lie within the data, or its crop not within the image",  # an error of the caller, not of the file
    2: "its header is not that of the other files",
    3: "restart markers are missing or out of order",
    4: "its data has a code that its Huffman tables lack",
    5: "its data ends too early",
    6: "its data goes on behind the last coefficient",
}


class PieceDecoder:
    """A decoder of batches of JPEGs that share one header, on a GPU or, emulated, on a CPU.

    Its memory is allocated once, for ``rows`` rows, and used by every call: make all calls on one stream.
    """

    def __init__(
        self,
        layout: JpegLayout,
        device: torch.device,
        *,
        rows: int,
        size: int,
        dtype: torch.dtype,
        mean_image: Tensor | None,
        scale: Tensor | None,
    ) -> None:
        """Prepare for batches of up to ``rows`` rows and crops of ``size`` pixels a side.

        ``dtype`` is uint8, float16 or float32. With uint8, pixels are returned as they are; otherwise the result is
        (pixels + colours - mean image, cropped and flipped) * ``scale``, as turbo's ``OnDevice`` computes it.
        ``mean_image`` is H,W,3 float32 of the images' size or None; ``scale`` is 3 float32, None for ones.

        Raises OSError with one line if this device cannot be used: no CUDA, a missing wheel, a driver that is too old,
        or, on a CPU, if the emulated kernels were not built. torch.OutOfMemoryError if memory is short.
        """
        raise NotImplementedError

    @staticmethod
    def scratch_bytes(layout: JpegLayout, rows: int) -> int:
        """Return how much memory a decoder allocates on its device, without the results of its calls."""
        raise NotImplementedError

    def __call__(
        self,
        data: Tensor,
        offsets: Tensor,
        sizes: Tensor,
        boxes: Tensor,
        crops: Tensor,
        colours: Tensor,
        matrices: Tensor | None,
        others: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Queue the decoding of a batch on the current stream. Return images, N,size,size,3, and status, N int32.

        All arguments lie on the device, contiguous; N is at most ``rows``:

        - ``data``: bytes (uint8), in which each row's whole JPEG file lies somewhere;
        - ``offsets`` N int64 and ``sizes`` N int32: where. A size of 0: the row's pixels are in ``others``;
        - ``boxes`` N,4 int32: top, left, height and width of the part of the image to show, resized to size x size
          (linear, as OpenCV's) unless it has that size;
        - ``crops`` N,3 int64: top, left and if it is flipped, as turbo's ``Arrays``. Only the third is used without a
          mean image;
        - ``colours`` N,3 float32: added before the division; not used with uint8;
        - ``matrices`` N,3,4 float32 or None: the jitter, applied to the uint8 pixels as turbo's renderer does;
        - ``others`` N,size,size,3 uint8 or None: finished pixels (cropped, resized, flipped and jittered) of the rows
          whose size is 0. Only colours, mean image and scale are applied to them.

        Status is 0 if a row is right, else a key of ``PROBLEMS``; then its image is all zeros. Nothing waits for the GPU.
        """
        raise NotImplementedError
