"""Decoding of batches of JPEGs that share a header, from their bytes to the network's input, on a GPU or emulated."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipelines.gpu import emulated, launch
from pipelines.gpu.kernels import Batch
from pipelines.gpu.layout import MAX_SIDE, JpegLayout
from pipelines.gpu.tables import tables_of

DTYPES = (torch.uint8, torch.float16, torch.float32)  # in the order of batch.cu's enum
MAX_ROWS = 65_535  # of a grid

# Meanings of the status of a row, for messages: f"cannot be decoded: {PROBLEMS[status]}".
PROBLEMS = {
    1: "it does not lie within the data, or its crop not within the image",  # an error of the caller, not of the file
    2: "its header is not that of the other files",
    3: "restart markers are missing or out of order",
    4: "its data has a code that its Huffman tables lack",
    5: "its data ends too early",
    6: "its data goes on behind the last coefficient",
}


def unavailable(device: torch.device) -> str:
    """Return why this device cannot decode, in one line; "" if it can. Nothing is compiled or allocated."""
    if device.type != "cpu":
        return launch.unavailable(device)
    return "" if emulated.emulated_library() else emulated.MISSING


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
        if not 0 < rows <= MAX_ROWS:
            raise ValueError(f"a batch of {rows} rows: at least 1 and at most {MAX_ROWS} can be decoded together")
        if dtype not in DTYPES or not 0 < size <= MAX_SIDE:
            raise ValueError(f"{dtype} crops of {size} pixels a side cannot be made")
        self._device, self._rows, self._size, self._dtype = device, rows, size, dtype
        self._run = _runner(device, layout)
        self._numbers = _numbers(layout) | {"size": size, "dtype": DTYPES.index(dtype)}
        fixed = {
            "header": np.frombuffer(layout.header, np.uint8),
            "tables": tables_of(layout).reshape(1).view(np.uint8),
        }
        self._fixed: dict[str, Tensor | None] = {
            **{name: torch.from_numpy(array.copy()).to(device) for name, array in fixed.items()},
            **{name: torch.empty(rows * count, dtype=kind, device=device) for name, (count, kind) in _scratch(layout)},
            "mean_image": None
            if mean_image is None
            else _on_device(mean_image, (layout.height, layout.width, 3), device),
            "scale": _on_device(torch.ones(3) if scale is None else scale, (3,), device),
        }

    @staticmethod
    def scratch_bytes(layout: JpegLayout, rows: int) -> int:
        """Return how much memory a decoder allocates on its device, without the results of its calls."""
        return rows * sum(count * kind.itemsize for _, (count, kind) in _scratch(layout))

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

        Status is 0 if a row is right, else a key of ``PROBLEMS``; then its image is all zeros. Nothing waits.
        """
        given = {"data": data, "offsets": offsets, "sizes": sizes, "boxes": boxes, "crops": crops, "colours": colours}
        optional = {"matrices": matrices, "others": others}
        count = len(offsets)
        self._check(count, given | {name: tensor for name, tensor in optional.items() if tensor is not None})
        images = torch.empty((count, self._size, self._size, 3), dtype=self._dtype, device=self._device)
        status = torch.empty(count, dtype=torch.int32, device=self._device)
        if count:
            tensors = {**given, **optional, **self._fixed, "images": images, "status": status}
            addresses = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
            self._run(Batch(rows=count, data_bytes=len(data), **addresses, **self._numbers))
        return images, status

    def _check(self, count: int, given: dict[str, Tensor]) -> None:
        """Raise ValueError unless every argument has its type and shape, on the device: kernels cannot check that."""
        if count > self._rows:
            raise ValueError(f"a batch of {count} rows, the decoder was made for {self._rows}")
        expected = _expected(count, self._size)
        for name, tensor in given.items():
            kind, shape = expected[name]
            fits = tensor.dtype == kind and tensor.device.type == self._device.type and tensor.is_contiguous()
            if not fits or (shape and tensor.shape != shape):
                raise ValueError(f"{name} is not a contiguous {kind} tensor of {shape or 'bytes'} on {self._device}")


def _expected(count: int, size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
    """Return the type and shape of each argument."""
    return {
        "data": (torch.uint8, None),
        "offsets": (torch.int64, (count,)),
        "sizes": (torch.int32, (count,)),
        "boxes": (torch.int32, (count, 4)),
        "crops": (torch.int64, (count, 3)),
        "colours": (torch.float32, (count, 3)),
        "matrices": (torch.float32, (count, 3, 4)),
        "others": (torch.uint8, (count, size, size, 3)),
    }


def _on_device(tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a tensor as float32 on the device. Raises ValueError for another shape."""
    if tensor.shape != shape:
        raise ValueError(f"the mean image or the scale has the shape {tuple(tensor.shape)}, not {shape}")
    return tensor.to(device, torch.float32).contiguous()


def _runner(device: torch.device, layout: JpegLayout) -> Callable[[Batch], None]:
    """Return the function that decodes a batch on this device. Raises OSError."""
    if device.type == "cpu":
        return emulated.runner()
    kernels = launch.GpuKernels(device)
    return lambda batch: kernels.run(batch, layout.blocks)


def _numbers(layout: JpegLayout) -> dict[str, int]:
    """Return the fields of ``Batch`` that the layout gives."""
    (h, v), (mcus_down, mcus_across) = layout.sampling, layout.mcus
    return {
        "height": layout.height,
        "width": layout.width,
        "components": layout.components,
        "h": h,
        "v": v,
        "mcus_down": mcus_down,
        "mcus_across": mcus_across,
        "interval": layout.restart_interval,
        "pieces": layout.pieces,
        "header_bytes": len(layout.header),
    }


def _scratch(layout: JpegLayout) -> tuple[tuple[str, tuple[int, torch.dtype]], ...]:
    """Return how many numbers an image needs while it is decoded: ends of pieces, coefficients, samples."""
    numbers = 64 * layout.blocks
    return (
        ("ends", (layout.pieces, torch.int32)),
        ("coefficients", (numbers, torch.int16)),
        ("planes", (numbers, torch.uint8)),
    )
