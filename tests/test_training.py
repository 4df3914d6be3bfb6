"""Tests of the real trainer on small real shards: what it writes, how it resumes, and what it refuses."""

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from alexnet import RECIPES, AlexNet, AlexNetError, checkpoint
from alexnet.engine import TrainStep, compile_model
from alexnet.log import read_log
from alexnet.optim import PLATEAU_EPOCHS, Schedule, make_optimizer
from alexnet.options import defaults
from pipelines.turbo import native as turbo_native
from pipelines.turbo.native import has_native, warn_without_native
from tests.conftest import NUMBERED_IMAGES, SMALLEST, assert_refused, command, script
from train import Options

CPU = torch.device("cpu")


def test_a_run_writes_its_files(trained: Path) -> None:
    files = {path.name for path in trained.iterdir()}
    assert files >= {"config.json", "env.json", "log.jsonl", "last.pt", "best.pt"}
    assert not [name for name in files if name.endswith(".tmp")]
    entries = read_log(trained / "log.jsonl")
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry in steps:
        assert {"loss", "images_per_second", "data_wait", "step_ms", "memory_gib"} <= set(entry)
        assert 0 <= entry["data_wait"] <= 1 and entry["images_per_second"] > 0 and math.isfinite(entry["loss"])
    assert [entry["samples"] for entry in entries if entry["kind"] == "epoch"] == [NUMBERED_IMAGES] * 2
    assert json.loads((trained / "config.json").read_text())["settings"]["epochs"] == 2
    assert json.loads((trained / "env.json").read_text())["packages"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_loader_before_a_change_of_augmentation_is_closed(
    few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check when the loader after it is opened; the run ends there."""
    opened: list[pipelines.Loader] = []

    def open_no_third(*args, **options) -> pipelines.Loader:
        if len(opened) == 2:
            assert opened[0]._source is None, "the first epochs' loader keeps its threads and pinned memory"
            raise pipelines.DataError("the third loader")
        opened.append(open_loader(*args, **options))
        return opened[-1]

    open_loader = pipelines.open_loader
    monkeypatch.setattr(pipelines, "open_loader", open_no_third)
    late = ("--late-augment", "paper", "--late-augment-epoch", "1")
    done = script("train.py", "--data", few_shards, "--out", tmp_path / "run", *SMALLEST, *late)
    assert_refused(done, "the third loader")


# It is train.py, and its thread kills it when it has written the first checkpoint, while training continues.
KILLED = """
import os, runpy, sys
from alexnet import checkpoint
save = checkpoint.save
def save_and_die(path, *rest):
    save(path, *rest)
    if path.name == "last.pt":
        os.kill(os.getpid(), 9)
checkpoint.save = save_and_die
sys.argv[0] = "train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_killed_and_resumed_ends_as_the_uninterrupted_one(
    few_shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Check bit-identical weights after a kill in epoch 2: weights, momentum, dropout and data position are in last.pt.

    Each run has its own process, because earlier tests may leave torch with other threads, which round differently.
    """
    out = tmp_path / "killed"
    done = command("-c", KILLED, "--data", few_shards, "--out", out, *SMALLEST)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = command("train.py", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "after epoch 1" in done.stdout
    resumed, whole = (checkpoint.load(folder / "last.pt") for folder in (out, uninterrupted))
    assert resumed["epoch"] == 2
    for name, weights in whole["model"].items():
        assert torch.equal(resumed["model"][name], weights), name


def test_a_checkpoint_loads_into_plain_torch(trained: Path) -> None:
    state = torch.load(trained / "last.pt", weights_only=True)
    AlexNet("bn", NUMBERED_IMAGES).load_state_dict(state["model"])


def test_the_step_is_torchs_sgd_on_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    model, reference = AlexNet("one_weird_trick", 3, dropout=0), AlexNet("one_weird_trick", 3, dropout=0)
    reference.load_state_dict(model.state_dict())
    recipe = RECIPES["demo"]
    step = TrainStep(model, make_optimizer(model, recipe), recipe, CPU)
    optimizer = torch.optim.SGD(reference.parameters(), recipe.learning_rate, 0.9, weight_decay=5e-4)
    images, labels = torch.randn(4, 3, 224, 224), torch.tensor([0, 1, 2, 1])
    right = 0
    for _ in range(3):
        logits = reference(images)
        right += int((logits.argmax(1) == labels).sum())
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert step(images, labels).item() == pytest.approx(loss.item(), abs=1e-4)
    assert (step.take_right(), step.take_right()) == (right, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_either_precision_takes_the_half_precision_images_of_a_gpu_loader(precision: str) -> None:
    model = AlexNet("one_weird_trick", 3, dropout=0)
    recipe = replace(RECIPES["demo"], precision=precision)
    step = TrainStep(model, make_optimizer(model, recipe), recipe, CPU)
    assert step(torch.randn(2, 3, 224, 224).half(), torch.tensor([0, 1])).dtype == torch.float32


def test_the_cosine_schedule_warms_up_and_ends_at_zero() -> None:
    recipe = RECIPES["demo"]
    schedule = Schedule(recipe, steps_per_epoch=100)
    rates = [schedule.rate(step) for step in range(100 * recipe.epochs)]
    assert rates[0] < 0.05 * recipe.learning_rate
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.02)
    assert rates.index(max(rates)) == pytest.approx(100 * recipe.warmup_epochs, abs=2)
    assert rates[-1] < 1e-3 * recipe.learning_rate


def test_a_run_shorter_than_its_warm_up_rises_to_its_end() -> None:
    schedule = Schedule(replace(RECIPES["demo"], epochs=1), steps_per_epoch=10)
    rates = [schedule.rate(step) for step in range(10)]
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] < RECIPES["demo"].learning_rate


def test_the_plateau_schedule_drops_three_times_and_survives_a_resume() -> None:
    schedule = Schedule(RECIPES["paper"], steps_per_epoch=10)
    schedule.observe(0.5)
    for expected in (0.001, 0.0001, 0.00001, 0.00001):
        for _ in range(PLATEAU_EPOCHS):
            resumed = Schedule(RECIPES["paper"], steps_per_epoch=10)
            resumed.load_state_dict(schedule.state_dict())
            schedule = resumed
            schedule.observe(0.5)
        assert schedule.rate(500) == pytest.approx(expected)


def test_torch_compile_without_a_compiler_says_so_and_runs_eagerly(monkeypatch, caplog) -> None:
    monkeypatch.setenv("PATH", "")
    model = AlexNet("paper", 2)
    assert compile_model(model, "on", CPU) is model
    assert "none is installed: running eagerly" in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_the_first_lines_say_which_decoder_runs(
    few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    """Check one warning per process, although two loaders are opened, if the compiled part was not built."""
    if native and not has_native():
        pytest.skip("needs pipelines/turbo/native.c built")
    if not native:
        monkeypatch.setattr(turbo_native, "native_library", lambda: None)
    warn_without_native.cache_clear()

    def stop(*_: object) -> None:
        raise AlexNetError("stopped at the first step")

    monkeypatch.setattr(TrainStep, "__call__", stop)
    done = script("train.py", "--data", few_shards, "--out", tmp_path / "run", *SMALLEST, "--backend", "turbo")
    assert_refused(done, "stopped at the first step")
    warn_without_native.cache_clear()
    slow = "turbo without its compiled part: two thirds of the speed"
    assert ("loading with turbo, compiled decoder on cpu" if native else f"loading with {slow}") in done.stdout
    assert [message for message in caplog.messages if slow in message] == caplog.messages
    assert len(caplog.messages) == (0 if native else 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], ["epochs", "0"]),
        (["--batch-size", "x"], ["--batch-size"]),
        (["--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["--recipe", "resnet"], ["--recipe"]),
        (["--epoch", "3"], ["--epochs"]),
        (["--augment", "mixup"], ["mixup", "paper", "crop_flip"]),
        (["--log-steps", "0"], ["--log-steps"]),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
    ],
)
def test_wrong_command_lines_end_with_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "run").mkdir()
    done = script("train.py", "--out", tmp_path / "run", *arguments)
    if "--resume" in arguments:
        words = ["no run to resume"]
    assert_refused(done, *words, code=1 if "--resume" in arguments else 2)
    assert not list((tmp_path / "run").iterdir())


def test_what_cannot_be_trained_ends_with_1(
    trained: Path, numbered_shards: Path, demo_shards: Path, tmp_path: Path
) -> None:
    train = ("train.py", "--data", numbered_shards)
    assert_refused(script(*train, "--out", trained), "holds a run already", "--resume", "--overwrite")
    assert_refused(script("train.py", "--data", tmp_path / "none", "--out", tmp_path / "a"), "no shards at")
    assert_refused(script(*train, "--out", tmp_path / "b", "--batch-size", "500"), "lower the batch size")
    assert_refused(script("train.py", "--out", tmp_path / "c", "--resume"), "no run to resume")
    evaluate_there = ("tools/evaluate.py", trained / "best.pt", "--data", demo_shards)
    assert_refused(script(*evaluate_there), "was trained on 101 classes", "10 of the 10", "n90000000")
    copy = shutil.copytree(trained, tmp_path / "copy")
    for name in ("last.pt", "last-1.pt"):
        (copy / name).write_bytes((trained / name).read_bytes()[:100_000])
    assert_refused(script("train.py", "--out", copy, "--resume"), "last.pt cannot be read as a checkpoint")


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(small_disk: Path) -> None:
    checkpoint.save(small_disk / "last.pt", {"epoch": 1})
    with pytest.raises(AlexNetError, match=r"cannot write .*last\.pt .*free some space"):
        checkpoint.save(small_disk / "last.pt", {"epoch": 2, "weights": torch.zeros(1_000_000)})
    assert checkpoint.load(small_disk / "last.pt")["epoch"] == 1
    assert [path.name for path in small_disk.iterdir()] == ["last.pt"]


def test_checkpoints_are_refused_where_they_are_not_what_they_claim(tmp_path: Path) -> None:
    with pytest.raises(AlexNetError, match=r"no checkpoint .*best\.pt"):
        checkpoint.load(tmp_path / "best.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(AlexNetError, match=r"no checkpoint of train\.py"):
        checkpoint.load(tmp_path / "other.pt")
    torch.save({"format": 1, "code": np.ndarray}, tmp_path / "code.pt")
    with pytest.raises(AlexNetError, match="cannot be read"):
        checkpoint.load(tmp_path / "code.pt")
    checkpoint.save(tmp_path / "short.pt", {"variant": "paper", "classes": [["a", "a"]] * 3, "model": {}})
    with pytest.raises(AlexNetError, match="does not fit its own description"):
        checkpoint.load_model(tmp_path / "short.pt", CPU)


def test_a_bare_command_line_is_the_demo_and_a_recipe_is_its_fields_unless_they_are_given() -> None:
    demo = defaults(Options, [])
    assert demo.settings == RECIPES["demo"] and str(demo.out) == "runs/demo"
    for arguments in (["--recipe", "paper"], ["--epochs", "3", "--recipe=paper"], ["--recipe", "paper", "--keep=3"]):
        paper = defaults(Options, arguments)
        assert paper.settings == RECIPES["paper"] and str(paper.out) == "runs/paper"
