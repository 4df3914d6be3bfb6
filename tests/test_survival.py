"""Tests that a resumed run ends with the weights of an uninterrupted run, whatever stopped it."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from alexnet import AlexNetError, checkpoint, run_folder
from alexnet.engine import TrainStep
from alexnet.log import RunLog, read_log
from alexnet.stop import Stop
from tests.conftest import QUICK, ROOT, SMALLEST, assert_refused, command, mounted, script, wait_until

KILLS = 5  # per run, of which there are six
RANK_KILLS = 5
OFTEN = ("--checkpoint-minutes", "0.01")  # a checkpoint is always being written
SMALL = ("--batch-size", "8", "--epochs", "2", "--learning-rate", "0.002", "--dropout", "0.5", "--log-steps", "1")


def begin(errors: Path, *line: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with errors.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, line)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file, text=True
        )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    wait_until(lambda: condition() or process.poll() is not None, "a run hangs")


def assert_the_same_weights(ours: Path, theirs: Path) -> None:
    found, expected = (checkpoint.load(folder / "last.pt") for folder in (ours, theirs))
    assert found["step"] == expected["step"]
    for name, weights in expected["model"].items():
        assert torch.equal(found["model"][name], weights), name


def assert_each_step_stands_once(run: Path, epochs: int, steps: int) -> None:
    entries = read_log(run / "log.jsonl")
    assert [entry["step"] for entry in entries if entry["kind"] == "step"] == list(range(1, steps + 1))
    assert [entry["epoch"] for entry in entries if entry["kind"] == "epoch"] == list(range(1, epochs + 1))


# It is train.py, and sends itself the signal as its first step begins.
SIGNALLED = """
import os, runpy, sys
from alexnet.engine import TrainStep
learn, number = TrainStep.__call__, int(sys.argv.pop(1))
def step(*arguments):
    os.kill(os.getpid(), number)
    TrainStep.__call__ = learn
    return learn(*arguments)
