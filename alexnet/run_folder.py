"""The folder of a run: its files, its lock, what it was made with, and what may change on resume."""

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alexnet.board import EVENTS
from alexnet.errors import AlexNetError
from alexnet.files import read_json, write_json
from alexnet.ranks import Ranks

ROOT = Path(__file__).parents[1]
# The names that this program writes into a run folder and its two subfolders, and their temporary names.
CHECKPOINT = r"(last|last-\d+|best)\.pt"
RUN_FILE = re.compile(rf"(config|env)\.json|log\.jsonl|{CHECKPOINT}(\.damaged)?|metrics\.json")
LEFT_OVER = re.compile(rf"((config|env)\.json|log\.jsonl|{CHECKPOINT})(\.[0-9a-f]{{8}})?\.tmp")  # of a training
RESULT = re.compile(r"(metrics\.json|(classes|mistakes|predictions)\.csv|report\.html)(\.[0-9a-f]{8}\.tmp)?")
PICTURE = re.compile(
    r"(activations(-\d+)?|answers|confusions|curves|features|filters|mistakes|neighbours|patches|reliability"
    r"|saliency|thumbnails)\.png"
    r"(\.[0-9a-f]{8}\.tmp)?"
)
EVENT_FILE = re.compile(r"events\.out\.tfevents\.\d+\.[\w.-]+\.\d+\.\d+")
FOLDERS = {"pictures": (PICTURE,), EVENTS: (EVENT_FILE,), ".": (RESULT, LEFT_OVER, RUN_FILE)}
PACKAGES = (
    *("alexnet-pipelines", "torch", "torchvision", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("simplejpeg", "opencv-python-headless", "numpy", "pillow"),
)
# Options that do not change the training, except for rounding.
MAY_CHANGE_ON_RESUME = {
    *("recipe", "data", "out", "device", "backend", "resident", "compile", "conv1", "deterministic"),
    *("cache", "cache_gb", "groups", "fused", "log_steps", "tensorboard", "checkpoint_minutes", "keep"),
}


@contextmanager
def claim(out: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the run folder against other training runs. Rank 0 holds the lock, at most until its process ends.

    Raises AlexNetError on every rank if another training run holds it.
    """
    with ExitStack() as held:
        refused = None
        if ranks.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((out / "lock").open("a+"))  # + does not wait for a pipe's reader
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused = f"another training is writing to {out}: wait for it, stop it, or choose another --out"
        if message := ranks.gather(refused)[0]:
            raise AlexNetError(message)
        yield


def check_free(out: Path, overwrite: bool = False) -> None:
    """Raise AlexNetError if the run folder holds a run, or with ``overwrite``, if not all of it can be deleted."""
    if overwrite:
        removable(out)
    elif any(RUN_FILE.fullmatch(path.name) for path in out.glob("*")):
        raise AlexNetError(f"{out} holds a run already: add --resume to go on, --overwrite, or another --out")


def start(out: Path, overwrite: bool, config: dict[str, Any], environment: dict[str, Any]) -> None:
    """Delete an earlier run, or what killed runs left over. Write config.json and env.json."""
    if overwrite:
        clear(out)
    for path in out.glob("*.tmp"):
        if LEFT_OVER.fullmatch(path.name) and path.is_file():
            path.unlink()
    write_json(out / "config.json", config)
    write_json(out / "env.json", environment)


def clear(out: Path) -> None:
    """Delete the files of a run and the results of the tools, and subfolders if nothing else is in them.

    Raises AlexNetError, with nothing deleted, as ``removable`` does.
    """
    for path in removable(out):
        path.unlink()
    for name in ("pictures", EVENTS):
        with suppress(OSError):  # it is missing, or holds other files
            (out / name).rmdir()


def removable(out: Path) -> list[Path]:
    """List the files that ``clear`` deletes; config.json, which marks the folder as a run's, comes last.

    Raises AlexNetError if the folder has such names but no run, or if one of them is a link or otherwise not a run's.
    """
    found = []
    for name, patterns in FOLDERS.items():
        folder = out / name
        if folder != out and (folder.is_symlink() or (folder.exists() and not folder.is_dir())):
            raise AlexNetError(f"{folder} is no folder that a run made: nothing was deleted; move it away yourself")
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found += [path for path in paths if any(pattern.fullmatch(path.name) for pattern in patterns)]
    for path in found:
        if path.is_symlink() or not path.is_file() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise AlexNetError(f"{path} is no file that a run may delete: nothing was deleted; move it away yourself")
    if found and not _holds_run(out):
        raise AlexNetError(
            f"{out} holds no run of train.py (config.json is missing or another program's), but {found[0].name}: "
            "nothing was deleted; choose another --out, or move these files away"
        )
    return sorted(found, key=lambda path: path == out / "config.json")


def _holds_run(out: Path) -> bool:
    try:
        config = read_json(out / "config.json")
    except (AlexNetError, OSError):
        return False
    return isinstance(config, dict) and {"recipe", "settings"} <= config.keys()


def environment(device: torch.device, world_size: int, *, native: bool) -> dict[str, Any]:
    """Return what is needed to repeat a run, besides its configuration and its data.

    ``native`` is true if turbo's compiled part is available.
    """
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
        "native": native,
        "packages": versions | {"torch": str(torch.__version__)},
    }


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # installed: perhaps below another project's repository
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() or None


def fingerprint(config: dict[str, Any], *, data: str, backend: str, world_size: int) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that stopped; ``data`` is its sha256."""
    training = {name: value for name, value in config.items() if name not in MAY_CHANGE_ON_RESUME}
    made = {"data": data, "backend": backend, "ranks": world_size}
    return json.loads(json.dumps(training | made))


def differences(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe each difference in words. More epochs do not count: they only make the run longer."""
    before, after = dict(_flat(kept)), dict(_flat(now))
    if after["epochs"] > before["epochs"]:
        before["epochs"] = after["epochs"]
    before["steps"] = after.get("steps")  # they have become epochs
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
