"""Decoders of JPEGs in memory, beside DALI's in decoders.py: nvJPEG, nvImageCodec, torchvision, libjpeg-turbo, turbo.

Before anything is measured, the pixels of some batches are compared with libjpeg-turbo's, on a GPU while it is busy.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.harness.pixels import busy, compare
from benchmarks.harness.settings import LoaderSettings
from benchmarks.nvjpeg import Decoder, load_nvjpeg
from benchmarks.peers.serve import Rounds
from pipelines import Augment, DataError, load_manifest, open_loader

SIZE = 224
CHECKED_BATCHES = 4  # whose pixels are compared before anything is measured
EXACT: Any = {"fastdct": False, "fastupsample": False}  # libjpeg-turbo's best, as turbo and Pillow decode
CPU_ONLY = -99999  # nvImageCodec's number for "no GPU"
NVIMGCODEC = {"cpu": ("CPU_ONLY",), "cuda": ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU")}  # a device's backends


@dataclass(frozen=True)
class DecoderSettings(LoaderSettings):
    """Settings of a decoder. ``work`` is a key of WORK. ``finish`` makes batches as for training, not only pixels."""

    finish: bool = False
    decoder: str = "image"
    hw_load: float = 0.65
    prefetch: int = 2
    backend: str = "CPU_ONLY"

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def rounds(self, make: Callable[[], object], batch: str, pixels: dict[str, Any]) -> Rounds:
        """Return rounds that call ``make``, which makes one batch, ``batches`` times and then wait for the GPU."""

        def take(batches: int) -> int:
            for _ in range(batches):
                made = make()
            finish_work(self.gpu)
            del made
            return batches * self.batch_size

        return Rounds(partial(take, self.batches), batch, partial(take, self.prefetch + 1), pixels)


def finish_work(gpu: bool) -> None:
    """Wait for the GPU."""
    if gpu:
        import torch

        torch.cuda.synchronize()


def nvimgcodec(settings: DecoderSettings) -> Rounds:
    """Decode from memory with nvImageCodec alone and one of its backends."""
    from nvidia import nvimgcodec

    backend = nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, settings.backend))
    device_id = 0 if settings.gpu else CPU_ONLY
    decoder = nvimgcodec.Decoder(device_id=device_id, max_num_cpu_threads=settings.threads, backends=[backend])

    def decode(jpegs: list[bytes]) -> Sequence[Any]:
        images = decoder.decode([nvimgcodec.CodeStream(jpeg) for jpeg in jpegs])
        if None in images:
            raise DataError(f"{settings.backend} decodes {len(images) - images.count(None)} of {len(images)} images")
        return images

    def copied(image: Any) -> Any:
        import torch

        return torch.as_tensor(image, device="cuda").clone() if settings.gpu else np.asarray(image.cpu()).copy()

    return in_batches(settings, decode, copied)


def torchvision(settings: DecoderSettings) -> Rounds:
    """Decode with torchvision's decode_jpeg, on a GPU with nvJPEG's batched decoder."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpegs: list[bytes]) -> Sequence[Any]:
        with warnings.catch_warnings(action="ignore"):  # torch: bytes are read-only
            data = [torch.frombuffer(jpeg, dtype=torch.uint8) for jpeg in jpegs]
        return decode_jpeg(data, ImageReadMode.RGB, settings.device)

    return in_batches(settings, decode, lambda image: image.permute(1, 2, 0).clone())


def nvjpeg(settings: DecoderSettings) -> Rounds:
    """Decode with nvJPEG alone, into the caller's tensors."""
    import torch

    decoder = Decoder(load_nvjpeg(), settings.backend, settings.threads)
    streams = [torch.cuda.Stream() for _ in range(decoder.workers)]

    def decode(jpegs: list[bytes]) -> Sequence[Any]:
        shapes = [simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs]
        images = [torch.empty(*shape, 3, dtype=torch.uint8, device="cuda") for shape in shapes]
        current = torch.cuda.current_stream()
        for stream in streams:
            stream.wait_stream(current)  # the memory may still be read there
        targets = [(image.data_ptr(), 3 * image.shape[1]) for image in images]
        decoder.decode(jpegs, targets, [stream.cuda_stream for stream in streams])
        for stream in streams:
            current.wait_stream(stream)
        return images

    return in_batches(settings, decode, lambda image: image.clone())


