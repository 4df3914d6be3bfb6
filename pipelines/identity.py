"""The identity of a loader: what must be the same for a saved position to be followed by the same batches."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pipelines.augment import Augment
from pipelines.plan import Plan
from pipelines.shards.manifest import Manifest
from pipelines.untrusted import shown


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The arguments of a loader that decide, with a position, which batches follow.

    ``manifest`` is the sha256 of manifest.json. ``counts``: the number of samples taken is the whole position, so in
    training the batch size, the rank and the number of ranks may change. ``window``: how many shards the order mixes at
    a time, None for all.
    """

    backend: str
    split: str
    training: bool
    seed: int
    manifest: str
    augment: Augment
    transform: str | None
    counts: bool
    plan: Plan
    window: int | None = None

    @property
    def order(self) -> str:
        """The backend whose order and draws these are: gpu has turbo's, so a run may go from one to the other."""
        return "turbo" if self.backend == "gpu" else self.backend

    def state(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plan = self.plan
        ranks = {"rank": plan.rank, "world_size": plan.world_size, "step": plan.step}
        names = ("split", "training", "seed", "manifest", "transform", "window")
        augment = json.loads(json.dumps(dataclasses.asdict(self.augment)))  # lists in place of tuples
        same = {"backend": self.order} | {name: getattr(self, name) for name in names}
        return same | ranks | {"augment": augment}

    def differences(self, state: dict[str, Any]) -> list[str]:
        """Return what differs from ``state``, in words. States of earlier versions lack some entries."""
        mine, theirs = _flat(self.state()), _flat(state)
        if self.counts and self.training:
            theirs = {name: value for name, value in theirs.items() if name not in ("rank", "world_size", "step")}
        return [
            f"{WORDS.get(name, name)} was {shown(theirs[name])}, now {shown(value)}"
            for name, value in mine.items()
            if name in theirs and theirs[name] != value
        ]


WORDS = {
    "window": "the number of shards that the order mixes at a time, which --cache-gb decides,",
    "manifest": "the sha256 of manifest.json",
    "world_size": "the number of ranks",
    "step": "the number of images per step over all ranks",
}


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with the fields of its augment beside the others, as ``augment.crop``."""
    augment = state.get("augment", {})
    return {name: value for name, value in state.items() if name != "augment"} | {
        f"augment.{name}": value for name, value in augment.items()
    }


def manifest_digest(manifest: Manifest) -> str:
    """Return the sha256 of the folder's manifest.json, in hexadecimal digits."""
    return hashlib.sha256((manifest.folder / "manifest.json").read_bytes()).hexdigest()
