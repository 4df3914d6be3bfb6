"""The DALI backend: it runs the DALI graph from shards to normalised batches, on a GPU or on the CPU.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch

from pipelines.augment import Augment
from pipelines.backend import Rows
from pipelines.commands import command
from pipelines.dali.graph import Graph
from pipelines.dali.trace import Trace, complaint, named
from pipelines.errors import DataError
from pipelines.plan import Plan
from pipelines.shards.index import check_index
from pipelines.shards.manifest import Manifest

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

COUNT_BYTES = 8  # a checkpoint begins with the number of batches before it; DALI's own checkpoint follows


def require_dali() -> None:
    """Raise DataError that names the wheel if DALI is missing."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise DataError(
            "DALI is not installed: pip install nvidia-dali-cuda130 (nvidia-dali-cuda120 for a CUDA 12 driver; "
            f"Linux only), or ask for another backend ({error})"
        ) from error


class DaliBatches:
    """An endless source of batches, epoch after epoch; each epoch is padded to whole batches with its last sample.

    ``checkpoint`` comes from an earlier ``DaliBatches`` with the same arguments: the next batch is the one that would
    have followed there. ``seed`` must be the same on every rank. The order of an epoch depends on the seed and on the
    number of epochs since the first batch; DALI's reader cannot give the order of a later epoch without reading all
    before it. Raises DataError.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        plan: Plan,
        augment: Augment,
        *,
        device: torch.device,
        seed: int,
        threads: int,
        checkpoint: bytes | None = None,
    ) -> None:
        for shard in manifest.split(split).shards:
            check_index(manifest, shard)
        self._graph = Graph(manifest, split, plan, augment, gpu=device.type == "cuda", seed=seed)
        self._device_index = _gpu_index(device)
        self._width, self._classes = manifest.label_width, len(manifest.classes)
        self._place_values = torch.tensor([10**place for place in reversed(range(self._width))])
        self._batches = int.from_bytes(checkpoint[:COUNT_BYTES], "little") if checkpoint else 0
        try:
            self._pipeline = self._build(threads, checkpoint[COUNT_BYTES:] if checkpoint else None)
        except RuntimeError as error:
            raise self._reading_failed(complaint(error), None) from error

    def _build(self, threads: int, checkpoint: bytes | None) -> "Pipeline":
        from nvidia.dali import Pipeline

        pipeline = Pipeline(
            batch_size=self._graph.plan.batch_size,
            num_threads=threads,
            device_id=self._device_index,
            seed=self._graph.rank_seed,
            exec_dynamic=True,  # we own the outputs, so torch uses their memory without a copy
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
        with pipeline:
            encoded, digits = self._graph.read()
            pipeline.set_outputs(self._graph.images(encoded), digits)
        pipeline.build()
        return pipeline

    def next(self) -> Rows:
        """Return the next batch: images N,3,H,W, channels-last, and labels N int64; ten crops: 10*N images.

        Raises DataError. A pipeline that failed cannot continue.
        """
        rows = self._run()
        self._batches += 1
        return rows

    def checkpoint(self) -> bytes:
        """Return the position after the last batch that ``next`` returned."""
        return self._batches.to_bytes(COUNT_BYTES, "little") + self._pipeline.checkpoint()

    def close(self) -> None:
        """Do nothing: DALI's threads end with the last reference to the pipeline."""

    def _run(self) -> Rows:
        try:
            images, digits = self._pipeline.run()
        except RuntimeError as error:
            said = complaint(error)
            found = named(said)
            found = f"{found} cannot be decoded" if found else self._trace().unusable(self._batches)
            raise self._reading_failed(said, found) from error
        pixels: torch.Tensor = torch.from_dlpack(images.as_tensor())  # N,H,W,3, or N,10,H,W,3
        return Rows(pixels.flatten(0, -4).permute(0, 3, 1, 2), self._labels(digits))

    def _labels(self, digits: Any) -> torch.Tensor:
        """Return N int64. Raises DataError that names an image whose label is no class."""
        values = torch.from_dlpack(digits.as_tensor()).long() - ord("0")  # N,width
        labels = values @ self._place_values
        wrong = (labels >= self._classes) | ((values < 0) | (values > 9)).any(1)
        if wrong.any():
            where = self._trace().place(self._batches, int(wrong.nonzero()[0])) or f"an image of {self._graph.split}"
            raise DataError(f"{self._folder}: {where} has a label outside 0 to {self._classes - 1}: {self._advice}")
        return labels

    def _trace(self) -> Trace:
        return Trace(self._graph, self._device_index)

    def _reading_failed(self, said: str, found: str | None) -> DataError:
        what = f"{found}: {self._advice}" if found else self._advice
        return DataError(f"reading {self._graph.split} from {self._folder} failed: {what}. DALI says: {said}")

    @property
    def _folder(self) -> str:
        return str(self._graph.manifest.folder)

    @property
    def _advice(self) -> str:
        check = command("tools/shard_imagenet.py", "--verify", self._folder)
        return (
            f"{check} names all shards and images that are wrong, and the command that made them with --repair writes "
            "them again"
        )


def _gpu_index(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
