"""Tests that checkpoint files are always whole, that damage is noticed, and that training need not wait."""

import os
import subprocess
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from alexnet import AlexNetError, checkpoint
from alexnet.writer import Writer
from tests.conftest import PATIENCE


def number(path: Path) -> int:
    return checkpoint.load(path)["number"]


def test_a_flipped_bit_anywhere_is_noticed_or_means_nothing(tmp_path: Path) -> None:
    path, damaged = tmp_path / "last.pt", tmp_path / "damaged.pt"
    state = {"number": 5, "weights": torch.arange(40.0), "names": ["a", "b"]}
    checkpoint.save(path, state)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.write_bytes(flipped)
        try:
            found = checkpoint.load(damaged)
        except AlexNetError as error:
            refused += 1
            assert str(damaged) in str(error), error
        else:
            weights = found.pop("weights")
            assert torch.equal(weights, state["weights"]), place
            assert found == {"format": checkpoint.FORMAT, "number": 5, "names": ["a", "b"]}, place
    assert refused > len(content) / 4, "weights, pickle and the zip's directory; the rest is padding"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_kill_between_any_two_calls_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, links: bool
) -> None:
    """Check before and after every call that moves a file, on a file system with hard links and on one without."""
    path, seen = tmp_path / "last.pt", []

    def watched(call):
        def wrapper(*arguments, **options):
            seen.append(number(checkpoint.newest(path)))
            call(*arguments, **options)
            seen.append(number(checkpoint.newest(path)))

        return wrapper

    def no_links(*_: object) -> None:
        raise PermissionError("no links here")

    checkpoint.save(path, {"number": 0}, keep)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    monkeypatch.setattr(os, "link", watched(os.link) if links else no_links)
    for i in range(1, 6):
        checkpoint.save(path, {"number": i}, keep)
    assert seen == sorted(seen) and seen[-1] == 5
    assert [number(file) for file in (path, *checkpoint.older_than(path))] == list(range(5, 5 - keep, -1))
    assert len(list(tmp_path.iterdir())) == keep


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Check also that the next save does not drop the whole checkpoint before the new one is whole."""
    path = tmp_path / "last.pt"
    for i in range(2):
        checkpoint.save(path, {"number": i}, keep=2)
    path.write_bytes(path.read_bytes()[:-100])
    assert checkpoint.newest(path).name == "last-1.pt"
    said = caplog.text
    assert "last.pt cannot be read as a checkpoint" in said and "going back to last-1.pt" in said
    checkpoint.save(path, {"number": 2}, keep=2)
    assert [number(path), number(tmp_path / "last-1.pt")] == [2, 0]
    for file in (path, tmp_path / "last-1.pt"):
        file.write_bytes(b"")
    with pytest.raises(AlexNetError, match=r"last\.pt cannot be read"):
        checkpoint.newest(path)


def test_a_run_does_not_go_on_from_an_earlier_format() -> None:
    with pytest.raises(AlexNetError, match="has format 1, and a run resumes only from format 2"):
        checkpoint.check_format({"format": 1}, Path("last.pt"))


@pytest.fixture
def learner() -> tuple[nn.Linear, torch.optim.Optimizer]:
    """Return a model with its optimizer. Copying its eight million weights takes longer than the next step."""
    torch.manual_seed(0)
    model = nn.Linear(4000, 2000)
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 4000)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    learner: tuple[nn.Linear, torch.optim.Optimizer], tmp_path: Path
) -> None:
    """Check that a checkpoint has the state at its call, although steps and further checkpoints follow at once."""
    model, optimizer = learner
    with Writer(tmp_path, optimizer, keep=3) as writer:
        expected = []
        for i in range(3):
            step(model, optimizer)
            momentum = optimizer.state[model.weight]["momentum_buffer"]
            expected.append((model.weight.detach().clone(), momentum.clone()))
            writer.save({"model": model.state_dict(), "number": i}, {"optimizer": optimizer.state_dict()}, best=i == 1)
            step(model, optimizer)
            step(model, optimizer)
    for name, i in (("last.pt", 2), ("last-1.pt", 1), ("last-2.pt", 0), ("best.pt", 1)):
        state = checkpoint.load(tmp_path / name)
        assert state["number"] == i and torch.equal(state["model"]["weight"], expected[i][0]), name
        if name != "best.pt":
            assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], expected[i][1]), name
    assert "optimizer" not in checkpoint.load(tmp_path / "best.pt")


def test_weights_that_are_not_finite_are_not_written(
    learner: tuple[nn.Linear, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer = learner
    writer = Writer(tmp_path, optimizer)
    writer.save({"model": model.state_dict()}, {})
    writer.finish()  # wait for the copy, as only optimizer steps do by themselves
    with torch.no_grad():
        model.weight[17, 3] = torch.nan
    writer.save({"model": model.state_dict()}, {})
    with pytest.raises(AlexNetError, match="weight is no longer finite: lower --learning-rate"):
        writer.finish()
    assert checkpoint.load(tmp_path / "last.pt")["model"]["weight"].isfinite().all()


def test_a_disk_that_fills_or_cannot_be_written_is_told_at_the_next_checkpoint(
    learner: tuple[nn.Linear, torch.optim.Optimizer], small_disk: Path
) -> None:
    model, optimizer = learner
    writer = Writer(small_disk, optimizer, keep=2)
    writer.save({"number": 0}, {})
    writer.save({"model": model.state_dict()}, {})
    with pytest.raises(AlexNetError, match=r"cannot write .*last\.pt .*free some space.*checkpoints are intact"):
        writer.save({"number": 1}, {})
    writer.save({"number": 2}, {})
    writer.finish()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    writer.save({"number": 3}, {})
    with pytest.raises(AlexNetError, match=r"cannot write .*\(.*Read-only file system.*\): check "):
        writer.finish()
    assert number(small_disk / "last.pt") == 2 and number(small_disk / "last-1.pt") == 0


def test_training_does_not_wait_for_a_checkpoint_to_be_written(
    learner: tuple[nn.Linear, torch.optim.Optimizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that steps end while the write is held back. ``benchmarks checkpoint`` measures how long they take."""
    model, optimizer = learner
    may_write, save = Event(), checkpoint.save

    def held_back(*arguments: object) -> None:
        assert may_write.wait(PATIENCE), "training waits for the write"
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", held_back)
    with Writer(tmp_path, optimizer) as writer:
        writer.save({"model": model.state_dict()}, {"optimizer": optimizer.state_dict()}, best=True)
        for _ in range(3):
            step(model, optimizer)
        assert not list(tmp_path.iterdir()) and not may_write.is_set()
        may_write.set()
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "best.pt"}
