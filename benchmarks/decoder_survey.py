"""The decoders that run here, and the errors of their pixels. Each picture and decoder has its own process: some crash.

    python -m benchmarks runs [--json FILE]

DALI's decoders, nvImageCodec with each of its backends and torchvision's, on a GPU if there is one. An odd picture
comes in a batch with seven plain ones. ``difference`` is the mean difference of its pixels (0 to 255) from those of
Pillow and libjpeg-turbo. nvJPEG rounds differently and smooths colours less, which makes some units at edges.
"""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline
from benchmarks.memory_decoders import CPU_ONLY
from pipelines import DataError
from pipelines.images.picture import read_picture
from pipelines.terminal import in_range, require

ROOT = Path(__file__).parents[1]
PLAIN = "plain"
BATCH_SIZE, THREADS = 8, 2


@dataclass(frozen=True)
class RunsOptions(MeasureOptions):
    """Decoders and odd JPEGs, each pair in a process of its own."""

    decoders: tuple[Literal["image", "image_crop", "image_random_crop", "nvimgcodec", "torchvision"], ...] = (
        "image",
        "image_crop",
        "image_random_crop",
        "nvimgcodec",
        "torchvision",
    )
    pictures: tuple[str, ...] = ()
    """Decode only these; all if none is named."""
    workers: int = 4
    """Processes that run at a time."""
    patience: float = 60
    """Seconds that each process may take."""

    def __post_init__(self) -> None:
        in_range("workers", self.workers, 1)
        unknown = set(self.pictures) - set(PICTURES)
        require(not unknown, f"--pictures has {', '.join(unknown)}, known: {', '.join(PICTURES)}")


def photograph(width: int, height: int) -> Image.Image:
    """Return smooth colours with some texture."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((255 * x / width, 255 * y / height, 127 + 60 * np.sin(x / 9) * np.cos(y / 7)), -1)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(width: int = 320, height: int = 240, mode: str = "RGB", form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    photograph(width, height).convert(mode).save(buffer, form, **({"quality": 90} | options))
    return buffer.getvalue()


def on_its_side() -> bytes:
    """Return a picture whose EXIF orientation says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(exif=exif.tobytes())


PICTURES: dict[str, Callable[[], bytes]] = {
    PLAIN: saved,
    "progressive": partial(saved, progressive=True),
    "grey": partial(saved, mode="L"),
    "CMYK": partial(saved, mode="CMYK"),
    "4:4:4": partial(saved, subsampling="4:4:4"),
    "4:2:2": partial(saved, subsampling="4:2:2"),
    "restart markers": partial(saved, restart_marker_blocks=4),
    "EXIF orientation": on_its_side,
    "odd sizes": partial(saved, 227, 113),
    "one pixel": partial(saved, 1, 1),
    "large": partial(saved, 5000, 4000),
    "a PNG": partial(saved, form="PNG"),
    "cut off": lambda: saved()[:4000],
    "zeros within": lambda: saved()[:3000] + bytes(2000) + saved()[5000:],
}


def run_runs(options: RunsOptions) -> Iterator[dict]:
    """Yield a row per decoder and picture: how decoding ended, and the error of its pixels."""
    import torch

    deadline = Deadline.after(options.minutes)
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device.startswith("cuda")
    work = [
        {"decoder": decoder, "picture": picture, "gpu": gpu, "backend": backend}
        for decoder in options.decoders
        for backend in (backends(gpu) if decoder == "nvimgcodec" else ("",))
        for picture in (options.pictures or PICTURES)
    ]
    about = {"nvidia_smi": output_of("nvidia-smi"), "libraries": libraries()}
    said = [] if gpu else ["left out, as they need a GPU: mixed decoding, nvJPEG, the JPEG engine"]
    rows: list[dict] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(partial(outcome, patience=options.patience, deadline=deadline), work):
            print("{name:<44}{ended:<14}{difference!s:>10}  {said}".format(**row))
            rows.append(row)
            yield {"benchmark": "runs", "unit": "", "gpu_used": gpu, **about, "rows": rows, "diagnosis": said}


def backends(gpu: bool) -> tuple[str, ...]:
    """Return the names of nvImageCodec's backends."""
    return ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU") if gpu else ("CPU_ONLY",)


