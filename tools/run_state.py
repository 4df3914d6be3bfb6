"""What a run is at, over all its ranks: checkpoints are made of it, and a run that was stopped takes it up again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet import AlexNetError, checkpoint
from alexnet.progress import Progress, random_state, set_random_state
from alexnet.writer import Writer
from pipelines.epochs import Loader
from tools.ranks import Ranks
from tools.run_folder import differences


def find_checkpoint(out: Path, here: Ranks) -> tuple[Path, dict[str, Any]]:
    """Load the newest whole checkpoint; an empty state if there is none yet. Raises AlexNetError."""
    path, found = out / "last.pt", None
    state: dict[str, Any] = {}
    if here.rank == 0 and (path.exists() or checkpoint.older_than(path)):
        path, state = checkpoint.load_newest(path)
        found = path.name
    found = here.gather(found)[0]
    if not found:
        here.say(f"{out} has no checkpoint yet: beginning again")
        return path, {}
    path = out / found
    return path, state if here.rank == 0 else checkpoint.load(path)


def epoch_under_way(state: dict[str, Any]) -> int:
    """The epoch whose loader goes on; at its end it is still that one's, and without a ``state`` the first."""
    if "ranks" not in state:
        return 0
    place = state["ranks"][0]["loader"]
    return place["epoch"] if place["taken"] else place["epoch"] - 1


@dataclass
class RunState:
    """``about`` stands in every checkpoint as it is; its ``made_with`` is what a run must have in common with them."""

    here: Ranks
    progress: Progress
    loader: Loader
    seed: int
    about: dict[str, Any]

    def save(self, writer: Writer, best: bool = False) -> None:
        """Each rank brings what it alone has, rank 0 writes. Raises AlexNetError when the one before failed."""
        own = {"random": random_state(self.loader.device), "loader": self.loader.state_dict()}
        ranks = self.here.gather(own)
        if self.here.rank == 0:
            writer.save(self.about | self.progress.describe(), self.progress.state_dict() | {"ranks": ranks}, best)

    def restore(self, path: Path, state: dict[str, Any], data: Path, override: bool) -> None:
        """Go on from a checkpoint. Raises AlexNetError where it is of another run; ``override`` takes it all the same
        as long as the weights fit."""
        checkpoint.check_format(state, path)
        checkpoint.check_classes(state, path, [entry.wnid for entry in self.loader.manifest.classes], data)
        checkpoint.check_variant(state, path, self.progress.model.variant)
        changed = differences(state["made_with"], self.about["made_with"])
        if changed and not override:
            raise AlexNetError(f"{path} was made otherwise: {'; '.join(changed)}: change it back, or add --override")
        try:
            self.progress.load_state_dict(state)
            self._restore_rank(state)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise AlexNetError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from error
        self.here.say(f"going on from {path}, after epoch {self.progress.epoch}, step {self.progress.step}")
        for difference in changed:
            self.here.say(f"  {difference}")

    def _restore_rank(self, state: dict[str, Any]) -> None:
        """This rank's random generators and place in the data."""
        before, now, rank = state["made_with"], self.about["made_with"], self.here.rank
        own = state["ranks"][rank % before["ranks"]]
        if before["ranks"] == now["ranks"]:
            set_random_state(own["random"], self.loader.device)
        else:
            self.here.seed(self.seed + self.progress.step)
        place, plan = own["loader"], self.loader.plan
        if (before["ranks"], before["backend"], place["step"]) != (now["ranks"], now["backend"], plan.step):
            place |= {"backend": now["backend"], "step": plan.step, "source": None}  # as far into the epoch, no more
            self.progress.step = place["epoch"] * plan.batches + place["taken"] // plan.step
        self.loader.load_state_dict(place)
