"""train.py's options: each with what it does, and where its value comes from when the command line has none."""

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alexnet import RECIPES, AlexNetError, Recipe
from alexnet.engine import CompileMode
from alexnet.recipes import RecipeName, read_recipe
from pipelines import AUGMENTS, DataError
from pipelines.documents import read_json
from pipelines.loader import BackendName
from tools.ranks import Compression
from tools.terminal import fail, require

DEMO_SHARDS = Path("data/demo/shards")
ABOUT_A_START = ("resume", "override", "overwrite")


@dataclass(frozen=True)
class Options:
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    """The recipe, field by field."""
    recipe: RecipeName = "demo"
    """Where the fields of the recipe start from; docs/recipes.md."""
    data: Path = DEMO_SHARDS
    """A shard folder; the demo's is made where it is missing."""
    out: Path = Path("runs/demo")
    """The run folder."""
    resume: bool = False
    """Go on from last.pt in the run folder, with the configuration kept there."""
    override: bool = False
    """Go on although data or configuration are others than before."""
    overwrite: bool = False
    """Replace an earlier run in the run folder."""
    checkpoint_minutes: float = 15.0
    """Write last.pt as often as this, besides at the end of each epoch; 0: then alone."""
    keep: int = 2
    """How many checkpoints stay: last.pt, last-1.pt, ..."""
    seed: int = 0
    deterministic: bool = False
    """The same bits from run to run on one machine."""
    accumulate: int = 1
    """Parts that a rank's batch goes through the network in, where it does not fit into memory as a whole."""
    compress: Compression = "none"
    """How gradients travel between ranks; the sum is made in that precision."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    backend: BackendName = "auto"
    """What makes the batches; synthetic: from nowhere, to see how fast the network alone is."""
    compile: CompileMode = "auto"
    """torch.compile; auto: on a GPU; graphs: with CUDA graphs."""
    conv1: Literal["direct", "blocks"] = "direct"
    """How the first convolution is computed; blocks: over 4 x 4 pixels at once. The same weights either way."""
    log_steps: int = 10
    """Steps between two lines of log.jsonl."""
    tensorboard: bool = False
    """Write what log.jsonl has for TensorBoard, too: tensorboard --logdir runs."""

    def __post_init__(self) -> None:
        for option in ("augment", "late_augment"):
            name = getattr(self.settings, option) or self.settings.augment
            require(name in AUGMENTS, f"--{option.replace('_', '-')} is {name!r}, known: {', '.join(AUGMENTS)}")
        for option in ("log_steps", "keep", "accumulate"):
            number = getattr(self, option)
            require(number >= 1, f"--{option.replace('_', '-')} is {number}, it starts at 1")
        require(self.checkpoint_minutes >= 0, f"--checkpoint-minutes is {self.checkpoint_minutes}, it starts at 0")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}, it goes from 0 to 4294967295")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")


def configuration(options: Options) -> dict[str, Any]:
    """The options as JSON has them, without those about this one start."""
    paths = {"data": str(options.data), "out": str(options.out)}
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in ABOUT_A_START}
    return json.loads(json.dumps(kept | paths))


def defaults(arguments: list[str]) -> Options:
    """What the command line starts from: the named recipe, or on --resume the run's own configuration."""
    chosen = dict(pairwise([*arguments, ""]))
    chosen |= dict(argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)
    if "--resume" in arguments:
        return resumed_options(Path(chosen.get("--out", "runs/demo")))
    name = chosen.get("--recipe", "demo")
    recipe = next((recipe for known, recipe in RECIPES.items() if known == name), RECIPES["demo"])
    return Options(settings=recipe, out=Path("runs", name))


def resumed_options(out: Path) -> Options:
    path = out / "config.json"
    if not path.is_file():
        fail(f"no run to resume at {out}: {path} is missing")
    try:
        kept = read_json(path)
        kept |= {"settings": read_recipe(kept["settings"]), "data": Path(kept["data"]), "out": out}
        return Options(**{name: value for name, value in kept.items() if name not in ABOUT_A_START})
    except (ValueError, TypeError, KeyError, AttributeError, AlexNetError, DataError) as error:
        fail(f"{path} is damaged: {error}")
        raise  # not reached; fail ends the process
