"""Train an AlexNet on shards.

    python train.py                                              # the demo: makes its data first
    python train.py --data SHARDS --recipe paper --out runs/paper
    python train.py --out runs/paper --resume                    # goes on from runs/paper/last.pt

Every field of the recipe is an option. The run folder gets config.json, env.json, log.jsonl, last.pt and best.pt.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm

from alexnet import RECIPES, AlexNet, AlexNetError, Recipe, checkpoint
from alexnet.average import Average
from alexnet.board import EVENTS, BoardLog
from alexnet.engine import CompileMode, TrainStep, compile_model, evaluate, find_device
from alexnet.log import Interval, RunLog
from alexnet.optim import Schedule, make_optimizer
from alexnet.recipes import RecipeName, read_recipe
from pipelines import AUGMENTS, DataError, Manifest, open_loader
from pipelines.augment import load_mean_image
from pipelines.loader import BackendName, Loader
from pipelines.shards import write_atomically
from tools.terminal import fail, require, run

ROOT = Path(__file__).parent
DEMO_IMAGES, DEMO_SHARDS = Path("data/demo/images"), Path("data/demo/shards")
RUN_FILES = ("config.json", "env.json", "log.jsonl", "last.pt", "best.pt", "metrics.json")


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
    overwrite: bool = False
    """Replace an earlier run in the run folder."""
    seed: int = 0
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
        require(self.log_steps >= 1, f"--log-steps is {self.log_steps}, it starts at 1")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}, it goes from 0 to 4294967295")
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")


def train(options: Options) -> None:
    recipe, device = options.settings, find_device(options.device)
    check_run_folder(options)
    if options.data == DEMO_SHARDS:
        make_demo_shards()
    torch.manual_seed(options.seed)
    restored = checkpoint.load(options.out / "last.pt") if options.resume else {}
    first_epoch, best = restored.get("epoch", 0), restored.get("best", -1.0)
    train_loader = open_train_loader(options, max(first_epoch - 1, 0), device)
    val_loader = open_loader(options.data, "val", recipe.batch_size, recipe.augment, device, options.backend)
    manifest = train_loader.manifest
    start_run_folder(options, device)

    model = AlexNet(recipe.variant, len(manifest.classes), recipe.dropout, options.conv1)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, len(train_loader))
    average = Average(model, recipe.average_decay) if recipe.average_decay else None
    compiled = compile_model(model, options.compile, device)
    evaluated = compile_model(average.model, options.compile, device) if average else compiled
    train_step = TrainStep(compiled, optimizer, recipe, device, average)
    if restored:
        restore(options, restored, model, optimizer, schedule, train_step, train_loader)
    log = (BoardLog if options.tensorboard else RunLog)(options.out / "log.jsonl")

    for epoch in range(first_epoch, recipe.epochs):
        if epoch and recipe.augment_at(epoch) != recipe.augment_at(epoch - 1):
            train_loader = open_train_loader(options, epoch, device)
            train_loader.epoch = epoch
        compiled.train()
        interval = Interval(device)
        batches = tqdm(train_loader, f"epoch {epoch + 1}/{recipe.epochs}", unit=" steps", dynamic_ncols=True)
        asked = time.perf_counter()
        for step, batch in enumerate(batches, start=epoch * len(train_loader)):
            waited = time.perf_counter() - asked
            rate = schedule.set_rate(optimizer, step)
            interval.add(train_step(batch.images, batch.labels), batch.valid, waited)
            if interval.steps == options.log_steps or step + 1 == (epoch + 1) * len(train_loader):
                measured = interval.summary(step + 1)  # waits for the GPU
                log.write("step", step=step + 1, epoch=round((step + 1) / len(train_loader), 4), rate=rate, **measured)
                batches.set_postfix(loss=measured["loss"], images_s=measured["images_per_second"])
                interval.restart()
            asked = time.perf_counter()

        metrics = evaluate(evaluated, val_loader, len(manifest.classes), device, recipe.precision)
        schedule.observe(1 - metrics["top1"])
        log.write("epoch", epoch=epoch + 1, **metrics)
        tqdm.write(f"epoch {epoch + 1}: " + ", ".join(f"{name} {metrics[name]:.4f}" for name in ("top1", "top5", "f1")))
        described = describe(options, manifest, average.model if average else model)
        described |= {"epoch": epoch + 1, "metrics": metrics}
        if metrics["top1"] > best:
            best = metrics["top1"]
            checkpoint.save(options.out / "best.pt", described)
        progress = describe_progress(model, optimizer, schedule, train_step, train_loader)
        checkpoint.save(options.out / "last.pt", described | progress | {"best": best})

    print(f"{options.out}: {recipe.epochs} epochs, best top-1 {best:.4f}; now: tools/evaluate.py, tools/visualize.py")


def open_train_loader(options: Options, epoch: int, device: torch.device) -> Loader:
    """The training images, as the recipe augments them in that epoch."""
    recipe, augment = options.settings, options.settings.augment_at(epoch)
    return open_loader(options.data, "train", recipe.batch_size, augment, device, options.backend, seed=options.seed)


def describe(options: Options, manifest: Manifest, model: AlexNet) -> dict[str, Any]:
    """What a checkpoint needs to be used by itself."""
    return {
        "variant": model.variant,
        "classes": [[entry.wnid, entry.name] for entry in manifest.classes],
        "augment": options.settings.augment,
        "statistics": dataclasses.asdict(manifest.statistics),
        "mean_image": mean_image(manifest),
        "image_size": manifest.image.size,
        "model": model.state_dict(),
    }


def mean_image(manifest: Manifest) -> torch.Tensor | None:
    """size,size,3 float32, where the images are of one size."""
    return torch.from_numpy(load_mean_image(manifest)) if manifest.statistics.mean_image else None


def describe_progress(
    model: AlexNet, optimizer: torch.optim.Optimizer, schedule: Schedule, train_step: TrainStep, train_loader: Loader
) -> dict[str, Any]:
    """What ``restore`` needs to go on."""
    progress = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": train_step.scaler.state_dict(),
        "loader": train_loader.state_dict(),
        "random": torch.get_rng_state(),
    }
    if train_step.average:
        progress |= {"trained": model.state_dict(), "averaged_updates": train_step.average.updates}
    return progress


def restore(
    options: Options,
    state: dict[str, Any],
    model: AlexNet,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    train_step: TrainStep,
    train_loader: Loader,
) -> None:
    """Take up the run where last.pt left it. Raises AlexNetError."""
    path = options.out / "last.pt"
    checkpoint.check_classes(state, path, [c.wnid for c in train_loader.manifest.classes], options.data)
    checkpoint.check_variant(state, path, model.variant)
    try:
        model.load_state_dict(state.get("trained", state["model"]))
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        train_step.scaler.load_state_dict(state["scaler"])
        if train_step.average:
            train_step.average.model.load_state_dict(state["model"])
            train_step.average.updates = state["averaged_updates"]
        train_loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["random"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise AlexNetError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from error
    print(f"going on from {path}, after epoch {state['epoch']}")


def check_run_folder(options: Options) -> None:
    """Raises AlexNetError where the run folder holds another run."""
    if not (options.resume or options.overwrite) and any((options.out / name).exists() for name in RUN_FILES):
        raise AlexNetError(f"{options.out} holds a run already: add --resume to go on, --overwrite, or another --out")


def start_run_folder(options: Options, device: torch.device) -> None:
    """Make the run folder and write down what runs in it."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        for name in RUN_FILES:
            (options.out / name).unlink(missing_ok=True)
        shutil.rmtree(options.out / EVENTS, ignore_errors=True)
    config = dataclasses.asdict(options) | {"data": str(options.data), "out": str(options.out)}
    write_atomically(options.out / "config.json", json.dumps(config, indent=1).encode())
    write_atomically(options.out / "env.json", json.dumps(environment(device), indent=1).encode())


def environment(device: torch.device) -> dict[str, Any]:
    """What is needed to repeat a run."""
    dali = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    packages = ("torch", "torchvision", *dali, "simplejpeg", "opencv-python-headless", "numpy", "pillow")
    versions = {name: metadata.version(name) for name in packages if any(metadata.distributions(name=name))}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "packages": versions | {"torch": torch.__version__},
    }


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
        kept = json.loads(path.read_bytes())
        kept |= {"settings": read_recipe(kept["settings"]), "data": Path(kept["data"]), "out": out}
        return Options(**kept | {"resume": False, "overwrite": False})  # --resume itself is on the command line
    except (ValueError, TypeError, KeyError, AlexNetError) as error:
        fail(f"{path} is damaged: {error}")
        raise  # not reached; fail ends the process


if __name__ == "__main__":
    run(train, Options, __doc__, defaults(sys.argv[1:]), errors=(AlexNetError, DataError))
