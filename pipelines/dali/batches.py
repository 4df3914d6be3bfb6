"""The DALI backend: it runs the DALI graph from shards to normalised batches, on a GPU or on the CPU.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.augment import Augment
from pipelines.backend import Rows
from pipelines.commands import command
from pipelines.dali.graph import Graph
from pipelines.dali.trace import Trace, complaint, gpu_fault, named
from pipelines.errors import DataError
from pipelines.plan import Plan
from pipelines.shards.index import check_index
from pipelines.shards.manifest import Manifest

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

GPU_PREFETCH, CPU_PREFETCH = 3, 2  # batches that DALI makes ahead; trace.READ_AHEAD is one more
COUNT_BYTES = 8  # a checkpoint begins with the number of batches before it; DALI's own checkpoint follows


def require_dali() -> None:
    """Raise DataError that names the wheel if DALI is missing."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise DataError(
            "DALI is not installed: pip install 'alexnet-pipelines[dali]' (nvidia-dali-cuda120 for a CUDA 12 driver; "
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
        self._device, self._device_index = device, _gpu_index(device)
        self._width, self._classes = manifest.label_width, len(manifest.classes)
        self._place_values = torch.tensor([10**place for place in reversed(range(self._width))])
        self._batches = int.from_bytes(checkpoint[:COUNT_BYTES], "little") if checkpoint else 0
        try:
            self._pipeline = self._build(threads, checkpoint[COUNT_BYTES:] if checkpoint else None)
        except RuntimeError as error:
            raise self._failed(error, lambda _: None) from error

    def _build(self, threads: int, checkpoint: bytes | None) -> "Pipeline":
        from nvidia.dali import Pipeline

        pipeline = Pipeline(
            batch_size=self._graph.plan.batch_size,
            num_threads=threads,
            device_id=self._device_index,
            seed=self._graph.rank_seed,
            exec_dynamic=True,  # we own the outputs, so on a CPU torch uses their memory without a copy
            prefetch_queue_depth=GPU_PREFETCH if self._graph.gpu else CPU_PREFETCH,
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
        stream = torch.cuda.current_stream(self._device) if self._graph.gpu else None
        try:
            images, digits = self._pipeline.run(stream)  # with a stream the host does not wait for the GPU
        except RuntimeError as error:
            raise self._failed(error, self._blamed) from error
        pixels = owned(images.as_tensor(), self._device, stream)  # N,H,W,3, or N,10,H,W,3
        return Rows(pixels.flatten(0, -4).permute(0, 3, 1, 2), self._labels(digits))

    def _labels(self, digits: Any) -> torch.Tensor:
        """Return N int64. Raises DataError that names an image whose label is no class."""
        values = torch.from_numpy(np.array(digits.as_tensor())).long() - ord("0")  # N,width
        labels = values @ self._place_values
        wrong = (labels >= self._classes) | ((values < 0) | (values > 9)).any(1)
        if wrong.any():
            where = self._trace().place(self._batches, int(wrong.nonzero()[0])) or f"an image of {self._graph.split}"
            raise DataError(f"{self._folder}: {where} has a label outside 0 to {self._classes - 1}: {self._advice}")
        return labels

    def _trace(self) -> Trace:
        return Trace(self._graph, self._device_index)

    def _blamed(self, said: str) -> str | None:
        """Return which image DALI could not use, as it says or as the trace finds; None if none was found."""
        if found := named(said):
            return f"{found} cannot be decoded"
        return self._trace().unusable(self._batches)

    def _failed(self, error: RuntimeError, blamed: Callable[[str], str | None]) -> DataError:
        """Return what to raise for an error of DALI's: that the GPU failed, or what is wrong with the shards."""
        reading, said, found = f"reading {self._graph.split} from {self._folder}", complaint(error), None
        fault = gpu_fault(error, self._device)
        if not fault:
            try:
                found = blamed(said)
            except RuntimeError as later:  # the search uses the GPU too
                fault = gpu_fault(later, self._device)
        if fault:
            smaller = ": lower the batch size" if "alloc" in fault.lower() or "memory" in fault.lower() else ""
            return DataError(f"the GPU failed when {reading}: {fault}{smaller}")
        what = f"{found}: {self._advice}" if found else self._advice
        return DataError(f"{reading} failed: {what}. DALI says: {said}")

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


def owned(images: Any, device: torch.device, stream: torch.cuda.Stream | None) -> torch.Tensor:
    """Return DALI's images, a dense tensor on ``device``, as a tensor that belongs to whoever holds it.

    On a GPU they are copied on ``stream``, the current one, into memory of torch's own (0.2 ms for a batch of 1024).
    Without the copy DALI would get its memory back when torch drops the tensor; one of its threads then calls
    cudaDeviceSynchronize, which invalidates a CUDA graph that is being captured. On a CPU nothing is copied.
    """
    if stream is None:
        return torch.from_dlpack(images)
    from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

    copy = torch.empty(images.shape(), dtype=to_torch_type[images.dtype], device=device)
    return feed_ndarray(images, copy, cuda_stream=stream)


def _gpu_index(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
