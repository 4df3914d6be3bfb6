"""The DALI graph: shards in, normalised batches out, on a GPU or with the same graph on the CPU.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.augment import Augment, lighting_matrix
from pipelines.plan import Plan
from pipelines.shards import DataError, ImageFormat, Manifest

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

SHUFFLE_BUFFER = 4096  # samples; the shards themselves are in a global permutation already
DECODER_PADDING = 1 << 22  # bytes of memory set aside for an image, so that a large one does not stall the pipeline


def require_dali() -> None:
    """Raises DataError that names the wheel where DALI is missing."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise DataError(
            "DALI is not installed: pip install nvidia-dali-cuda130 (nvidia-dali-cuda120 for a CUDA 12 driver; "
            f"Linux only), or ask for another backend ({error})"
        ) from error


class DaliBatches:
    """An endless run of batches, epoch after epoch; each epoch is padded to whole batches with its last sample.

    ``checkpoint`` is what an earlier ``DaliBatches`` with the same arguments gave: the next batch is the one that
    would have come there.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        plan: Plan,
        augment: Augment,
        device: torch.device,
        seed: int,
        threads: int | None = None,
        checkpoint: bytes | None = None,
    ) -> None:
        from nvidia.dali import pipeline_def

        self._folder, self._split, self._classes = manifest.folder, split, len(manifest.classes)
        width = manifest.label_width
        self._place_values = torch.tensor([10**place for place in reversed(range(width))])
        self._pipeline: Pipeline = pipeline_def(_graph)(
            manifest,
            split,
            augment,
            plan,
            device.type == "cuda",
            batch_size=plan.batch_size,
            num_threads=threads or max(1, len(os.sched_getaffinity(0)) // _local_ranks()),
            device_id=_gpu_index(device),
            seed=seed * 4096 + plan.rank,
            exec_dynamic=True,  # its outputs are ours: torch uses their memory, nothing is copied
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
        self._call(self._pipeline.build)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images N,3,H,W, channels-last, on the device; labels N int64, on the CPU. Raises DataError."""
        images, digits = self._call(self._pipeline.run)
        pixels = torch.from_dlpack(images.as_tensor())  # N,H,W,3
        labels = (torch.from_dlpack(digits.as_tensor()).long() - ord("0")) @ self._place_values
        if labels.min() < 0 or labels.max() >= self._classes:
            raise DataError(f"{self._folder} has a label outside 0 to {self._classes - 1}: {_advice(self._folder)}")
        return pixels.permute(0, 3, 1, 2), labels

    def checkpoint(self) -> bytes:
        """The position after the last batch given out."""
        return self._pipeline.checkpoint()

    def _call(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except RuntimeError as error:
            said = " ".join(str(error).rpartition("encountered:")[2].split())  # what stands before is our own code
            raise DataError(
                f"reading {self._split} from {self._folder} failed: {_advice(self._folder)}. DALI says: {said[:500]}"
            ) from error


def _advice(folder: Path) -> str:
    return f"python tools/shard_imagenet.py --verify {folder} names the shard and the image"


def _graph(manifest: Manifest, split: str, augment: Augment, plan: Plan, gpu: bool):
    """What happens to an image, in the order in which it happens."""
    from nvidia.dali import fn, types

    paths = [str(manifest.folder / shard.path) for shard in manifest.split(split).shards]
    encoded, digits = fn.readers.webdataset(  # type: ignore[misc]
        paths=paths,
        index_paths=[path.removesuffix("tar") + "idx" for path in paths],
        ext=[manifest.image.extension, "cls"],
        missing_component_behavior="error",
        random_shuffle=plan.training,
        initial_fill=SHUFFLE_BUFFER,
        shard_id=plan.rank,
        num_shards=plan.world_size,
        stick_to_shard=True,
        pad_last_batch=True,
        name="reader",
    )
    images = _decoded(encoded, manifest.image, gpu)  # H,W,3
    if manifest.image.resize == "none":  # any size: the shorter side as in shards that were resized
        images = fn.resize(images, resize_shorter=manifest.image.size, interp_type=types.INTERP_CUBIC, antialias=True)
    mean, std = augment.mean_and_std(manifest.statistics)
    random_crop = augment.crop == "random"
    images = fn.crop_mirror_normalize(  # size,size,3
        images,
        crop=(augment.size, augment.size),
        crop_pos_x=fn.random.uniform(range=(0, 1)) if random_crop else 0.5,
        crop_pos_y=fn.random.uniform(range=(0, 1)) if random_crop else 0.5,
        mirror=fn.random.coin_flip() if augment.flip else 0,
        mean=_lit(mean, augment, manifest) if augment.lighting else list(mean),
        std=list(std),
        dtype=types.FLOAT16 if gpu else types.FLOAT,
        output_layout="HWC",
    )
    return images, digits


def _decoded(encoded, image: ImageFormat, gpu: bool):
    from nvidia.dali import fn, types

    if image.encoding == "raw":
        pixels = fn.reshape(fn.decoders.numpy(encoded), layout="HWC")
        return pixels.gpu() if gpu else pixels
    return fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        device_memory_padding=DECODER_PADDING if gpu else None,
        host_memory_padding=DECODER_PADDING if gpu else None,
    )


def _lit(mean: tuple[float, ...], augment: Augment, manifest: Manifest):
    """The mean to subtract from one image: with its random light taken off, so that lighting costs nothing."""
    import numpy as np
    from nvidia.dali import fn, types

    factors = fn.random.normal(shape=(3,), stddev=augment.lighting)
    components = types.Constant(np.array(lighting_matrix(manifest.statistics), np.float32), device="cpu")  # 3,3
    light = fn.reductions.sum(components * factors, axes=1)  # 3
    return types.Constant(np.array(mean, np.float32), device="cpu") - light


def _gpu_index(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _local_ranks() -> int:
    """Ranks that share this machine's cores; torchrun tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
