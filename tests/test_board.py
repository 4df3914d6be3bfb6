"""Tests of what a run writes for TensorBoard."""

import sys
from pathlib import Path

import pytest

from alexnet import AlexNetError
from alexnet.board import EVENTS, BoardLog
from alexnet.log import read_log
from tests.conftest import QUICK, command


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_what_the_log_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = BoardLog(tmp_path / "log.jsonl")
    log.write("step", step=10, epoch=0.5, loss=2.5, data_wait=0.25)
    log.write("step", step=20, epoch=1.0, loss=1.5, data_wait=0.5)
    log.write("epoch", epoch=1, top1=0.75, samples=200)
    assert len(read_log(tmp_path / "log.jsonl")) == 3
    assert scalars(tmp_path / EVENTS) == {
        "step/loss": [(10, 2.5), (20, 1.5)],
        "step/data_wait": [(10, 0.25), (20, 0.5)],
        "epoch/top1": [(1, 0.75)],
        "epoch/samples": [(1, 200)],
    }


@pytest.mark.slow
def test_a_run_overwritten_leaves_no_old_curves(numbered_shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    line = ("train.py", "--data", numbered_shards, "--out", tmp_path / "run", *QUICK, "--tensorboard", "--overwrite")
    for _ in range(2):
        done = command(*line)
        assert done.returncode == 0, done.stderr
    assert [step for step, _ in scalars(tmp_path / "run" / EVENTS)["step/loss"]] == [1, 2, 3, 4]


def test_without_its_wheel_tensorboard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(AlexNetError, match=r"alexnet-pipelines\[board\]"):
        BoardLog(tmp_path / "log.jsonl")
