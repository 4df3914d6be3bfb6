"""Command lines as messages print them: whole, and quoted for a shell, so that they work as printed."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(script: str, *arguments: object, launcher: Sequence[str] = ()) -> str:
    """Return the command line that runs a script of this checkout from the working directory, with this Python.

    ``launcher`` are the words between the two, such as those that start several ranks.
    """
    found = shutil.which("python")
    python = "python" if found and Path(found) == Path(sys.executable) else _from_here(Path(sys.executable))
    return shlex.join([python, *launcher, _from_here(ROOT / script), *map(str, arguments)])


def _from_here(path: Path) -> str:
    """Return the path from the working directory, if it lies below that."""
    with suppress(OSError, ValueError):  # the directory is gone, or elsewhere
        return str(path.relative_to(Path.cwd()))
    return str(path)
