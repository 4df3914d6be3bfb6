"""Train an AlexNet on shards.

    python train.py                                              # the demo: makes its data first
    python train.py --data SHARDS --recipe paper --out runs/paper
    python train.py --out runs/paper --resume                    # goes on from runs/paper/last.pt
    torchrun --nproc-per-node 8 train.py --data SHARDS --recipe modern

Every field of the recipe is an option. The run folder gets config.json, env.json, log.jsonl, last.pt and best.pt.
Ctrl-C and SIGTERM end a run so that --resume goes on with its next step; docs/reliability.md has what else may happen.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm

from alexnet import RECIPES, AlexNet, AlexNetError, Recipe
from alexnet.average import Average
from alexnet.board import BoardLog
from alexnet.engine import CompileMode, TrainStep, answer, compile_model
from alexnet.log import Interval, RunLog
from alexnet.metrics import scores
from alexnet.optim import Schedule, make_optimizer
from alexnet.progress import Progress, make_deterministic
from alexnet.recipes import RecipeName, read_recipe
from alexnet.stop import Stop
from alexnet.writer import Writer
from pipelines import AUGMENTS, DataError, Manifest, open_loader
from pipelines.augment import load_mean_image
from pipelines.documents import read_json
from pipelines.loader import BackendName, Loader
from tools import run_folder
from tools.ranks import Compression, Ranks, rank_device, ranks, restarted
from tools.run_state import RunState, epoch_under_way, find_checkpoint
from tools.terminal import fail, require, run

ROOT = Path(__file__).parent
FIGURES = ("top1", "top5", "f1")
ABOUT_A_START = ("resume", "override", "overwrite")
DEMO_IMAGES, DEMO_SHARDS = Path("data/demo/images"), Path("data/demo/shards")


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


def main(options: Options) -> None:
    """What torchrun begins again goes on by itself. Raises AlexNetError."""
    if restarted():
        options = replace(options, resume=True, overwrite=False)
    if options.deterministic:
        make_deterministic()
    device = rank_device(options.device)
    try:
        with ranks(device.type == "cuda") as here:
            here.say(train(options, here, device))
    except torch.AcceleratorError as error:
        raise AlexNetError(f"the GPU failed ({str(error).splitlines()[0]}): --resume goes on from last.pt") from error


def train(options: Options, here: Ranks, device: torch.device) -> str:
    """Gives what there is to say at the end."""
    recipe = options.settings
    prepare(options, here)
    path, restored = find_checkpoint(options.out, here) if options.resume else (options.out, {})
    augment = recipe.augment_at(epoch_under_way(restored))
    train_loader = open_part(options, "train", augment, here, device)
    val_loader = open_part(options, "val", recipe.augment, here, device)

    torch.manual_seed(options.seed)
    classes = len(train_loader.manifest.classes)
    model = AlexNet(recipe.variant, classes, recipe.dropout, options.conv1)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, len(train_loader))
    average = Average(model, recipe.average_decay) if recipe.average_decay else None
    compiled = compile_model(model, options.compile, device)
    evaluated = compile_model(average.model, options.compile, device) if average else compiled
    parallel = here.parallel(compiled, device, options.compress)
    train_step = TrainStep(parallel, optimizer, recipe, device, average, options.accumulate)
    here.seed(options.seed)  # for dropout

    progress = Progress(model, optimizer, schedule, train_step)
    state = RunState(here, progress, train_loader, options.seed, describe(options, train_loader, here))
    if restored:
        state.restore(path, restored, options.data, options.override)
    log = start(options, state)

    with Stop() as stop, Writer(options.out, optimizer, options.keep, options.checkpoint_minutes) as writer:
        for epoch in range(progress.epoch, recipe.epochs):
            if recipe.augment_at(epoch) != augment:
                augment = recipe.augment_at(epoch)
                state.loader = train_loader = open_part(options, "train", augment, here, device)
                train_loader.epoch = epoch
            compiled.train()
            interval = Interval(device)
            batches = progress_bar(state, recipe.epochs)
            asked = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - asked
                rate = schedule.set_rate(optimizer, progress.step)
                interval.add(train_step(batch.images, batch.labels), batch.valid * here.world_size, waited)
                progress.step += 1
                stopping, due = here.anyone(stop.asked, writer.due and here.rank == 0)
                if stopping or due or interval.steps == options.log_steps or progress.step % len(train_loader) == 0:
                    measured = interval.summary(progress.step, here.mean)  # waits for the GPU
                    epochs = round(progress.step / len(train_loader), 4)
                    log.write("step", step=progress.step, epoch=epochs, rate=rate, **measured)
                    batches.set_postfix(loss=measured["loss"], images_s=measured["images_per_second"])
                    interval.restart()
                if stopping or due:
                    state.save(writer)
                if stopping:
                    return (
                        f"stopped after step {progress.step}; to go on: {here.command()} --out {options.out} --resume"
                    )
                asked = time.perf_counter()

            progress.step = (epoch + 1) * len(train_loader)  # one more, where batches were of another size before
            here.level(progress.evaluated)
            answers = here.gather_answers(answer(evaluated, val_loader, device, recipe.precision))
            metrics = scores(answers, classes)
            best = progress.end_epoch(metrics)
            log.write("epoch", epoch=epoch + 1, **metrics)
            batches.close()
            here.say(
                f"epoch {epoch + 1}: " + ", ".join(f"{name} {metrics[name]:.4f}" for name in ("top1", "top5", "f1"))
            )
            state.save(writer, best)

    done = f"{options.out}: {recipe.epochs} epochs, best top-1 {progress.best:.4f}"
    return f"{done}; now: tools/evaluate.py, tools/visualize.py"


def prepare(options: Options, here: Ranks) -> None:
    """The demo's data, where it is asked for. Raises AlexNetError where the run folder holds another run."""
    if not (options.resume or options.overwrite):
        run_folder.check_free(options.out)
    if options.data == DEMO_SHARDS and here.rank == 0:
        make_demo_shards()
    here.gather(None)  # the others wait for it


