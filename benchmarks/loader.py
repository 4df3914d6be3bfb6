"""The rate of making batches, compared with a reference: libjpeg-turbo decoding the same whole images from memory.

    python -m benchmarks loader --data data/demo/shards [--peers]

Every candidate is a process of its own; they take turns. The peers are scripts under benchmarks/peers, each used as
its own documentation recommends; benchmarks/peers/README.md says how to install them.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alexnet.engine import find_device
from benchmarks.harness.children import ROOT, Child
from benchmarks.harness.diagnosis import diagnose
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.peer_data import extract_images
from benchmarks.harness.timing import Deadline, Missing, interleave, summarise, too_short
from pipelines import AUGMENTS, DataError, Manifest, load_manifest
from pipelines.remote.url import absolute
from pipelines.terminal import in_range, require
from pipelines.turbo.native import has_native

REFERENCE = "reference: decoding whole images"
READ, TRAINING = "read alone", "a training step alone"  # no loaders, but stages that the diagnosis compares
LOCK = "turbo without decoding"  # what is left is Python, which runs one thread at a time


@dataclass(frozen=True)
class LoaderOptions(MeasureOptions):
    """Images a second of each backend and crop, and their ratio to decoding whole images."""

    data: Path = Path("data/demo/shards")
    """A shard folder."""
    backends: tuple[Literal["turbo", "dali", "gpu"], ...] = ("turbo", "dali")
    """gpu: on a CPU only the host's share of it, with the launches left out; resident too."""
    crops: tuple[Literal["random", "resized"], ...] = ("random", "resized")
    augments: tuple[str, ...] = ()
    """Augmentations to measure besides the crops, by name, in normalised batches."""
    batch_size: int = 64
    batches: int = 40
    """Batches that each candidate makes in a round, over several epochs if there are few images; peers go through the
    whole train split."""
    rounds: int = 5
    short: bool = False
    """Allow rounds that are too short to measure anything, to see that every candidate runs; the result is marked."""
    threads: tuple[int, ...] = (os.cpu_count() or 1,)
    """Host threads; several numbers show how the rate grows."""
    peers: bool = False
    """Measure other loaders too, if they are installed."""
    peer_python: tuple[str, ...] = ()
    """NAME=PYTHON: the interpreter of a peer that has an environment of its own."""
    work: Path = Path("data/benchmark")
    """Folder for the images in the peers' own formats."""
    picture: Path | None = None
    """Draw the rates here, a PNG."""

    def __post_init__(self) -> None:
        unknown = set(self.augments) - set(AUGMENTS)
        require(not unknown, f"--augments has {', '.join(unknown)}, known: {', '.join(AUGMENTS)}")
        for name in ("batch_size", "batches", "rounds"):
            in_range(name, getattr(self, name), 1)
        if not self.short and (reason := too_short(self.batches, "--batches", self.batch_size)):
            raise ValueError(reason)
        require(min(self.threads, default=0) >= 1, "--threads takes one number or several, from 1")
        require(all("=" in pair for pair in self.peer_python), "--peer-python takes NAME=PYTHON")


def run_loader(options: LoaderOptions) -> Iterator[dict]:
    """Yield the settings, a row per candidate, and what bounds the rate."""
    deadline, manifest = Deadline.after(options.minutes), load_manifest(options.data)
    short = too_short(options.batches, "--batches", options.batch_size)
    if options.peers:
        epoch = manifest.split("train").samples // options.batch_size
        short = short or too_short(epoch, f"an epoch of {options.data}, a peer's round,", options.batch_size)
    if short and not options.short:
        raise DataError(short)
    missing = Missing()
    with ExitStack() as stack:
        children = {child.name: stack.enter_context(child) for child in start(options, manifest, deadline, missing)}
        for rates in interleave(children, options.rounds, deadline):
            yield described(rates, children, options, manifest, short) | missing.described()