def outcome(work: dict[str, Any], patience: float, deadline: Deadline) -> dict[str, Any]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.decoder_survey", json.dumps(work)]
    name = f"{work['decoder']} {work['backend']}".strip() + f": {work['picture']}"
    row: dict[str, Any] = {"name": name, "shape": None, "difference": None, "said": ""}
    if deadline.left() <= 0:
        return row | {"ended": "not tried", "said": "no time"}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return row | {"ended": "never", "said": f"no answer in {patience:.0f} s"}
    row |= {"ended": ending(done.returncode), "seconds": round(time.perf_counter() - start, 1)}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and answers:
        return row | json.loads(answers[-1])
    return row | {"said": " ".join(done.stderr.split())[-300:]}


def ending(code: int) -> str:
    return "well" if code == 0 else signal.Signals(-code).name if code < 0 else "with an error"


def output_of(*command: str) -> str:
    """Return a program's output, empty if the program is missing or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def libraries() -> list[str]:
    """List the driver's libraries that decode. Without libnvcuvid, a container lacks the engines (video)."""
    words = ("nvcuvid", "nvjpeg", "libcuda.")
    return [line.strip() for line in output_of("ldconfig", "-p").splitlines() if any(word in line for word in words)]


def try_one(decoder: str, picture: str, gpu: bool, backend: str) -> dict[str, Any]:
    """Decode the picture in a batch with plain ones. Raises whatever the decoder raises."""
    data, plain = PICTURES[picture](), PICTURES[PLAIN]()
    batch = [data, *[plain] * (BATCH_SIZE - 1)]
    try:
        expected = read_picture(data, ".jpg").pixels
    except DataError as error:
        expected, refused = None, str(error)
    if decoder == "nvimgcodec":
        pixels = with_nvimgcodec(batch, gpu, backend)
    elif decoder == "torchvision":
        pixels = with_torchvision(batch, gpu)
    else:
        pixels = with_dali(batch, gpu, decoder)
    found: dict[str, Any] = {"shape": list(pixels.shape)}
    if expected is None:
        return found | {"said": f"decoded what Pillow refuses: {refused}"}
    if decoder == "image_crop":
        expected = middle(expected)
    if pixels.shape != expected.shape:
        return found | ({} if decoder == "image_random_crop" else {"said": f"Pillow has {list(expected.shape)}"})
    return found | {"difference": round(float(np.abs(pixels.astype(float) - expected).mean()), 2)}


def middle(pixels: np.ndarray) -> np.ndarray:
    """Return the middle half of each side, rounded as DALI does."""
    height, width = (max(1, side // 2) for side in pixels.shape[:2])
    top, left = int((pixels.shape[0] - height) / 2 + 0.5), int((pixels.shape[1] - width) / 2 + 0.5)
    return pixels[top : top + height, left : left + width]


def with_dali(batch: list[bytes], gpu: bool, decoder: str) -> np.ndarray:
    from nvidia.dali import Pipeline, fn, types

    arrays = [np.frombuffer(data, np.uint8) for data in batch]
    pipeline = Pipeline(BATCH_SIZE, THREADS, 0 if gpu else None, seed=0, exec_dynamic=True)
    with pipeline:
        encoded = fn.external_source(lambda: arrays, dtype=types.UINT8, ndim=1)
        window: dict[str, Any] = {}
        if decoder == "image_crop":
            shape = fn.peek_image_shape(encoded, dtype=types.FLOAT)
            window = {"crop_h": half(shape[0]), "crop_w": half(shape[1])}
        decode = getattr(fn.decoders, decoder)
        pipeline.set_outputs(decode(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, **window))
    pipeline.build()
    for _ in range(3):
        (images,) = pipeline.run()
    return np.array(images.as_cpu().at(0))


def half(side: Any) -> Any:
    """Return half of a side, rounded in DALI's graph."""
    from nvidia.dali import math

    return math.max(math.floor(side / 2), 1.0)


def with_nvimgcodec(batch: list[bytes], gpu: bool, backend: str) -> np.ndarray:
    from nvidia import nvimgcodec

    chosen = nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, backend))
    decoder = nvimgcodec.Decoder(0 if gpu else CPU_ONLY, THREADS, [chosen])
    image = decoder.decode([nvimgcodec.CodeStream(data) for data in batch])[0]
    if image is None:
        raise DataError("this backend cannot decode it")
    return np.asarray(image.cpu())


def with_torchvision(batch: list[bytes], gpu: bool) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    jpegs = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in batch]
    images = decode_jpeg(jpegs, ImageReadMode.RGB, "cuda" if gpu else "cpu")
    return images[0].permute(1, 2, 0).cpu().numpy()


if __name__ == "__main__":
    print(json.dumps(try_one(**json.loads(sys.argv[1]))))