TrainStep.__call__ = step
sys.argv[0] = "train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_ends_the_run_with_0_and_the_command_that_goes_on_as_if_nothing_had_been(
    few_shards: Path, uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    """Check with a signal in the first of an epoch's two steps."""
    out = tmp_path / "it stopped"
    done = command("-c", SIGNALLED, int(number), "--data", few_shards, "--out", out, *SMALLEST)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(out / "last.pt")["step"] == 1
    done = command(*shlex.split(done.stdout.split("to resume: ")[1])[1:])
    assert done.returncode == 0, done.stderr
    assert_the_same_weights(out, uninterrupted)
    assert_each_step_stands_once(out, epochs=2, steps=4)
    lines, whole = (
        [entry for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"] for run in (out, uninterrupted)
    )
    assert lines == whole and all("train_top1" in line for line in lines), "of all train images, before the stop too"


def test_the_first_signal_asks_and_the_second_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("alexnet.stop.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        now[0] += 0.9
        os.kill(os.getpid(), signal.SIGTERM)  # sent by torchrun, in addition to the terminal's
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    code = """
import itertools, os, time
from alexnet.stop import Stop
time.monotonic = itertools.count(0, 1.1).__next__
with Stop():
    for _ in range(2):
        os.kill(os.getpid(), 2)
"""
    done = command("-c", code)
    assert done.returncode == 130 and "error: stopped" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """Return the folder of a run that has ended, to resume."""
    folder = tmp_path / "finished"
    folder.mkdir()
    for name in ("config.json", "env.json", "log.jsonl"):
        shutil.copy(trained / name, folder)
    for name in ("last.pt", "last-1.pt", "best.pt"):
        (folder / name).symlink_to(trained / name)
    return folder


def test_a_resume_with_another_configuration_names_it_and_needs_override(finished: Path) -> None:
    line = ("train.py", "--out", finished, "--resume")
    changed = (*line, "--seed", "1", "--weight-decay", "0.1")
    before = (finished / "config.json").read_text()
    assert_refused(script(*changed), "--seed was 0 and is 1", "--weight-decay was 0.0005 and is 0.1", "--override")
    assert (finished / "config.json").read_text() == before
    done = script(*changed, "--override")
    assert done.returncode == 0 and "--seed was 0 and is 1" in done.stdout, done.stderr
    assert script(*line, "--log-steps", "7", "--keep", "1", "--checkpoint-minutes", "3").returncode == 1
    assert json.loads((finished / "config.json").read_text())["seed"] == 1, "goes on as it was begun last"
    assert script(*line, "--seed", "0", "--weight-decay", "0.0005", "--log-steps", "7").returncode == 0


def test_a_length_in_steps_is_that_of_its_epochs(finished: Path) -> None:
    before = json.loads((finished / "config.json").read_text())["settings"]["epochs"]
    steps = max(json.loads(line).get("step", 0) for line in (finished / "log.jsonl").read_text().splitlines())
    line = ("train.py", "--out", finished, "--resume", "--epochs", "0", "--steps")
    done = script(*line, str(steps))
    assert done.returncode == 0 and f"{before} epochs, best top-1" in done.stdout, done.stderr
    assert json.loads((finished / "config.json").read_text())["settings"]["epochs"] == before
    assert_refused(script(*line, "1"), f"--epochs was {before} and is 1")


def test_a_resume_names_a_line_of_the_log_that_no_run_writes(finished: Path) -> None:
    before = (finished / "log.jsonl").read_text()
    (finished / "log.jsonl").write_text(before + '{"kind": "step", "step": null}\n')
    number = len(before.splitlines()) + 1
    assert_refused(script("train.py", "--out", finished, "--resume"), f"log.jsonl, line {number}: its step is no whole")


def test_a_resume_with_other_data_is_refused(finished: Path, numbered_shards: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in numbered_shards.iterdir():
        (moved / path.name).symlink_to(path)
    assert script("train.py", "--out", finished, "--resume", "--data", moved).returncode == 0, "only the place is new"
    (moved / "manifest.json").unlink()
    manifest = json.loads((numbered_shards / "manifest.json").read_text())
    manifest["seed"] = 8
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(script("train.py", "--out", finished, "--resume", "--data", moved), "manifest.json", "--override")


@pytest.mark.slow
def test_overridden_a_run_goes_on_with_another_batch_size_and_backend(finished: Path) -> None:
    changed = ("--batch-size", "20", "--backend", "synthetic", "--epochs", "3")
    done = script("train.py", "--out", finished, "--resume", *changed, "--override")
    assert done.returncode == 0, done.stderr
    state = checkpoint.load(finished / "last.pt")
    assert (state["epoch"], state["step"], len(state["history"])) == (3, 15, 3)


@pytest.mark.slow
def test_a_resume_before_the_first_checkpoint_begins_again(numbered_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ("train.py", "--data", numbered_shards, "--out", out, *QUICK, "--backend", "synthetic", "--epochs", "1")
    assert script(*line).returncode == 0
    for name in ("last.pt", "best.pt"):
        (out / name).unlink()
    done = script("train.py", "--out", out, "--resume")
    assert done.returncode == 0 and "no checkpoint yet" in done.stdout, done.stderr
    assert_each_step_stands_once(out, epochs=1, steps=2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk with room for the checkpoints of one epoch, 660 MB, and not for those of two."""
    with mounted(tmp_path / "disk", 800) as disk:
        yield disk


def test_a_disk_that_fills_ends_the_run_with_1_and_leaves_the_checkpoint_before(few_shards: Path, disk: Path) -> None:
    line = ("--data", few_shards, "--out", disk / "run", *SMALLEST, "--backend", "synthetic")
    assert_refused(script("train.py", *line), "cannot write", "free some space", "--resume")
    assert checkpoint.load(disk / "run/last.pt")["epoch"] == 1
    assert not [path for path in (disk / "run").iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("error", [torch.AcceleratorError("CUDA error: unspecified launch failure"), None])
def test_a_lost_gpu_or_a_loss_that_is_no_number_leaves_the_checkpoint_before(
    few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Check in the third step, after an epoch of two. No GPU can be lost at will, so the step raises torch's error."""
    steps, learn = iter(range(1, 5)), TrainStep.__call__

    def fail(self: TrainStep, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if next(steps) < 3:
            return learn(self, images, labels)
        if error:
            raise error
        return learn(self, images * torch.nan, labels)

    monkeypatch.setattr(TrainStep, "__call__", fail)
    words = (
        ("the GPU failed (CUDA error", "--resume") if error else ("the loss became nan in step 3", "--learning-rate")
    )
    line = ("--data", few_shards, "--out", tmp_path / "run", *SMALLEST, "--backend", "synthetic")
    assert_refused(script("train.py", *line), *words)
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 2


def test_overwriting_a_run_leaves_nothing_of_it_and_of_what_was_found_out_about_it(tmp_path: Path) -> None:
    files = ("config.json", "last.pt", "last-1.pt", "last.pt.damaged", "last.pt.tmp", "best.pt", "log.jsonl")
    found_out = ("metrics.json", "classes.csv", "predictions.csv", "report.html", "pictures/filters.png")
    for name in (*files, *found_out, "tensorboard/events.out.tfevents.1764000000.host.4711.0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text('{"recipe": "demo", "settings": {}}')
    with pytest.raises(AlexNetError, match="holds a run already"):
        run_folder.check_free(tmp_path)
    (tmp_path / "notes.txt").touch()
    run_folder.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_log_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [("step", 1), ("step", 2), ("epoch", 1), ("step", 3), ("epoch", 2)]
    path.write_text("".join(json.dumps({"kind": kind, kind: at}) + "\n" for kind, at in lines) + '{"kind": "st')
    RunLog(path, step=2, epoch=1).write("step", step=3, loss=1.0)
    assert [(entry["kind"], entry[entry["kind"]]) for entry in read_log(path)] == [*lines[:3], ("step", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "bn"])
@pytest.mark.parametrize("backend", ["turbo", "dali", "synthetic"])
def test_killed_at_any_moment_a_run_ends_as_the_uninterrupted_one(
    numbered_shards: Path, tmp_path: Path, backend: str, variant: str
) -> None:
    """Check with SIGKILL, while checkpoints are being written all the time."""
    options = ("--data", numbered_shards, "--backend", backend, "--variant", variant, *SMALL, "--deterministic")
    whole, out, errors = tmp_path / "whole", tmp_path / "killed", tmp_path / "errors"
    done = command("train.py", *options, "--out", whole)
    assert done.returncode == 0, done.stderr
    moments, kills, process = random.Random(f"{backend} {variant}"), 0, None
    while kills < KILLS:
        begun = changed(out / "config.json")
        process = begin(errors, "train.py", *(("--resume",) if begun else options), "--out", out, *OFTEN)
        wait_for(lambda begun=begun: changed(out / "config.json") != begun, process)
        time.sleep(moments.uniform(0, 5))
        process.kill()
        if process.wait() == 0:  # it ended before the kill: begin anew
            shutil.rmtree(out)
            continue
        assert process.returncode == -signal.SIGKILL, errors.read_text()[-1000:]
        kills += 1
    done = command("train.py", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert_the_same_weights(out, whole)
    assert_each_step_stands_once(out, epochs=2, steps=24)


@pytest.mark.slow
def test_two_ranks_of_which_one_is_killed_again_and_again_end_as_two_that_were_not(
    numbered_shards: Path, tmp_path: Path
) -> None:
    """Check that torchrun restarts from the last checkpoint."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", RANK_KILLS)
    epochs = 8  # long enough to be killed five times
    options = ("train.py", "--data", numbered_shards, *SMALL, "--epochs", epochs, "--deterministic", "--out")
    whole, out, errors = tmp_path / "whole", tmp_path / "killed", tmp_path / "errors"
    done = command(*torchrun, *options, whole)
    assert done.returncode == 0, done.stderr[-3000:]
    moments, begun, kills = random.Random(0), (0.0,), 0
    process = begin(errors, *torchrun, *options, out, *OFTEN)
    for _ in range(RANK_KILLS):
        wait_for(lambda before=begun: changed(out / "config.json") not in before, process)
        begun = (0.0, changed(out / "config.json"))
        time.sleep(moments.uniform(0, 5))
        with suppress(psutil.NoSuchProcess, IndexError):  # on a busy machine the run may be over
            moments.choice(psutil.Process(process.pid).children()).kill()
            kills += 1
    process.communicate()
    assert process.returncode == 0 and kills, errors.read_text()[-3000:]
    assert_the_same_weights(out, whole)
    assert_each_step_stands_once(out, epochs, steps=12 * epochs)


def changed(path: Path) -> float:
    """Return the time of the last write, or 0. Rank 0 writes config.json as it begins to train."""
    return path.stat().st_mtime if path.exists() else 0.0
