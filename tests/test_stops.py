"""Tests that whatever ends a command ends its workers, and that the command can be run again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import PATIENCE, ROOT, shard, wait_until

TOOL = "tools/shard_imagenet.py"
# The tool under another default of how processes start.
FORKSERVER = (
    "-c",
    "import multiprocessing, runpy, sys; multiprocessing.set_start_method('forkserver'); "
    "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')",
    TOOL,
)
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def start(errors: Path, *arguments: object) -> subprocess.Popen:
    """Start a command in a session of its own, which identifies its processes however they were started."""
    with errors.open("w") as file:
        line = [sys.executable, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        how: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": file, "stdout": file}
        return subprocess.Popen(line, start_new_session=True, preexec_fn=answer_signals, **how)


def answer_signals() -> None:
    """Restore the default action of signals that nohup, or a shell for background commands, sets to be ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def processes_of(session: int) -> list[psutil.Process]:
    """Return the session's running processes, without the first one, which is this process's child."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != session and os.getsid(process.pid) == session:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def workers_of(session: int) -> list[psutil.Process]:
    return [process for process in processes_of(session) if "spawn_main" in " ".join(process.cmdline())]


def check_stopped(process: subprocess.Popen, number: int, errors: Path) -> None:
    """Check that all processes end, although only the main one got the signal, and that they print one line."""
    try:
        wait_until(lambda: not processes_of(process.pid), f"workers outlive {signal.Signals(number).name}")
    finally:
        for left in processes_of(process.pid):
            left.kill()
    if number == signal.SIGKILL:  # Python prints errors in a worker that loses its parent while it starts
        assert process.returncode == -signal.SIGKILL
    else:
        said = errors.read_text()
        assert process.returncode == 130 and said.count("error: stopped") == 1 and "Traceback" not in said, said


@pytest.fixture(scope="module")
def few(demo_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a hundred images of the demo."""
    source = tmp_path_factory.mktemp("few") / "images"
    for split, count in (("train", 8), ("val", 2)):
        for folder in (demo_images / split).iterdir():
            (source / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (source / split / folder.name / path.name).symlink_to(path)
    return source


@pytest.fixture(scope="module")
def whole(few: Path) -> dict[str, bytes]:
    """Return what an uninterrupted run writes."""
    return contents(shard(few, few.parent / "whole", shard_mb=0.2, workers=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_sharding(
    few: Path,
    out: Path,
    number: int,
    moment: Callable[[subprocess.Popen], object],
    *,
    send: Callable = os.kill,
    tool: tuple[str, ...] = (TOOL,),
) -> None:
    """Stop a run at that moment. Try again if it was already done."""
    for _ in range(20):
        errors = out.with_name("errors")
        process = start(errors, *tool, few, out, "--shard-mb", "0.2", "--workers", "2")
        moment(process)
        if process.poll() is None:
            send(process.pid, number)
        if process.wait(PATIENCE):
            return check_stopped(process, number, errors)
        for path in out.iterdir():
            path.unlink()
    raise AssertionError(f"{signal.Signals(number).name} did not stop any of 20 runs")


@pytest.mark.parametrize("number", [*STOPS[:2], *(pytest.param(one, marks=pytest.mark.slow) for one in STOPS[2:])])
def test_no_worker_outlives_sharding_which_then_goes_on(
    few: Path, whole: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    stop_sharding(few, out, number, lambda process: writing(process, out))
    assert contents(shard(few, out, shard_mb=0.2, workers=2)) == whole


def writing(process: subprocess.Popen, out: Path) -> None:
    wait_until(lambda: any(out.glob("*.tmp")) or process.poll() is not None, "no shard was begun")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("tool", [(TOOL,), FORKSERVER], ids=["default", "forkserver"])
def test_a_signal_of_the_terminal_to_all_processes_is_one_line(
    few: Path, tmp_path: Path, tool: tuple[str, ...], number: int
) -> None:
    """Check two signals: a terminal that closes sends SIGHUP, and its shell sends another one.

    forkserver is the default of Python 3.14.
    """

    def send(process: int, number: int) -> None:
        os.killpg(process, number)
        with suppress(ProcessLookupError):
            os.killpg(process, number)

    out = tmp_path / "out"
    stop_sharding(few, out, number, lambda process: writing(process, out), send=send, tool=tool)


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_no_worker_outlives_sharding_stopped_at_any_moment(
    few: Path, whole: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    """Check ten times: as processes start, import, write, and finish. Whatever the moment is, the test may not fail."""
    chance, out = random.Random(number), tmp_path / "out"

    def any_moment(process: subprocess.Popen) -> None:
        wait_until(lambda: bool(processes_of(process.pid)) or process.poll() is not None, "no process was started")
        time.sleep(chance.uniform(0, 1.2))

    for _ in range(10):
        stop_sharding(few, out, number, any_moment)
    if not (out / "manifest.json").exists():
        shard(few, out, shard_mb=0.2, workers=2)
    assert contents(out) == whole


def verify_until(shards: Path, errors: Path, stop: Callable[[subprocess.Popen], object]) -> subprocess.Popen:
    """Stop --verify as soon as its workers run. Try again if it was already done. Return the process."""
    while True:
        process = start(errors, TOOL, "--verify", shards, "--workers", "2")
        wait_until(lambda p=process: len(workers_of(p.pid)) == 2 or p.poll() is not None, "no workers")
        if process.poll() is None:
            stop(process)
        if process.wait(PATIENCE):
            return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_verify(demo_shards: Path, tmp_path: Path, number: int) -> None:
    process = verify_until(demo_shards, tmp_path / "errors", lambda process: process.send_signal(number))
    check_stopped(process, number, tmp_path / "errors")


def test_a_worker_that_is_killed_ends_verify_with_one_line(demo_shards: Path, tmp_path: Path) -> None:
    def kill(process: subprocess.Popen) -> None:
        for worker in workers_of(process.pid)[:1]:
            worker.kill()

    assert verify_until(demo_shards, tmp_path / "errors", kill).returncode == 1
    said = (tmp_path / "errors").read_text()
    assert "a worker process died" in said and "Traceback" not in said
