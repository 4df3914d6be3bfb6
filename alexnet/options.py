"""The options of a training run, except for its data: what each does, and where its default comes from."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import torch
import tyro

from alexnet import half_weights
from alexnet.engine import CompileMode
from alexnet.errors import AlexNetError
from alexnet.files import read_json
from alexnet.model import Fused, Groups
from alexnet.ranks import Compression
from alexnet.recipes import RECIPES, Recipe, RecipeName, read_recipe

GRAPH_IMAGES = 256  # images of a rank's batch up to which launching kernels may take longer than running them
ABOUT_A_START = ("resume", "override", "overwrite")
AnyOptions = TypeVar("AnyOptions", bound="TrainOptions")


def _at_least(least: int, option: str, value: float) -> None:
    if not value >= least:
        raise ValueError(f"--{option.replace('_', '-')} is {value}, it starts at {least}")


@dataclass(frozen=True)
class Computation:
    """How a run computes: on what, and in which parts and precisions."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    compile: CompileMode = "auto"
    """torch.compile; graphs: with CUDA graphs, for small batches. auto: off on a CPU; on a GPU graphs for one rank with
    batches up to 256, unless accumulate or deterministic, else on."""
    conv1: Literal["direct", "blocks"] = "direct"
    """How the first convolution is computed; blocks: as a convolution over 4 x 4 pixels. The weights are the same."""
    groups: Groups = "grouped"
    """How convolutions in two groups are computed; split: as two dense ones. The weights are the same."""
    fused: Fused = "auto"
    """Bias, ReLU, normalisation and pooling as one Triton kernel each way, and the update of weights with that of their
    bf16 copies (for one rank without accumulate); auto: on an NVIDIA GPU with Triton."""
    accumulate: int = 1
    """Gradient accumulation: parts of a rank's batch, for batches that do not fit into memory."""
    compress: Compression = "none"
    """Precision of the gradients that ranks exchange."""
    deterministic: bool = False
    """Bit-identical from run to run on one machine; slower on a GPU."""

    def __post_init__(self) -> None:
        _at_least(1, "accumulate", self.accumulate)
        if self.compile == "graphs" and self.accumulate > 1:
            raise ValueError(
                f"--accumulate {self.accumulate} with --compile graphs would lose gradients: a CUDA graph writes those "
                "of each part over those of the part before; use --compile on"
            )

    def compile_mode(self, device: torch.device, images: int, ranks: int) -> CompileMode:
        """Return the mode that ``compile`` stands for, given the images of a rank's batch and the number of ranks.

        CUDA graphs have been tried neither with gradients that travel between ranks nor for bit-identical resumes.
        """
        if self.compile != "auto":
            return self.compile
        if device.type != "cuda":
            return "off"
        simple = ranks == 1 and self.accumulate == 1 and not self.deterministic
        return "graphs" if simple and images <= GRAPH_IMAGES else "on"

    def keeps_halves(self, device: torch.device, precision: str, ranks: int) -> bool:
        """Return true if training keeps bf16 copies of the weights.

        Their gradients are in bf16: sums over parts of a batch, or over ranks, would lose more than with autocast.
        """
        return self.fused == "auto" and self.accumulate == 1 and ranks == 1 and half_weights.usable(device, precision)

    @property
    def layers(self) -> dict[str, Any]:
        """The arguments of AlexNet that select how its layers are computed."""
        return {"conv1": self.conv1, "groups": self.groups, "fused": self.fused}


