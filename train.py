"""Train an AlexNet on shards.

    python train.py                                              # the demo: makes its data first
    python train.py --data SHARDS --recipe paper --out runs/paper
    python train.py --out runs/paper --resume                    # goes on from runs/paper/last.pt
    torchrun --nproc-per-node 8 train.py --data SHARDS --recipe modern

Every field of the recipe is an option. The run folder gets config.json, env.json, log.jsonl, last.pt and best.pt.
Ctrl-C and SIGTERM end a run so that --resume goes on with its next step; docs/reliability.md has what else may happen.
"""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from alexnet import AlexNet, AlexNetError
from alexnet.average import Average
from alexnet.board import BoardLog
from alexnet.engine import TrainStep, answer, compile_model
from alexnet.log import Interval, RunLog
from alexnet.metrics import scores
from alexnet.optim import Schedule, make_optimizer
from alexnet.progress import Progress, make_deterministic
from alexnet.stop import Stop
from alexnet.writer import Writer
from pipelines import DataError, Manifest, open_loader
from pipelines.augment import load_mean_image
from pipelines.epochs import Loader
from tools import run_folder
from tools.ranks import Ranks, rank_device, ranks, restarted
from tools.run_state import RunState, epoch_under_way, find_checkpoint
from tools.terminal import run
from tools.train_options import DEMO_SHARDS, Options, configuration, defaults

ROOT = Path(__file__).parent
FIGURES = ("top1", "top5", "f1")
DEMO_IMAGES = Path("data/demo/images")


def main(options: Options) -> None:
    """What torchrun begins again goes on by itself. Raises AlexNetError."""
    if restarted():
        options = dataclasses.replace(options, resume=True, overwrite=False)
    if options.deterministic:
        make_deterministic()
    device = rank_device(options.device)
    try:
        with ranks(device.type == "cuda") as here, run_folder.claim(options.out, here):
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
    progress, evaluated = build(options, here, device, train_loader)
    state = RunState(here, progress, train_loader, options.seed, describe(options, train_loader, here))
    if restored:
        state.restore(path, restored, options.data, options.override)
    log = start(options, state)

    with Stop() as stop, Writer(options.out, progress.optimizer, options.keep, options.checkpoint_minutes) as writer:
        for epoch in range(progress.epoch, recipe.epochs):
            if recipe.augment_at(epoch) != augment:
                augment = recipe.augment_at(epoch)
                state.loader = open_part(options, "train", augment, here, device)
                state.loader.epoch = epoch
            if not train_epoch(options, state, log, stop, writer):
                return f"stopped after step {progress.step}; to go on: {here.command()} --out {options.out} --resume"
            here.level(progress.evaluated)
            answers = here.gather_answers(answer(evaluated, val_loader, device, recipe.precision))
            metrics = scores(answers, len(val_loader.manifest.classes))
            best = progress.end_epoch(metrics)
            log.write("epoch", epoch=epoch + 1, **metrics)
            here.say(f"epoch {epoch + 1}: " + ", ".join(f"{name} {metrics[name]:.4f}" for name in FIGURES))
            state.save(writer, best)

    done = f"{options.out}: {recipe.epochs} epochs, best top-1 {progress.best:.4f}"
    return f"{done}; now: tools/evaluate.py, tools/visualize.py"


def build(options: Options, here: Ranks, device: torch.device, loader: Loader) -> tuple[Progress, nn.Module]:
    """What is trained, at its beginning, and the network that is evaluated, ready to run."""
    recipe = options.settings
    torch.manual_seed(options.seed)
    model = AlexNet(recipe.variant, len(loader.manifest.classes), recipe.dropout, options.conv1)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, len(loader))
    average = Average(model, recipe.average_decay) if recipe.average_decay else None
    compiled = compile_model(model, options.compile, device)
    parallel = here.parallel(compiled, device, options.compress)
    train_step = TrainStep(parallel, optimizer, recipe, device, average, options.accumulate)
    here.seed(options.seed)  # for dropout
    evaluated = compile_model(average.model, options.compile, device) if average else compiled
    return Progress(model, optimizer, schedule, train_step), evaluated


def train_epoch(options: Options, state: RunState, log: RunLog, stop: Stop, writer: Writer) -> bool:
    """What is left of one; whether it came to its end. Where it was stopped, a checkpoint is written."""
    here, progress, loader = state.here, state.progress, state.loader
    progress.train_step.model.train()
    interval = Interval(loader.device)
    asked = time.perf_counter()
    with progress_bar(state, options.settings.epochs) as batches:
        for batch in batches:
            waited = time.perf_counter() - asked
            rate = progress.schedule.set_rate(progress.optimizer, progress.step)
            interval.add(progress.train_step(batch.images, batch.labels), batch.valid * here.world_size, waited)
            progress.step += 1
            stopping, due = here.anyone(stop.asked, writer.due and here.rank == 0)
            if stopping or due or interval.steps == options.log_steps or progress.step % len(loader) == 0:
                measured = interval.summary(progress.step, here.mean)  # waits for the GPU
                log.write(
                    "step", step=progress.step, epoch=round(progress.step / len(loader), 4), rate=rate, **measured
                )
                batches.set_postfix(loss=measured["loss"], images_s=measured["images_per_second"])
                interval.restart()
            if stopping or due:
                state.save(writer)
            if stopping:
                return False
            asked = time.perf_counter()
    progress.step = (progress.epoch + 1) * len(loader)  # one more, where batches were of another size before
    return True


def prepare(options: Options, here: Ranks) -> None:
    """Make the demo's data if it is asked for. Raises AlexNetError as ``run_folder.check_free`` does."""
    if not options.resume:
        run_folder.check_free(options.out, options.overwrite)
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


if __name__ == "__main__":
    run(main, Options, __doc__, defaults(sys.argv[1:]), errors=(AlexNetError, DataError))
