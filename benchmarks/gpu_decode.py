"""The time of decoding an image on an H100, kernel by kernel, computed from shapes: nothing is measured.

    python -m benchmarks decode

Each kernel takes no less than its bytes at the rate of a large copy, nor than its instructions at ``reached`` of the
rate at which the GPU can issue them. Instructions were counted in the code for sm_90 that NVRTC 13.2 makes of
pipelines/gpu/*.cu, along the way of a 4:2:0 image, float16 and a mean image. 32 threads run one instruction at a time,
so a warp takes every branch that one of its threads takes, and waits for its longest piece. docs/gpu.md has the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness.options import MeasureOptions
from pipelines.terminal import in_range, require

WARP = 32  # threads
SCHEDULERS = 132 * 4  # of an H100 SXM; each issues an instruction for a warp in a cycle
COLUMNS = "| kernel | KB | thousand instructions | us an image | measured |"

# Instructions of a thread, in code for sm_90:
FIND_A_BYTE, FIND_FIXED = 18, 450  # looked at twice: counted, then located
SYMBOL = 170  # of a warp: refill, look-up, value; some thread of it is at the end of a block nearly always
TRANSFORM = 500  # of a column and a row of a block
FINISH_FOUR = 250  # once for four pixels
PIXEL, RESIZED_PIXEL = 168, 445  # one pixel of the image, or the mixture of four


@dataclass(frozen=True)
class DecodeOptions(MeasureOptions):
    """The least time of decoding an image on an H100, from shapes. Nothing is measured."""

    side: int = 256
    """Side of the images in pixels; they are 4:2:0."""
    size: int = 227
    """Side of the crops in pixels."""
    file_bytes: int = 21_000
    """Bytes of a file: ImageNet at 256, quality 90, has 27 GB."""
    symbols: int = 26_600
    """Huffman symbols of a file, at quality 90."""
    pieces: int = 64
    """Restart intervals of a file."""
    longest: float = 2.0
    """The longest of 32 neighbouring pieces in symbols, over the mean: an assumption."""
    resized: bool = False
    """Random resized crops, of the whole image at most."""
    reached: float = 0.5
    """The share of the GPU's rate of instructions that the kernels reach, an assumption."""
    gigahertz: float = 1.7
    """Clock of the GPU under load."""
    terabytes: float = 3.0
    """TB/s of a large copy, read plus written: read on an H100 SXM."""

    def __post_init__(self) -> None:
        for name in ("side", "size", "file_bytes", "symbols", "pieces"):
            in_range(name, getattr(self, name), 1)
        require(self.size <= self.side, f"--size is {self.size}, the images have {self.side} pixels a side")
        require(0 < self.reached <= 1, f"--reached is {self.reached}, it is a share above 0, up to 1")
        require(min(self.gigahertz, self.terabytes, self.longest) > 0, "rates and --longest must be above 0")


@dataclass(frozen=True)
class Kernel:
    """A kernel's work for an image: bytes that it reads and writes, and instructions of warps."""

    name: str
    bytes: int
    instructions: int

    def microseconds(self, options: DecodeOptions) -> float:
        issued = self.instructions / (SCHEDULERS * options.gigahertz * 1e3 * options.reached)
        return max(self.bytes / (options.terabytes * 1e6), issued)


def kernels(options: DecodeOptions) -> list[Kernel]:
    """Return the kernels in their order."""
    side, size = options.side, options.size
    mcus = (-(-side // 16)) ** 2
    shown = min(-(-side // 16), (size + 30) // 16 + 1) ** 2  # MCUs of 16x16 pixels that a crop touches
    samples, shown_samples = 384 * mcus, 384 * shown  # bytes of planes; coefficients have two
    per_pixel = RESIZED_PIXEL if options.resized else PIXEL
    warps = -(-options.pieces // WARP)
    return [
        Kernel("find_markers", options.file_bytes, (256 * FIND_FIXED + options.file_bytes * FIND_A_BYTE) // WARP),
        Kernel(
            "decode_pieces",
            options.file_bytes + 2 * samples,
            int(warps * options.symbols / options.pieces * options.longest * SYMBOL),
        ),
        Kernel("transform", 3 * shown_samples, shown_samples // 8 * TRANSFORM // WARP),
        Kernel("finish", shown_samples + 6 * size * size, size * size * (FINISH_FOUR // 4 + per_pixel) // WARP),
    ]


def run_decode(options: DecodeOptions) -> Iterator[dict]:
    """Yield a row per kernel and one for the image."""
    print(*table(options), sep="\n")
    rows = [
        {
            "name": kernel.name,
            "bytes": kernel.bytes,
            "instructions": kernel.instructions,
            "us": round(kernel.microseconds(options), 3),
        }
        for kernel in kernels(options)
    ]
    yield {"benchmark": "decode", "unit": "us an image, predicted", "reached": options.reached, "rows": rows}


def table(options: DecodeOptions) -> list[str]:
    """Return the lines of a Markdown table, with an empty column for measuring."""
    found = kernels(options)
    lines = [COLUMNS, "| --- | --- | --- | --- | --- |"]
    for kernel in found:
        cells = (
            f"{kernel.bytes / 1e3:,.0f}",
            f"{kernel.instructions / 1e3:,.0f}",
            f"{kernel.microseconds(options):.2f}",
        )
        lines.append(f"| `{kernel.name}` | {' | '.join(cells)} | |")
    whole = Kernel("an image", sum(one.bytes for one in found), sum(one.instructions for one in found))
    microseconds = sum(one.microseconds(options) for one in found)
    cells = (f"{whole.bytes / 1e3:,.0f}", f"{whole.instructions / 1e3:,.0f}", f"{microseconds:.2f}")
    return [
        *lines,
        f"| {whole.name} | {' | '.join(cells)} | |",
        f"| images/s | | | {1e6 / microseconds:,.0f} | |",
    ]
