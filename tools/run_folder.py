"""The folder of a run: what lies in it, what it was made with, and whether it may go on."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alexnet import AlexNetError
from alexnet.board import EVENTS
from pipelines import Manifest
from pipelines.native import has_native
from pipelines.shards import write_atomically

ROOT = Path(__file__).parents[1]
FILES = ("config.json", "env.json", "log.jsonl", "last*.pt*", "best.pt", "metrics.json")
RESULTS = ("classes.csv", "predictions.csv", "report.html", "pictures", EVENTS)  # of the tools, about a run
PACKAGES = (
    *("torch", "torchvision", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("simplejpeg", "opencv-python-headless", "numpy", "pillow"),
)
# What may change on the way: it leaves the training what it was, but for rounding.
FREE = {
    *("recipe", "data", "out", "device", "backend", "compile", "conv1", "deterministic"),
    *("log_steps", "tensorboard", "checkpoint_minutes", "keep"),
}


def check_free(out: Path) -> None:
    """Raises AlexNetError where the run folder holds another run."""
    if any(True for name in FILES for _ in out.glob(name)):
        raise AlexNetError(f"{out} holds a run already: add --resume to go on, --overwrite, or another --out")


def start(out: Path, overwrite: bool, config: dict[str, Any], environment: dict[str, Any]) -> None:
    """Make the run folder and write down what runs in it."""
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        clear(out)
    write_atomically(out / "config.json", json.dumps(config, indent=1).encode())
    write_atomically(out / "env.json", json.dumps(environment, indent=1).encode())


def clear(out: Path) -> None:
    """Take a run out of its folder, and what the tools have found out about it."""
    for name in (*FILES, *RESULTS):
        for path in out.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What is needed to repeat a run, besides its configuration and its data."""
    versions = {name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": world_size,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "native": has_native(),
        "packages": versions | {"torch": str(torch.__version__)},
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() or None


def fingerprint(config: dict[str, Any], manifest: Manifest, backend: str, world_size: int) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that stopped."""
    content = (manifest.folder / "manifest.json").read_bytes()
    training = {name: value for name, value in config.items() if name not in FREE}
    made = {"data": hashlib.sha256(content).hexdigest(), "backend": backend, "ranks": world_size}
    return json.loads(json.dumps(training | made))


def differences(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each in words. More epochs are none: the run goes on for longer."""
    before, after = dict(_flat(kept)), dict(_flat(now))
    if after["epochs"] > before["epochs"]:
        before["epochs"] = after["epochs"]
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return [f"{_title(name)} was {before.get(name)} and is {after.get(name)}" for name in names]


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value


def _title(name: str) -> str:
    made = {"data": "the data's manifest.json (its sha256)", "ranks": "the number of ranks"}
    return made.get(name, f"--{name.replace('_', '-')}")
