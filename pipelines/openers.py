"""A function for each backend that opens it: from the checked arguments of ``open_loader`` to a loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pipelines.backend import Backend, Skip, Start
from pipelines.identity import Identity
from pipelines.loader import Loader
from pipelines.shards.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from pipelines.transform import Transform

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``open_loader``, checked and with defaults filled in; most of them are in ``identity``."""

    manifest: Manifest
    identity: Identity
    device: torch.device
    threads: int
    on_error: OnError
    keys: bool
    extras: tuple[str, ...]
    transform: Transform | None
    resident: bool


def _synthetic(o: Arguments) -> Loader:
    from pipelines.synthetic import SyntheticBatches

    i = o.identity
    batches = SyntheticBatches(o.manifest, i.plan, i.augment, device=o.device, seed=i.seed)
    return Loader(o.manifest, i, lambda *_: batches, device=o.device)


def _gpu(o: Arguments) -> Loader:
    from pipelines.gpu.opening import GpuSource
    from pipelines.remote.ahead import order_of, read_ahead
    from pipelines.turbo.batches import require_turbo

    require_turbo()
    i = o.identity
    order = order_of(o.manifest, i)
    pixels = i.augment.normalise == "none" or o.transform is not None
    source = GpuSource(
        o.manifest,
        i.split,
        i.plan,
        i.augment,
        device=o.device,
        threads=o.threads,
        resident=o.resident,
        pixels=pixels,
    )
    batches = partial(source.batches, order=order, ahead=partial(read_ahead, o.manifest, i, order=order))
    return Loader(o.manifest, i, partial(_ordered, o, batches), device=o.device, release=source.release)


def _turbo(o: Arguments) -> Loader:
    from pipelines.remote.ahead import order_of, read_ahead
    from pipelines.shards.records import Records
    from pipelines.turbo.batches import TurboBatches, require_turbo
    from pipelines.turbo.native import warn_without_native

    require_turbo()
    i = o.identity
    if not i.plan.rank:
        warn_without_native()
    order = order_of(o.manifest, i)

    def batches(**given: Any) -> TurboBatches:
        records = Records(o.manifest, i.split)
        ahead = read_ahead(o.manifest, i, records, order)
        return TurboBatches(o.manifest, records, i.plan, i.augment, device=o.device, order=order, ahead=ahead, **given)

    return Loader(o.manifest, i, partial(_ordered, o, batches), device=o.device)


def _ordered(o: Arguments, batches: Callable[..., Backend], start: Start, skip: Skip) -> Backend:
    """Open turbo or gpu at a position."""
    return batches(
        seed=o.identity.seed,
        threads=o.threads,
        epoch=start.epoch,
        taken=start.taken,
        skip=skip if o.on_error == "skip" else None,
        keys=o.keys,
        extras=o.extras,
        transform=o.transform,
    )


def _dali(o: Arguments) -> Loader:
    from pipelines.dali.batches import DaliBatches, require_dali

    require_dali()
    i = o.identity

    def open_backend(start: Start, _: Skip) -> Backend:
        """Open DALI's endless pipeline. Another is opened only if an epoch was left early or set by the caller."""
        o.manifest.fetch(i.split)
        return DaliBatches(
            o.manifest,
            i.split,
            i.plan,
            i.augment,
            device=o.device,
            seed=i.seed * 65536 + start.opened_at,
            threads=o.threads,
            checkpoint=start.checkpoint,
        )

    surplus = i.plan.padded_batches - i.plan.batches
    return Loader(o.manifest, i, open_backend, device=o.device, surplus=surplus)


OPENERS: dict[str, Callable[[Arguments], Loader]] = {
    "gpu": _gpu,
    "dali": _dali,
    "turbo": _turbo,
    "synthetic": _synthetic,
}
