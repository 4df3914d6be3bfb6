"""Opening of the gpu backend: can these shards be decoded by it, and on this machine? Every reason is one line."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from pipelines.augment import Augment
from pipelines.backend import Ahead
from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.gpu import decoder
from pipelines.gpu.batches import GpuBatches, Source
from pipelines.gpu.decoder import PieceDecoder
from pipelines.gpu.gather import Gatherer, gathering_library
from pipelines.gpu.layout import JpegLayout, read_layout
from pipelines.gpu.resident import load
from pipelines.plan import Plan
from pipelines.shards.locations import Locations
from pipelines.shards.manifest import Manifest
from pipelines.shards.record import SampleError
from pipelines.shards.records import Records
from pipelines.turbo.normalise import Normalise

LOOKED_AT = 8  # samples, for the header that most of them have
BUILD = "install a C compiler and libjpeg-turbo's headers, then run make -B env"


def obstacle(manifest: Manifest) -> str:
    """Return why the gpu backend cannot read these shards, and which one does; "" if it can."""
    again = command("tools/shard_imagenet.py", "SOURCE", "OUT")
    image = manifest.image
    if not manifest.plain:
        return f"they were written by another program: turbo reads them; for gpu write them by {again}"
    if image.encoding != "jpeg":
        return f"their pixels are raw: turbo and dali read them; for gpu write JPEGs: {again}"
    if image.resize != "square":
        return f"their images differ in size (--resize {image.resize}): turbo and dali read them; for gpu: {again}"
    if not manifest.fits:
        return "they do not fit into the cache: give a larger --cache-gb, or use turbo"
    if not image.restarts:
        return f"their JPEGs have no restart markers: turbo and dali read them; for gpu write them again: {again}"
    return ""


def missing_part() -> str:
    """Return what the gpu backend lacks on the host, and what to do; "" if nothing."""
    return "" if gathering_library() else f"turbo's compiled part is missing or of an earlier version: {BUILD}"


def why_not(manifest: Manifest, device: torch.device) -> str:
    """Return why the gpu backend cannot make batches of these shards on this device; "" if it can."""
    return obstacle(manifest) or missing_part() or decoder.unavailable(device)


def require_gpu(manifest: Manifest) -> None:
    """Raise DataError if the backend cannot read these shards, or lacks its compiled part."""
    if reason := obstacle(manifest):
        raise DataError(f"the backend gpu does not read {manifest.location}: {reason}")
    if reason := missing_part():
        raise DataError(f"the backend gpu cannot run: {reason}, or use turbo")


class GpuSource:
    """Open files, decoder and resident split of a loader, which its backends share, one after the other.

    It is opened at once, so that errors come early, and again after ``release``.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        plan: Plan,
        augment: Augment,
        *,
        device: torch.device,
        threads: int,
        resident: bool,
        pixels: bool,
    ) -> None:
        """Open the split. ``pixels``: batches are uint8, whatever ``augment`` says. Raises DataError."""
        require_gpu(manifest)
        self._manifest, self._split, self._plan, self._augment = manifest, split, plan, augment
        self._device, self._threads, self._resident, self._pixels = device, threads, resident, pixels
        self._source: Source | None = self._opened()

    def batches(self, *, ahead: Callable[[Records], Ahead | None], **given: Any) -> GpuBatches:
        """Return batches, with what fetches shards ``ahead``; the other arguments are those of ``OrderedBatches``."""
        self._source = self._source or self._opened()
        given["ahead"] = ahead(self._source.records)
        return GpuBatches(self._manifest, self._source, self._plan, self._augment, device=self._device, **given)

    def release(self) -> None:
        """Free the memory, as soon as no batches use it."""
        self._source = None

    def _opened(self) -> Source:
        manifest = self._manifest
        manifest.retry()
        records = Records(manifest, self._split)
        layout = common_layout(manifest, records)
        gatherer = Gatherer(manifest, self._augment, Locations(records), layout.header)
        split = manifest.split(self._split)
        resident = None
        if self._resident:
            what = f"{self._split} of {manifest.location}"
            resident = load(gatherer, self._own(), self._device, self._threads, what)
        mean = sum(shard.bytes for shard in split.shards) / split.samples
        return Source(records, gatherer, self._decoder(layout), mean, resident)

    def _own(self) -> range:
        """Return the samples that this rank may need: in training all, in evaluation its share."""
        plan = self._plan
        return range(plan.samples) if plan.training else range(plan.own_start, plan.own_start + plan.own_samples)

    def _decoder(self, layout: JpegLayout) -> PieceDecoder:
        normalise = Normalise(self._manifest, self._augment, self._device)
        image = normalise.mean_image
        try:
            return PieceDecoder(
                layout,
                self._device,
                rows=self._plan.batch_size * self._augment.crops,
                size=self._augment.size,
                dtype=torch.uint8 if self._pixels else normalise.dtype,
                mean_image=None if image is None else torch.from_numpy(image).to(self._device),
                scale=torch.from_numpy(normalise.scale).to(self._device),
            )
        except OSError as error:
            raise DataError(f"the backend gpu cannot run: {error}; turbo can") from error


def common_layout(manifest: Manifest, records: Records) -> JpegLayout:
    """Return the layout that most of a few samples have. Raises DataError if the GPU does not decode it."""
    found: Counter[JpegLayout] = Counter()
    refused: list[DataError] = []
    for number in sorted({len(records) * part // LOOKED_AT for part in range(LOOKED_AT)}):
        try:
            record = records.read(number)
            found[_checked(read_layout(bytes(record.data)), manifest)] += 1
        except SampleError as error:
            refused.append(error)
        except ValueError as error:
            refused.append(record.error(f"cannot be decoded by the backend gpu: {error}"))
    if not found:
        raise refused[0]
    return found.most_common(1)[0][0]


def _checked(layout: JpegLayout, manifest: Manifest) -> JpegLayout:
    """Return the layout. Raises ValueError if it is not of the shards' size."""
    size = manifest.image.size
    if (layout.height, layout.width) != (size, size):
        raise ValueError(f"it has {layout.width} x {layout.height} pixels instead of {size} x {size}")
    return layout