def libjpeg(settings: DecoderSettings) -> Rounds:
    """Decode whole images with libjpeg-turbo, as turbo does, on threads."""
    pool = ThreadPoolExecutor(settings.threads)

    def share(jpegs: list[bytes]) -> list[np.ndarray]:
        return [simplejpeg.decode_jpeg(jpeg, **EXACT) for jpeg in jpegs]

    def decode(jpegs: list[bytes]) -> Sequence[Any]:
        parts = [jpegs[first :: settings.threads] for first in range(settings.threads)]
        images: list[Any] = [None] * len(jpegs)
        for first, found in enumerate(pool.map(share, parts)):
            images[first :: settings.threads] = found
        return images

    return in_batches(settings, decode, np.copy)


def turbo(settings: DecoderSettings) -> Rounds:
    """Make turbo's batches on the CPU: uint8 random crops, of which it decodes no more than it needs."""
    common: dict[str, Any] = {"backend": "turbo", "threads": settings.threads}
    augment = Augment(crop="random", normalise="none")
    batches = itertools.chain.from_iterable(
        itertools.repeat(open_loader(settings.data, "train", settings.batch_size, augment, **common))
    )
    pixels = compare(center_crops(settings, common)) if load_manifest(settings.data).image.resize == "square" else {}
    return settings.rounds(lambda: next(batches), f"uint8 N,3,{SIZE},{SIZE}, cpu", pixels)


def center_crops(settings: DecoderSettings, common: dict[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield turbo's center crops of square images and those of the whole images that libjpeg-turbo decodes."""
    augment = Augment(crop="center", flip=False, normalise="none")
    loader = open_loader(settings.data, "train", settings.batch_size, augment, training=False, **common)
    with closing(loader):
        jpegs = iter(settings.files())
        for batch in itertools.islice(loader, CHECKED_BATCHES):
            for image, jpeg in zip(batch.images[: batch.valid], jpegs, strict=False):
                whole = simplejpeg.decode_jpeg(jpeg, **EXACT)
                top = (whole.shape[0] - SIZE) // 2
                yield image.permute(1, 2, 0).numpy(), whole[top : top + SIZE, top : top + SIZE]


def in_batches(
    settings: DecoderSettings, decode: Callable[[list[bytes]], Sequence[Any]], copied: Callable[[Any], Any]
) -> Rounds:
    """Decode a round's images in batches. ``copied`` queues a copy of an image, H,W,3, after what is queued already."""
    jpegs = settings.files()
    starts = itertools.cycle(range(0, len(jpegs), settings.batch_size))

    def next_batch() -> object:
        start = next(starts)
        return decode(jpegs[start : start + settings.batch_size])

    pixels = compare(checked(jpegs[: CHECKED_BATCHES * settings.batch_size], settings, decode, copied))
    return settings.rounds(next_batch, f"pixels, thrown away, {settings.device}", pixels)


def checked(
    jpegs: list[bytes],
    settings: DecoderSettings,
    decode: Callable[[list[bytes]], Sequence[Any]],
    copied: Callable[[Any], Any],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pixels and libjpeg-turbo's.

    While the copies of a batch wait behind other work, its memory is freed and the next batch is decoded: a decoder
    that does not wait for the stream writes over it.
    """
    copies: list[Any] = []
    with busy(settings.gpu) as queue:
        for start in range(0, len(jpegs), settings.batch_size):
            images = decode(jpegs[start : start + settings.batch_size])
            queue()
            copies += [copied(image) for image in images]
            del images
    for jpeg, copy in zip(jpegs, copies, strict=True):
        yield np.asarray(copy.cpu() if settings.gpu else copy), simplejpeg.decode_jpeg(jpeg, **EXACT)
