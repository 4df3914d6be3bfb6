"""Train an AlexNet on shards.

    python train.py                                              # the demo: makes its data first
    python train.py --data SHARDS --recipe paper --out runs/paper
    python train.py --out runs/paper --resume                    # resumes from runs/paper/last.pt
    torchrun --nproc-per-node 8 train.py --data SHARDS --recipe modern
    python train.py --data s3://bucket/imagenet --cache /nvme/cache --cache-gb 40    # docs/remote.md

Every field of the recipe is an option. The run folder gets config.json, env.json, log.jsonl, last.pt and best.pt.
Ctrl-C and SIGTERM end a run so that --resume continues with its next step; docs/reliability.md has more.
"""

import dataclasses
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn
from tqdm import tqdm

from alexnet import AlexNet, AlexNetError
from alexnet.ema import EMA
from alexnet.engine import TrainStep, compile_model, gpu_failure, predict
from alexnet.half_weights import HalfWeights
from alexnet.initial import Initial, read_initial
from alexnet.log import Interval, RunLog, epoch_text, interval_text
from alexnet.metrics import scores
from alexnet.optim import Schedule, make_optimizer
from alexnet.options import TrainOptions, defaults
from alexnet.ranks import Ranks, join_ranks, rank_device, restarted
from alexnet.run import Run, open_run
from alexnet.run_folder import environment, fingerprint
from alexnet.stop import Stop
from alexnet.train_state import TrainState, choose_algorithms
from alexnet.writer import Writer
from pipelines import AUGMENTS, Augment, DataError, Manifest, open_loader
from pipelines.arguments import check_cache
from pipelines.augment import load_mean_image
from pipelines.commands import command
from pipelines.factory import BackendName
from pipelines.loader import Loader
from pipelines.preprocess import Preparation
from pipelines.remote.url import location
from pipelines.terminal import fail, progress_bar, run_command
from pipelines.turbo.native import decoder_text, has_native

ROOT = Path(__file__).parent
DEMO_IMAGES, DEMO_SHARDS = Path("data/demo/images"), Path("data/demo/shards")


