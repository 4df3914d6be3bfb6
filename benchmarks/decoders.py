"""Decoders of JPEGs with their settings, each in a process of its own; see benchmarks/peers/serve.py.

python benchmarks/decoders.py JSON
"""

import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.harness.settings import LoaderSettings
from benchmarks.peers.serve import Rounds, answer
from pipelines import Augment, DataError, Manifest, load_manifest, open_loader
from pipelines.dali.graph import DECODER_PADDING, Graph
from pipelines.plan import Plan

SIZE = 224
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

    def rounds(self, make: Callable[[], object], batch: str) -> Rounds:
        """Return rounds that call ``make``, which makes one batch, ``batches`` times and then wait for the GPU."""

        def take(batches: int) -> int:
            for _ in range(batches):
                made = make()
            finish_work(self.gpu)
            del made
            return batches * self.batch_size

        return Rounds(partial(take, self.batches), batch, partial(take, self.prefetch + 1))


def finish_work(gpu: bool) -> None:
    """Wait for the GPU."""
    if gpu:
        import torch

        torch.cuda.synchronize()


def dali(settings: DecoderSettings) -> Rounds:
    """Decode with the project's reader and DALI's decoders, in a pipeline with these settings."""
    from nvidia.dali import Pipeline

    manifest = load_manifest(settings.data)
    pipeline = Pipeline(
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        device_id=0 if settings.gpu else None,
        seed=0,
        prefetch_queue_depth=settings.prefetch,
        exec_dynamic=True,
    )
    with pipeline:
        pipeline.set_outputs(*graph(settings, manifest))
    pipeline.build()
    kind = f"float16 N,{SIZE},{SIZE},3" if settings.finish else "pixels, thrown away"
    return settings.rounds(pipeline.run, f"{kind}, {settings.device}")


def graph(settings: DecoderSettings, manifest: Manifest) -> tuple[Any, Any]:
    """Build the graph of pipelines/dali/graph.py for crop_flip with any decoder. Return images and labels."""
    from nvidia.dali import fn, types

    plan = Plan(
        samples=manifest.split("train").samples, batch_size=settings.batch_size, rank=0, world_size=1, training=True
    )
    encoded, labels = Graph(manifest, "train", plan, Augment(), gpu=settings.gpu, seed=0).read()
    x, y = (fn.random.uniform(range=(0, 1)) for _ in "xy")
    crop: dict[str, Any] = {"crop": (SIZE, SIZE), "crop_pos_x": x, "crop_pos_y": y}
    decode = getattr(fn.decoders, settings.decoder)
    pixels = decode(encoded, **decoder_options(settings), **(crop if settings.decoder == "image_crop" else {}))
    if not settings.finish:
        return pixels, labels
    if settings.decoder != "image":
        crop = {}
    if settings.decoder == "image_random_crop":
        pixels = fn.resize(pixels, size=(SIZE, SIZE))
    mean, std = Augment().mean_and_std(manifest.statistics)
    finish = {"mean": list(mean), "std": list(std), "dtype": types.FLOAT16, "output_layout": "HWC"}
    return fn.crop_mirror_normalize(pixels, **crop, mirror=fn.random.coin_flip(), **finish), labels


def decoder_options(settings: DecoderSettings) -> dict[str, Any]:
    from nvidia.dali import types

    if not settings.gpu:
        return {"device": "cpu", "output_type": types.RGB}
    padding = {"device_memory_padding": DECODER_PADDING, "host_memory_padding": DECODER_PADDING}
    return {"device": "mixed", "output_type": types.RGB, "hw_decoder_load": settings.hw_load, **padding}


def nvimgcodec(settings: DecoderSettings) -> Rounds:
    """Decode from memory with nvImageCodec alone and one of its backends."""
    from nvidia import nvimgcodec

    backend = nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, settings.backend))
    device_id = 0 if settings.gpu else CPU_ONLY
    decoder = nvimgcodec.Decoder(device_id=device_id, max_num_cpu_threads=settings.threads, backends=[backend])

    def decode(jpegs: list[bytes]) -> object:
        images = decoder.decode([nvimgcodec.CodeStream(jpeg) for jpeg in jpegs])
        if None in images:
            raise DataError(f"{settings.backend} decodes {len(images) - images.count(None)} of {len(images)} images")
        return images

    return in_batches(settings, settings.files(), decode)


def torchvision(settings: DecoderSettings) -> Rounds:
    """Decode with torchvision's decode_jpeg, on a GPU with nvJPEG's batched decoder."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    jpegs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in settings.files()]
    return in_batches(settings, jpegs, partial(decode_jpeg, mode=ImageReadMode.RGB, device=settings.device))


def in_batches(settings: DecoderSettings, jpegs: list, decode: Callable[[Any], object]) -> Rounds:
    """Decode the ``jpegs`` of a round in batches."""
    starts = itertools.cycle(range(0, len(jpegs), settings.batch_size))

    def next_batch() -> object:
        start = next(starts)
        return decode(jpegs[start : start + settings.batch_size])

    return settings.rounds(next_batch, f"pixels, thrown away, {settings.device}")


def together(settings: DecoderSettings) -> Rounds:
    """Run DALI and turbo at once, each on half of the threads: the GPU and the host share the decoding."""
    threads = max(1, settings.threads // 2)
    common: dict[str, Any] = {"augment": "crop_flip", "device": settings.device, "threads": threads}
    backends: tuple[Any, ...] = ("dali", "turbo")
    loaders = [open_loader(settings.data, "train", settings.batch_size, backend=name, **common) for name in backends]
    sources = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
    pool = ThreadPoolExecutor(len(sources))

    def take(batches: int) -> int:
        left = iter(range(batches))  # the threads share it: each takes its next batch when it is free

        def drain(source: Any) -> int:
            return sum(len(next(source).labels) for _ in left)

        images = sum(pool.map(drain, sources))
        finish_work(settings.gpu)
        return images

    return Rounds(partial(take, settings.batches), f"as open_loader's, {settings.device}", partial(take, 12))


WORK = {"dali": dali, "nvimgcodec": nvimgcodec, "torchvision": torchvision, "together": together}


def main() -> None:
    settings = DecoderSettings.from_command_line()
    answer(lambda: WORK[settings.work](settings))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
