"""Normalisation of a batch in one pass over its pixels: a Triton kernel, for GPUs.

For 1024 images of 224x224 it reads 154 MB of uint8 and writes 308 MB of float16; the mean image stays in the cache.
"""

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 1024, 8  # four numbers a thread: reads of 4 bytes, writes of 8


@triton.jit
def _normalise(
    pixels, image, crops, colours, scale, out, width, SIZE: tl.constexpr, SUBTRACTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Normalise ``BLOCK`` consecutive numbers of one image, each a colour of a pixel."""
    blocks: tl.constexpr = (SIZE * SIZE * 3 + BLOCK - 1) // BLOCK
    number = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIZE * SIZE * 3
    start, colour = number * (SIZE * SIZE * 3), place % 3
    value = tl.load(pixels + start + place, mask=inside, other=0).to(tl.float32)
    value += tl.load(colours + number * 3 + colour)
    if SUBTRACTS:
        crop = crops + number * 3
        top, left, flipped = tl.load(crop).to(tl.int32), tl.load(crop + 1).to(tl.int32), tl.load(crop + 2)
        row, column = place // (3 * SIZE), place // 3 % SIZE
        column = tl.where(flipped > 0, SIZE - 1 - column, column)
        value -= tl.load(image + ((top + row) * width + left + column) * 3 + colour, mask=inside, other=0)
    value *= tl.load(scale + colour)
    tl.store(out + start + place, value.to(out.dtype.element_ty), mask=inside)


def normalise(
    pixels: torch.Tensor,
    image: torch.Tensor | None,
    crops: torch.Tensor,
    colours: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return what ``OnDevice`` returns, for contiguous tensors on a GPU."""
    count, size = len(pixels), pixels.shape[1]
    out = torch.empty_like(pixels, dtype=dtype)
    blocks = triton.cdiv(size * size * 3, BLOCK)
    with torch.cuda.device_of(pixels):
        _normalise[(count * blocks,)](
            pixels,
            colours if image is None else image,
            crops,
            colours,
            scale,
            out,
            0 if image is None else image.shape[1],
            SIZE=size,
            SUBTRACTS=image is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,  # rounds as the operations do, one by one
        )
    return out
