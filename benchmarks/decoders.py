"""Decoders of JPEGs with their settings, each in a process of its own; see benchmarks/peers/serve.py.

python benchmarks/decoders.py JSON
"""

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.harness.pixels import busy, compare
from benchmarks.memory_decoders import (
    CHECKED_BATCHES,
    EXACT,
    SIZE,
    DecoderSettings,
    finish_work,
    libjpeg,
    nvimgcodec,
    nvjpeg,
    torchvision,
    turbo,
)
from benchmarks.peers.serve import Rounds, answer
from pipelines import Augment, DataError, Manifest, load_manifest, open_loader
from pipelines.dali.graph import DECODER_PADDING, Graph
from pipelines.plan import Plan


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
    whole = settings.decoder == "image" and not settings.finish
    pixels = compare(decoded_by_dali(pipeline, settings.gpu)) if whole else {}
    return settings.rounds(pipeline.run, f"{kind}, {settings.device}", pixels)


def decoded_by_dali(pipeline: Any, gpu: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pixels that DALI decodes while the GPU is busy, and libjpeg-turbo's of the same JPEG."""
    with busy(gpu) as queue:
        for _ in range(CHECKED_BATCHES):
            queue()
            images, encoded = pipeline.run()
            pixels = images.as_cpu() if gpu else images
            for number in range(len(encoded)):
                jpeg = bytes(np.asarray(encoded.at(number)))
                yield np.array(pixels.at(number)), simplejpeg.decode_jpeg(jpeg, **EXACT)


def graph(settings: DecoderSettings, manifest: Manifest) -> tuple[Any, Any]:
    """Build the graph of pipelines/dali/graph.py for crop_flip with any decoder.

    Return images and labels; with ``finish`` false, whole pixels and the JPEGs.
    """
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
        return pixels, encoded
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


WORK = {
    "dali": dali,
    "nvimgcodec": nvimgcodec,
    "torchvision": torchvision,
    "nvjpeg": nvjpeg,
    "libjpeg": libjpeg,
    "turbo": turbo,
    "together": together,
}


def main() -> None:
    settings = DecoderSettings.from_command_line()
    answer(lambda: WORK[settings.work](settings))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
    except ImportError as error:  # also of a package in the namespace nvidia, of which other packages are there
        sys.exit(f"not installed: {error}")
