"""A training run over all its ranks: its state, saved in checkpoints and resumed from them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from alexnet import checkpoint, run_folder
from alexnet.board import BoardLog
from alexnet.errors import AlexNetError
from alexnet.log import RunLog
from alexnet.ranks import Ranks
from alexnet.train_state import TrainState, random_state, set_random_state
from alexnet.writer import Writer


class Plan(Protocol):
    """The batches of an epoch: ``batches`` of ``step`` images over all ranks."""

    @property
    def batches(self) -> int: ...
    @property
    def step(self) -> int: ...


class Loader(Protocol):
    """A loader of train batches, as far as a run needs it."""

    epoch: int

    @property
    def device(self) -> torch.device: ...
    @property
    def plan(self) -> Plan: ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], strict: bool = ...) -> None: ...


class Run:
    """A run in its folder. ``checkpoint`` is the one at ``path`` that it resumes from; empty for a new run.

    ``begin`` sets what is trained. Every checkpoint contains ``about`` unchanged; a resumed run must have the same
    ``made_with`` in it as its checkpoint.
    """

    state: TrainState
    loader: Loader
    seed: int
    about: dict[str, Any]

    def __init__(
        self, out: Path, ranks: Ranks, path: Path, checkpoint: dict[str, Any], *, overwrite: bool, override: bool
    ) -> None:
        self.out, self.ranks, self.path, self.checkpoint = out, ranks, path, checkpoint
        self.overwrite, self.override = overwrite, override

    @property
    def epoch_under_way(self) -> int:
        """The epoch that the loader resumes in, even if all its batches were taken; 0 for a new run."""
        if not self.checkpoint:
            return 0
        place = self.checkpoint["ranks"][0]["loader"]
        return place["epoch"] if place["taken"] else place["epoch"] - 1

    def begin(self, state: TrainState, loader: Loader, *, seed: int, data: str, about: dict[str, Any]) -> None:
        """Restore ``state`` and ``loader`` from the checkpoint, if there is one. Record configuration and environment.

        Raises AlexNetError if the checkpoint is of another run; ``override`` resumes anyway if the weights fit.
        """
        self.state, self.loader, self.seed, self.about = state, loader, seed, about
        if self.checkpoint:
            self._restore(data)
        if self.ranks.rank == 0:
            run_folder.start(self.out, self.overwrite, about["config"], about["environment"])

    def open_log(self, tensorboard: bool) -> RunLog:
        """Open the log, which rank 0 alone writes."""
        if self.ranks.rank:
            return RunLog(None)
        kind = BoardLog if tensorboard else RunLog
        return kind(self.out / "log.jsonl", self.state.step, self.state.epoch)

    def save(self, writer: Writer, best: bool = False) -> None:
        """Write a checkpoint, with each rank's random and loader state. Raises AlexNetError if the last one failed."""
        counted = [self.state.seen, self.state.right]
        own = {"random": random_state(self.loader.device), "loader": self.loader.state_dict(), "counted": counted}
        ranks = self.ranks.gather(own)
        if self.ranks.rank == 0:
            writer.save(self.about | self.state.describe(), self.state.state_dict() | {"ranks": ranks}, best)

    def train_scores(self) -> dict[str, float]:
        """Return the top-1 of the epoch's train images over all ranks; nothing if it was not counted throughout."""
        seen, right = self.ranks.mean(self.state.seen), self.ranks.mean(self.state.right)
        return {"train_top1": right / seen} if seen > 0 else {}

    def _restore(self, data: str) -> None:
        path, kept = self.path, self.checkpoint
        checkpoint.check_format(kept, path)
        checkpoint.check_classes(kept, path, [wnid for wnid, _ in self.about["classes"]], data)
        checkpoint.check_variant(kept, path, self.state.model.variant)
        changed = run_folder.differences(kept["made_with"], self.about["made_with"])
        if changed and not self.override:
            raise AlexNetError(f"{path} has other settings: {'; '.join(changed)}: change them back, or add --override")
        try:
            self.state.load_state_dict(kept)
            self._restore_rank()
            self._restore_counts()
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise AlexNetError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from error
        self.ranks.print0(f"resuming from {path}, after epoch {self.state.epoch}, step {self.state.step}")
        for difference in changed:
            self.ranks.print0(f"  {difference}")

    def _restore_rank(self) -> None:
        """Restore the random generators and the position in the data of this rank."""
        before, now, rank = self.checkpoint["made_with"], self.about["made_with"], self.ranks.rank
        own = self.checkpoint["ranks"][rank % before["ranks"]]
        if before["ranks"] == now["ranks"]:
            set_random_state(own["random"], self.loader.device)
        else:
            self.ranks.seed(self.seed + self.state.step)
        place, plan = own["loader"], self.loader.plan
        if (before["ranks"], before["backend"], place["step"]) != (now["ranks"], now["backend"], plan.step):
            self.state.step = place["epoch"] * plan.batches + place["taken"] // plan.step
        self.loader.load_state_dict(place, strict=not self.override)

    def _restore_counts(self) -> None:
        """Restore what was counted in the epoch under way, on rank 0: only the sums over ranks matter."""
        under_way = self.state.step > self.state.epoch * self.loader.plan.batches
        unknown = [math.nan if under_way else 0.0] * 2
        counted = [own.get("counted", unknown) for own in self.checkpoint["ranks"]]
        if self.ranks.rank == 0:
            self.state.seen, self.state.right = (math.fsum(column) for column in zip(*counted, strict=True))


@contextmanager
def open_run(
    out: Path, ranks: Ranks, *, resume: bool = False, overwrite: bool = False, override: bool = False
) -> Iterator[Run]:
    """Yield the run of a folder, locked against other training runs.

    Raises AlexNetError if another training run holds the lock, if the folder holds a run that is neither resumed nor
    overwritten, and if every checkpoint of a run to resume is damaged.
    """
    with run_folder.claim(out, ranks):
        path, kept = out / "last.pt", dict[str, Any]()
        if resume:
            path, kept = find_checkpoint(out, ranks)
        else:
            run_folder.check_free(out, overwrite)
        yield Run(out, ranks, path, kept, overwrite=overwrite and not resume, override=override)


def find_checkpoint(out: Path, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Load the newest whole checkpoint. Return path and content, empty if there is none yet. Raises AlexNetError."""
    path, found = out / "last.pt", None
    kept: dict[str, Any] = {}
    if ranks.rank == 0 and (path.exists() or checkpoint.older_than(path)):
        path, kept = checkpoint.load_newest(path)
        found = path.name
    found = ranks.gather(found)[0]
    if not found:
        ranks.print0(f"{out} has no checkpoint yet: starting from the beginning")
        return path, {}
    path = out / found
    return path, kept if ranks.rank == 0 else checkpoint.load(path)