@dataclass(frozen=True)
class TrainOptions:
    settings: tyro.conf.OmitArgPrefixes[Annotated[Recipe, tyro.conf.arg(name="recipe")]]
    """The recipe, field by field."""
    computation: tyro.conf.OmitArgPrefixes[Computation] = Computation()
    """How the run computes."""
    recipe: RecipeName = "demo"
    """The recipe that these fields start from; docs/recipes.md."""
    out: Path = Path("runs/demo")
    """The run folder."""
    resume: bool = False
    """Go on with the run in the folder, with its configuration; the command that started it may be given again."""
    override: bool = False
    """Resume even if data or configuration changed."""
    overwrite: bool = False
    """Replace an earlier run in the run folder; without effect beside --resume."""
    init: Path | None = None
    """Weights to start from: torchvision's .pth file, a checkpoint, or a run folder. The last layer is made anew unless
    the classes are the same. Images are normalised as for these weights."""
    freeze: Literal["features"] | None = None
    """features: do not train the convolutions, only the fully connected layers; with --init."""
    checkpoint_minutes: float = 15.0
    """Minutes between two checkpoints, besides the one at the end of each epoch; 0: only that one."""
    keep: int = 2
    """How many checkpoints are kept: last.pt, last-1.pt, ..."""
    seed: int = 0
    """Seed of weights, dropout, order and augmentation."""
    log_steps: int | None = None
    """Steps between two lines of log.jsonl; by default 10, and on a GPU as many as take some two seconds."""
    tensorboard: bool = False
    """Write the figures of log.jsonl for TensorBoard too: tensorboard --logdir runs."""

    def __post_init__(self) -> None:
        _at_least(1, "keep", self.keep)
        _at_least(1, "log_steps", 1 if self.log_steps is None else self.log_steps)
        _at_least(0, "checkpoint_minutes", self.checkpoint_minutes)
        if self.freeze and not self.init:
            raise ValueError(f"--freeze {self.freeze} without --init would keep random weights")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}, it goes from 0 to 4294967295")

    def configuration(self) -> dict[str, Any]:
        """Return the options as JSON has them, without those that concern only this start."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in ABOUT_A_START}
        kept |= kept.pop("computation")  # groups are for the command line only
        return json.loads(json.dumps(kept, default=str))


@dataclass(frozen=True)
class Start:
    """The options that decide the defaults of the others."""

    recipe: str | None = None
    out: Path | None = None
    resume: bool = False


def defaults(kind: type[AnyOptions], arguments: list[str]) -> AnyOptions:
    """Return the defaults of the command line: a recipe's options, or with --resume those of the run itself.

    Another recipe than the run's brings its own fields, so that the run's checkpoint does not fit them unnoticed.
    Raises AlexNetError if there is no run to resume, or its configuration is damaged.
    """
    config = (tyro.conf.FlagCreatePairsOff,)
    start, _ = tyro.cli(Start, args=arguments, return_unknown_args=True, add_help=False, config=config)
    name = start.recipe or "demo"
    out = start.out or Path("runs", name)
    recipe = RECIPES.get(name, RECIPES["demo"])  # type: ignore[call-overload]  # tyro names the wrong one
    if not start.resume:
        return kind(settings=recipe, out=out)
    kept = read_options(kind, out)
    return kept if start.recipe in (None, kept.recipe) else dataclasses.replace(kept, settings=recipe)


def read_options(kind: type[AnyOptions], out: Path) -> AnyOptions:
    """Return the options kept in a run folder. Raises AlexNetError."""
    path = out / "config.json"
    if not path.is_file():
        raise AlexNetError(f"no run to resume at {out}: {path} is missing")
    kept = {name: value for name, value in read_json(path).items() if name not in ABOUT_A_START} | {"out": str(out)}
    try:
        read_recipe(kept["settings"])  # it names the nearest field
        kept["computation"] = {name: kept.pop(name) for name in _names(Computation) & kept.keys()}
        if unknown := kept.keys() - _names(kind):
            raise AlexNetError(f"no option is called {' or '.join(sorted(unknown))}")
        return msgspec.convert(kept, kind, dec_hook=_path)
    except (ValueError, TypeError, KeyError, AlexNetError) as error:
        raise AlexNetError(f"{path} is damaged: {error}") from error


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _path(kind: type, value: Any) -> Any:
    """Convert what msgspec leaves to us: JSON has paths as text."""
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"Expected a path, got {value!r}")
    return Path(value)
