"""Tests that a benchmark stops in time, and that what it has measured by then is kept."""

import itertools
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from benchmarks import __main__ as command
from benchmarks import ceilings, step
from benchmarks.harness.machine import card, result_path, where
from benchmarks.harness.roofline import Limits
from benchmarks.harness.timing import Deadline, Missing, interleave
from benchmarks.plots.page import Options, main
from pipelines import DataError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that the clocks give from now on."""
    seconds = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    return seconds


def test_rounds_stop_before_one_that_would_not_fit(now: list[float]) -> None:
    """Check with a clock that only the candidate moves: 10 s a round, the unmeasured one (compiling) 100."""
    took = [100, 10, 10, 12, 10]

    def candidate() -> int:
        now[0] += took.pop(0)
        return 60

    found = list(interleave({"step": candidate}, 50, Deadline.after(2.35)))  # 141 s, of which 132 pass
    assert found == [{"step": [6]}, {"step": [6, 6]}, {"step": [6, 6, 5]}]
    assert took == [10], "a round of 12 s would not have ended in time"
    took += [100, 10]
    now[0] += 1000
    assert len(list(interleave({"step": candidate}, 50, Deadline.after(0.1)))) == 1, "one round always runs"


def test_a_deadline_is_shared_by_what_is_left_to_do(now: list[float]) -> None:
    whole = Deadline.after(2)
    first = whole.part(3)
    assert (first.left(), first.half_over()) == (40, False)
    now[0] += 25
    assert first.half_over() and whole.part(2).left() == 47.5, "what the first did not need is the others'"
    assert not Deadline().half_over() and Deadline().part(2).left() == math.inf


class Toy:
    """A decoder in a process, which answers at once."""

    pixels: ClassVar = {"compared": 8, "wrong": 0}

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> tuple[int, float]:
        if next(self._calls) == 10:
            raise KeyboardInterrupt
        return 8, 1.0


def test_a_result_is_written_after_every_round(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check what is there when the second round of the second dataset is cut off."""
    out, calls = tmp_path / "ceilings.json", itertools.count()
    monkeypatch.setattr(ceilings, "start_reference", lambda *_: Toy(calls))
    monkeypatch.setattr(ceilings, "candidates", lambda *_: [("toy", {"work": "toy"})])
    monkeypatch.setattr(ceilings, "start", lambda *_, **__: Toy(calls))
    monkeypatch.setattr(ceilings, "measure_limits", lambda *_: Limits(1e12, 1e12))
    options = ceilings.CeilingsOptions((demo_shards, demo_shards), rounds=2, json=out, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        command.main(options)
    result = json.loads(out.read_bytes())
    assert result["partial"] and [row["rounds"] for row in result["rows"]] == [2, 2, 1, 1]
    assert result["rows"][1]["name"] == "shards: toy" and result["rows"][1]["wrong"] == 0


def test_candidates_without_time_to_compile_are_named(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check with a compiler that takes a minute: after half of four minutes no further one is started."""

    def prepared(candidate: step.Candidate, steps: int, batch_size: int, device: Any) -> Any:
        now[0] += 60

        def take() -> int:
            now[0] += 1
            return batch_size

        return take, {"compile_s": 60, "memory_gib": None, "flops": 1}

    def product(*_: object) -> int:
        now[0] += 1
        return 1

    monkeypatch.setattr(step, "prepare", prepared)
    monkeypatch.setattr(step, "repeat", product)
    options = step.StepOptions(batch_sizes=(2,), variants=("paper", "bn"), compile=("on",), precisions=("fp32",))
    missing, device = Missing(), step.find_device("cpu")
    *_, rows = step.measure_steps(options, 2, device, Deadline.after(4), missing)
    assert [row["name"] for row in rows] == [
        "torchvision, fp32, eager, NCHW, 2",
        "torchvision, fp32, compiled, 2",
        "paper, fp32, compiled, 2",
    ]
    assert missing.left_out == ["paper, fp32, compiled, conv1 in blocks, 2", "bn, fp32, compiled, 2"]
    assert all(0 < row["rounds"] <= options.rounds for row in rows)


def test_results_are_named_by_card_and_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100pcie",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "Tesla T4": "t4",
    }
    assert {name: card(name) for name in names} == names
    assert where("NVIDIA H200", "2.11.0+cu130") == "h200-torch2.11"
    monkeypatch.setattr("torch.__version__", "2.15.0+cu132")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert result_path(tmp_path, "step") == tmp_path / "step-h100-torch2.15.json"
    assert result_path(tmp_path / "own.json", "step") == tmp_path / "own.json"


def test_results_of_two_machines_are_not_on_one_page(tmp_path: Path) -> None:
    for number, version in enumerate(("2.11.0+cu130", "2.15.0")):
        result = {"gpu": "NVIDIA H100 80GB HBM3", "torch": version}
        item = {"item": "step", "title": "", "quick": False, "commands": [{"result": result}]}
        (tmp_path / f"{number}.json").write_text(json.dumps(item))
    with pytest.raises(DataError, match=r"h100-torch2\.11, h100-torch2\.15: make a page of each"):
        main(Options((tmp_path / "0.json", tmp_path / "1.json")))
