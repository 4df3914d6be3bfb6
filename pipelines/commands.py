"""Command lines as messages print them: whole, and quoted for a shell, so that they work as printed.

Where the project is installed, a script's command is ``alexnet NAME``; in a checkout it is ``python SCRIPT``.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALLED = ROOT / "alexnet/_commands"  # the scripts in a wheel; alexnet/__main__.py runs them
NAMES = {
    "tools/shard_imagenet.py": "shard",
    "train.py": "train",
    **{f"tools/{name}.py": name for name in ("evaluate", "visualize", "report", "predict", "export")},
    "benchmarks/__main__.py": "bench",
    "tools/make_demo.py": "demo",
}
SCRIPT = re.compile(r"\bpython (-m benchmarks)(?![.\w])|\bpython ([\w/]+\.py)|(\btorchrun [^\n]*?)([\w/]+\.py)")


def command(script: str, *arguments: object, launcher: Sequence[str] = ()) -> str:
    """Return the command line that runs a script of this project from the working directory, with this Python.

    ``launcher`` are the words after python that start several ranks.
    """
    return shlex.join([*_start(script, launcher), *map(str, arguments)])


def program() -> str | None:
    """Return this process's command as an installed user types it; None in a checkout."""
    with suppress(ValueError):
        return f"alexnet {NAMES[Path(sys.argv[0]).relative_to(INSTALLED).as_posix()]}"
    return None


def as_typed(text: str) -> str:
    """Return a help text with the commands in it as users type them here: unchanged in a checkout."""
    return SCRIPT.sub(_installed, text) if INSTALLED.is_dir() else text


def _installed(found: re.Match[str]) -> str:
    bench, script, launcher, ranked = found.groups()
    name = "bench" if bench else NAMES.get(script or ranked)
    if name is None:
        return found[0]
    return f"{launcher}-m alexnet {name}" if launcher else f"alexnet {name}"


def _start(script: str, launcher: Sequence[str]) -> list[str]:
    python = Path(sys.executable)
    if not INSTALLED.is_dir():
        return [_called("python", python), *launcher, _from_here(ROOT / script)]
    ours = python.with_name("alexnet")
    if ours.exists() and not launcher:
        return [_called("alexnet", ours), NAMES[script]]
    return [_called("python", python), *launcher, "-m", "alexnet", NAMES[script]]


def _called(name: str, program: Path) -> str:
    """Return how to call a program from here: by its name if the shell finds it so, else by its path."""
    found = shutil.which(name)
    return name if found and Path(found) == program else _from_here(program)


def _from_here(path: Path) -> str:
    """Return the path from the working directory, if it lies below that."""
    with suppress(OSError, ValueError):  # the directory is gone, or elsewhere
        return str(path.relative_to(Path.cwd()))
    return str(path)