def open_part(options: Options, split: str, augment: str, here: Ranks, device: torch.device) -> Loader:
    """This rank's share of a split; a recipe's batch is that of all ranks. Raises AlexNetError."""
    size, parts = options.settings.batch_size, here.world_size * options.accumulate
    if size % parts:
        raise AlexNetError(
            f"--batch-size {size} does not fall into {parts} equal parts: {here.world_size} ranks, each "
            f"--accumulate {options.accumulate}"
        )
    return open_loader(
        options.data,
        split,
        size // here.world_size,
        augment,
        device,
        options.backend,
        here.rank,
        here.world_size,
        options.seed,
    )


def progress_bar(state: RunState, epochs: int) -> tqdm:
    """Over what is left of the epoch."""
    steps, progress = len(state.loader), state.progress
    done = progress.step - progress.epoch * steps
    title, hidden = f"epoch {progress.epoch + 1}/{epochs}", state.here.rank > 0
    return tqdm(state.loader, title, steps, initial=done, unit=" steps", dynamic_ncols=True, disable=hidden)


def start(options: Options, state: RunState) -> RunLog:
    """The run folder, and the log in it, which rank 0 alone writes."""
    if state.here.rank:
        return RunLog(None)
    run_folder.start(options.out, options.overwrite, state.about["config"], state.about["environment"])
    kind = BoardLog if options.tensorboard else RunLog
    return kind(options.out / "log.jsonl", state.progress.step, state.progress.epoch)


def describe(options: Options, loader: Loader, here: Ranks) -> dict[str, Any]:
    """What a checkpoint needs to be used by itself, besides the weights, and what the run was made with."""
    manifest, config = loader.manifest, configuration(options)
    return {
        "variant": options.settings.variant,
        "classes": [[entry.wnid, entry.name] for entry in manifest.classes],
        "augment": options.settings.augment,
        "statistics": dataclasses.asdict(manifest.statistics),
        "mean_image": mean_image(manifest),
        "image_size": manifest.image.size,
        "config": config,
        "environment": run_folder.environment(loader.device, here.world_size),
        "made_with": run_folder.fingerprint(config, manifest, loader.backend, here.world_size),
    }


def mean_image(manifest: Manifest) -> torch.Tensor | None:
    """size,size,3 float32, where the images are of one size."""
    return torch.from_numpy(load_mean_image(manifest)) if manifest.statistics.mean_image else None


def configuration(options: Options) -> dict[str, Any]:
    """The options as JSON has them, without those about this one start."""
    paths = {"data": str(options.data), "out": str(options.out)}
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in ABOUT_A_START}
    return json.loads(json.dumps(kept | paths))


def make_demo_shards() -> None:
    """The demo's images and shards, where they are missing."""
    if not DEMO_IMAGES.is_dir():
        call("tools/make_demo.py", str(DEMO_IMAGES))
    if not (DEMO_SHARDS / "manifest.json").is_file():
        call("tools/shard_imagenet.py", str(DEMO_IMAGES), str(DEMO_SHARDS))


def call(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise SystemExit(done.returncode)  # the script has said why


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


if __name__ == "__main__":
    run(main, Options, __doc__, defaults(sys.argv[1:]), errors=(AlexNetError, DataError))