@dataclass(frozen=True)
class Options(TrainOptions):
    data: Annotated[Path, tyro.conf.arg(metavar="SHARDS")] = DEMO_SHARDS
    """A shard folder, or a URL such as s3://bucket/name; the demo's is made if it is missing."""
    cache: Path | None = None
    """Read the shards through this folder; a URL has one below the user's cache folder by default."""
    cache_gb: float | None = None
    """The most that shards may take there; it decides the order if they do not fit. By default a tenth of what is free
    at the first use of the folder."""
    backend: BackendName = "auto"
    """The loader; synthetic: the same synthetic batch again and again, to measure the network alone."""
    resident: bool = False
    """Keep the compressed images in the GPU's memory, which is checked first; with the backend gpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cache(self.cache, self.cache_gb)
        if self.resident and self.backend not in ("auto", "gpu"):
            raise ValueError(f"--resident goes with --backend gpu, not {self.backend}")
        for option in ("augment", "late_augment"):
            name = getattr(self.settings, option) or self.settings.augment
            if name not in AUGMENTS:
                raise ValueError(f"--{option.replace('_', '-')} is {name!r}, known: {', '.join(AUGMENTS)}")


def main(options: Options) -> None:
    """Train; resume automatically if torchrun restarted this process. Raises AlexNetError, DataError."""
    if restarted():
        options = dataclasses.replace(options, resume=True, overwrite=False)
    choose_algorithms(options.computation.deterministic)
    device = rank_device(options.computation.device)
    start = {"resume": options.resume, "overwrite": options.overwrite, "override": options.override}
    try:
        with join_ranks(device) as ranks, open_run(options.out, ranks, **start) as run:
            if options.data == DEMO_SHARDS and ranks.rank == 0:
                make_demo_shards()
            ranks.barrier()
            ranks.print0(train(options, run, device))
    except RuntimeError as error:
        if said := gpu_failure(error):
            raise AlexNetError(said) from error
        raise


def train(options: Options, run: Run, device: torch.device) -> str:
    """Train to the last epoch, or until a signal asks to stop. Return what to print at the end."""
    recipe, ranks = options.settings, run.ranks
    augment = recipe.augment_at(run.epoch_under_way)
    initial = read_initial(options.init) if options.init and not run.checkpoint else None
    prepared = Preparation.of(initial.preparation if initial else run.checkpoint) if options.init else None
    share = partial(open_share, options, prepared=prepared, ranks=ranks, device=device)
    loader, val_loader = share("train", augment), share("val", recipe.augment)
    recipe = recipe.with_epochs(len(loader))
    options = dataclasses.replace(options, settings=recipe)
    state, compiled_val_model = build(options, ranks, device, loader, initial)
    run.begin(
        state,
        loader,
        seed=options.seed,
        data=loader.manifest.location,
        about=describe(options, loader, ranks, prepared),
    )
    ranks.print0(f"loading with {decoder_text(loader.backend, loader.manifest, loader.identity.augment)} on {device}")
    log = run.open_log(options.tensorboard)

    steps, classes = recipe.epochs * len(loader), len(loader.manifest.classes)
    with (
        Stop() as stop,
        Writer(options.out, state.optimizer, options.keep, options.checkpoint_minutes) as writer,
        progress_bar("", steps, "steps", done=state.step, shown=ranks.rank == 0) as bar,
    ):
        for epoch in range(state.epoch, recipe.epochs):
            bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
            if recipe.augment_at(epoch) != augment:
                augment = recipe.augment_at(epoch)
                loader.close()  # it would keep its pinned memory and threads
                loader = run.loader = share("train", augment)
                loader.epoch = epoch
            if not train_epoch(options, run, log, stop=stop, writer=writer, bar=bar):
                return f"stopped after step {state.step}; to resume: {resuming(options, ranks)}"
            bar.set_description(f"evaluating epoch {epoch + 1}/{recipe.epochs}")
            ranks.broadcast_buffers(state.val_model)
            predictions = ranks.gather_predictions(predict(compiled_val_model, val_loader, device, recipe.precision))
            metrics = scores(predictions, classes)
            values = metrics | run.train_scores()
            best = state.end_epoch(metrics)
            log.write("epoch", epoch=epoch + 1, **values)
            bar.clear()
            ranks.print0(epoch_text(epoch + 1, recipe.epochs, values, classes))
            run.save(writer, best)

    tools = (command(f"tools/{tool}.py", options.out) for tool in ("evaluate", "visualize", "report"))
    return "\n  ".join([f"{options.out}: {recipe.epochs} epochs, best top-1 {state.best:.4f}; next:", *tools])


def resuming(options: Options, ranks: Ranks) -> str:
    """Return the command that resumes this run."""
    return command("train.py", "--out", options.out, "--resume", launcher=ranks.launcher())


def build(
    options: Options, ranks: Ranks, device: torch.device, loader: Loader, initial: Initial | None
) -> tuple[TrainState, nn.Module]:
    """Return the state of training at its start, and the network to evaluate, compiled if the options say so."""
    recipe, how = options.settings, options.computation
    torch.manual_seed(options.seed)
    model = AlexNet(recipe.variant, len(loader.manifest.classes), recipe.dropout, **how.layers)
    if initial:
        ranks.print0(initial.load_into(model, [entry.wnid for entry in loader.manifest.classes]))
    if options.freeze:
        model.freeze_features()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, len(loader))
    ema = EMA(model, recipe.average_decay) if recipe.average_decay else None
    mode = how.compile_mode(device, recipe.batch_size // ranks.world_size, ranks.world_size)
    halves = HalfWeights(model) if how.keeps_halves(device, recipe.precision, ranks.world_size) else None
    compiled = compile_model(halves.network if halves else model, mode, device)
    parallel = ranks.parallel(compiled, device, how.compress)
    train_step = TrainStep(parallel, optimizer, recipe, device, ema=ema, parts=how.accumulate, halves=halves)
    ranks.seed(options.seed)  # for dropout
    compiled_val_model = compile_model(ema.model, mode, device) if ema else compiled
    return TrainState(model, optimizer, schedule, train_step), compiled_val_model


def train_epoch(options: Options, run: Run, log: RunLog, *, stop: Stop, writer: Writer, bar: tqdm) -> bool:
    """Train the rest of the epoch. Return False, after a checkpoint, if a stop was requested."""
    ranks, state, loader = run.ranks, run.state, run.loader
    state.train_step.model.train()
    interval = Interval(loader.device, options.log_steps)
    asked = time.perf_counter()
    for batch in loader:
        waited = time.perf_counter() - asked
        rate = state.schedule.set_rate(state.optimizer, state.step)
        interval.add(state.train_step(batch.images, batch.labels), batch.valid * ranks.world_size, waited)
        state.step, state.seen = state.step + 1, state.seen + batch.valid
        bar.update()
        stopping, due = ranks.any_rank(stop.asked, writer.due and ranks.rank == 0)
        if stopping or due or interval.full or state.step % len(loader) == 0:
            measured = interval.summary(state.step, ranks.mean)  # waits for the GPU
            state.right += state.train_step.take_right()
            log.write("step", step=state.step, epoch=round(state.step / len(loader), 4), rate=rate, **measured)
            bar.set_postfix_str(interval_text(measured))
            interval.restart()
        if stopping or due:
            run.save(writer)
        if stopping:
            return False
        asked = time.perf_counter()
    state.step = (state.epoch + 1) * len(loader)  # one more if the batch size was another before
    return True


def open_share(
    options: Options, split: str, augment: str, *, prepared: Preparation | None, ranks: Ranks, device: torch.device
) -> Loader:
    """Return a loader of this rank's share of a split; ``prepared``: normalised as for --init. Raises AlexNetError."""
    size, parts = options.settings.batch_size, ranks.world_size * options.computation.accumulate
    if size % parts:
        raise AlexNetError(
            f"--batch-size {size} cannot be split into {parts} equal parts: {ranks.world_size} ranks, each "
            f"--accumulate {options.computation.accumulate}"
        )
    share = {"rank": ranks.rank, "world_size": ranks.world_size, "batch_size": size // ranks.world_size}
    how: dict[str, Any] = {
        "augment": normalised(augment, prepared),
        "device": device,
        "backend": options.backend,
        "resident": options.resident,
        "cache": options.cache,
        "cache_gb": options.cache_gb,
        "seed": options.seed,
    }
    loader = open_loader(options.data, split, **share, **how)  # type: ignore[arg-type]
    if not loader.manifest.classes:
        again = command("tools/shard_imagenet.py", "--index", options.data, "--label", "json:FIELD")
        raise AlexNetError(
            f"the samples of {loader.manifest.location} have no labels: {again} takes them from a field of their JSON"
        )
    return loader


def describe(options: Options, loader: Loader, ranks: Ranks, prepared: Preparation | None) -> dict[str, Any]:
    """Return what a checkpoint needs besides weights to be evaluated alone, and what the run was made with."""
    manifest, config = loader.manifest, options.configuration() | {"data": location(options.data)}
    return {
        "variant": options.settings.variant,
        "classes": [[entry.wnid, entry.name] for entry in manifest.classes],
        "augment": options.settings.augment,
        "normalise": normalised(options.settings.augment, prepared).normalise,
        "statistics": dataclasses.asdict((prepared or manifest).statistics),
        "mean_image": mean_image(manifest),
        "image_size": manifest.image.size,
        "image": dataclasses.asdict(manifest.image),
        "config": config,
        "environment": environment(loader.device, ranks.world_size, native=has_native()),
        "made_with": fingerprint(
            config, data=loader.identity.manifest, backend=loader.identity.order, world_size=ranks.world_size
        ),
    }


def normalised(augment: str, prepared: Preparation | None) -> Augment:
    return prepared.onto(AUGMENTS[augment]) if prepared else AUGMENTS[augment]


def mean_image(manifest: Manifest) -> torch.Tensor | None:
    """Return the mean image, size,size,3 float32; None if the images have different sizes."""
    return torch.from_numpy(load_mean_image(manifest)) if manifest.statistics.mean_image else None


def make_demo_shards() -> None:
    """Make the demo's images and shards if they are missing."""
    if not DEMO_IMAGES.is_dir():
        call("tools/make_demo.py", str(DEMO_IMAGES))
    if not (DEMO_SHARDS / "manifest.json").is_file():
        unmarked = () if has_native() else ("--no-restarts",)  # which turbo's compiled part writes
        call("tools/shard_imagenet.py", str(DEMO_IMAGES), str(DEMO_SHARDS), *unmarked)


def call(script: str, *arguments: str) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, ROOT / script, *arguments], env=os.environ | {"PYTHONPATH": paths})
    if done.returncode:
        raise SystemExit(done.returncode)  # the script has said why


if __name__ == "__main__":
    try:
        start = defaults(Options, sys.argv[1:])
    except AlexNetError as error:
        fail(str(error))
    run_command(main, Options, __doc__, default=start, errors=(AlexNetError, DataError))