def described(
    rates: dict[str, list[float]],
    children: dict[str, Child],
    options: LoaderOptions,
    manifest: Manifest,
    short: str | None,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        ending = f", {threads} threads"
        rows += summarise({name: rates[name] for name in rates if name.endswith(ending)}, REFERENCE + ending)
    for row in rows:
        child = children[str(row["name"])]
        row |= {"batch": child.batch, "memory_mb": max(child.memory_mb)} | child.pixels
    settings = {name: getattr(options, name) for name in ("batch_size", "batches", "rounds", "threads")}
    image = dataclasses.asdict(manifest.image) | {"mean_kb": mean_kb(manifest)}
    result = {"benchmark": "loader", "unit": "images/s", "data": str(options.data), "image": image, **settings}
    said = diagnose(stage_rates(rows, options), manifest.image.encoding == "raw")
    if options.backends[0] == "gpu" and find_device(options.device).type == "cpu":
        said = ["Without a GPU these are rates of the host's share of the backend gpu, with the launches left out."]
    said = [f"No measurement: {short}"] if short else said
    return result | {"too_short": bool(short), "rows": rows, "diagnosis": said}


def start(options: LoaderOptions, manifest: Manifest, deadline: Deadline, missing: Missing) -> Iterator[Child]:
    """Yield every candidate, ready to run. Note in ``missing`` those that cannot run, or not in the time left.

    Raises DataError if the reference or the first backend cannot run.
    """
    needed = ("reference", "read", "step")
    for threads in options.threads:
        for name, work in own_candidates(options, manifest).items():
            settings: dict[str, Any] = {"batch_size": options.batch_size, "batches": options.batches}
            settings |= {"data": absolute(options.data), "threads": threads, "device": options.device}
            given = json.dumps(settings | work)
            name = f"{name}, {threads} threads"
            is_needed = work["work"] in needed or work.get("backend") == options.backends[0]
            if not is_needed and deadline.half_over():
                missing.left_out.append(name)
                continue
            try:
                yield Child(name, ["benchmarks/our_loaders.py", given])
            except DataError as error:
                if is_needed:
                    raise
                missing.failed[name] = str(error)
        if options.peers:
            yield from start_peers(options, manifest, threads, deadline, missing)


def ways(backend: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the ways to use a backend: name and arguments."""
    return [(backend, {})] + [("gpu resident", {"resident": True})] * (backend == "gpu")


def own_candidates(options: LoaderOptions, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the reference, our loaders, and the stages that the diagnosis compares."""
    found: dict[str, dict[str, Any]] = {REFERENCE: {"work": "reference"}}
    for backend in options.backends:
        for name, more in ways(backend):
            given = {"work": "loader", "backend": backend} | more
            for crop in options.crops:
                found[f"{name}, {crop}"] = given | {"crop": crop}
            for augment in options.augments:
                found[f"{name}, {augment} normalised"] = given | {"augment": augment}
    first = f"{options.backends[0]}, {options.crops[0]}"
    found[f"{first}, normalised"] = found[first] | {"normalise": "mean_std"}
    if has_native() and "turbo" in options.backends:
        found[LOCK] = {"work": "lock", "backend": "turbo", "crop": "random"}
    return found | {READ: {"work": "read"}, TRAINING: {"work": "step"}}


def start_peers(
    options: LoaderOptions, manifest: Manifest, threads: int, deadline: Deadline, missing: Missing
) -> Iterator[Child]:
    """Yield the installed peers. Note in ``missing`` those that are not installed."""
    images = extract_images(manifest, options.work)
    pythons = dict(pair.split("=", 1) for pair in options.peer_python)
    for script in sorted(Path(ROOT, "benchmarks/peers").glob("loader_*.py")):
        peer = script.stem.removeprefix("loader_")
        if deadline.half_over():
            missing.left_out.append(f"peer {peer}")
            continue
        failed: dict[str, str] = {}
        for crop in options.crops:
            folders = {"images": images, "shards": options.data, "work": options.work / peer}
            given: dict[str, Any] = {name: str(path.resolve()) for name, path in folders.items()}
            given |= {"crop": crop, "size": 224, "batch_size": options.batch_size, "threads": threads}
            try:
                arguments = [f"benchmarks/peers/{script.name}", json.dumps(given)]
                yield Child(f"peer {peer}, {crop}, {threads} threads", arguments, pythons.get(peer, sys.executable))
            except DataError as error:  # a peer may lack a crop and have the others
                failed[f"peer {peer}, {crop}"] = str(error).splitlines()[-1]
        same = len(failed) == len(options.crops) and len({*failed.values()}) == 1
        missing.failed.update({f"peer {peer}": why for why in failed.values()} if same else failed)


def stage_rates(rows: list[dict], options: LoaderOptions) -> dict[str, float]:
    """Return the rates of all stages, for the first backend and crop and the most threads."""
    ending = f", {max(options.threads)} threads"
    rates = {str(row["name"]).removesuffix(ending): row["median"] for row in rows if row["name"].endswith(ending)}
    first = f"{options.backends[0]}, {options.crops[0]}"
    stages = {"read": rates[READ], "decode": rates[REFERENCE], "training": rates[TRAINING]}
    stages |= {"lock": rates[LOCK]} if LOCK in rates else {}
    return stages | {"pixels": rates[first], "batches": rates[f"{first}, normalised"]}


def loader_rows(result: dict) -> list[dict]:
    """Return the rows without the stages that the diagnosis compares."""
    return [row for row in result["rows"] if not str(row["name"]).startswith((READ, LOCK, TRAINING))]


def describe_loader(result: dict) -> str:
    """Describe the loaded data in a line."""
    image = result["image"]
    sizes = f"{image['size']}x{image['size']}" if image["resize"] == "square" else f"resize {image['resize']}"
    marked = "no measurement, too short: " if result.get("too_short") else ""
    size = f"{image['mean_kb']} KB an image, batches of {result['batch_size']}"
    return f"{marked}{image['encoding']} shards, {sizes}, {size}"


def mean_kb(manifest: Manifest) -> float:
    """Return the mean KB of a train sample in its shard, tar headers included."""
    split = manifest.split("train")
    return round(sum(shard.bytes for shard in split.shards) / split.samples / 1000, 1)
