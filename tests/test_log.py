"""Tests that every reader of a run's log names a line that no run writes."""

import json
from pathlib import Path

import pytest
import torch

from alexnet import AlexNetError
from alexnet.log import GPU_LOG_SECONDS, LOG_STEPS, Interval, RunLog, epoch_text, read_lines, read_log

STEP = {
    "kind": "step",
    "step": 1,
    "epoch": 0.5,
    "loss": 1.0,
    "rate": 0.1,
    "images_per_second": 10.0,
    "data_wait": 0.0,
    "memory_gib": 1.0,
}
ODD_LINES = [
    *('{"kind": "step", "step": null}', '{"kind": "step", "step": "4"}', '{"kind": "step", "step": 1.5}'),
    *(
        '{"kind": "step", "step": true}',
        '{"kind": "epoch", "epoch": -1}',
        '{"kind": "step"}',
        '{"kind": "step", "step": []}',
    ),
    *('{"kind": ["step"]}', '{"kind": 5, "5": 1}', '{"kind": "other", "other": 1}', "{}", "[]", "5", '"step"'),
    *(f'{{"kind": "step", "step": {10**30}}}', '{"kind": "step", "step": 1, "loss": 1e999}'),
    *('{"kind": "step", "step": 1, "loss": NaN}', '{"kind": "step", "step": 1, "note": [[[]]]}'),
]


@pytest.mark.parametrize("line", ODD_LINES)
def test_a_line_that_no_run_writes_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    """Check a resume, which must leave the log unchanged, and the readers of the report and of the curves."""
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(STEP)}\n{line}\n{json.dumps(STEP)}\n")
    before = path.read_bytes()
    for read in (lambda: RunLog(path, step=5, epoch=5), lambda: read_lines(path), lambda: read_log(path)):
        with pytest.raises(AlexNetError, match=r"log\.jsonl, line 2: .*remove the line"):
            read()
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_line_without_a_figure_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{json.dumps(STEP)}\n\n{{"kind": "st\n{json.dumps(STEP | {"loss": None})}\n')
    with pytest.raises(AlexNetError, match=r"log\.jsonl, line 4: Expected `float`, got `null` - at `\$\.loss`"):
        read_lines(path)
    assert len(read_log(path)) == 2, "a line cut off by a stop is skipped"


def test_an_epochs_line_has_top5_only_where_it_says_something() -> None:
    values = {"loss": 1.25, "top1": 0.5, "top5": 1.0, "f1": 0.25, "samples": 4, "train_top1": 0.75}
    assert epoch_text(3, 5, values, 5) == "epoch 3/5: train top-1 0.7500, val loss 1.2500, top-1 0.5000, F1 0.2500"
    assert "top-1 0.5000, top-5 1.0000, F1" in epoch_text(3, 5, values, 6)
    del values["train_top1"]
    assert "train" not in epoch_text(3, 5, values, 6)


def test_epochs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    line = {"kind": "epoch", "epoch": 1, "top1": 0.5, "top5": 1.0, "f1": 0.3}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line | more) + "\n" for more in ({}, {"train_top1": 0.5})))
    assert [entry.get("train_top1") for entry in read_lines(tmp_path / "log.jsonl")] == [None, 0.5]


def steps_of_intervals(device: str, log_steps: int | None, step_seconds: list[float], monkeypatch) -> list[int]:
    """Return how many steps each interval took, with steps of these seconds by a clock of our own."""
    now, zeros = 0.0, torch.zeros
    monkeypatch.setattr("alexnet.log.time.perf_counter", lambda: now)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    interval, found = Interval(torch.device(device), log_steps), []
    for seconds in step_seconds:
        while not interval.full:
            now += seconds
            interval.add(torch.tensor(1.0), 1, 0.0)
        found.append(interval.steps)
        interval.summary(0)
        interval.restart()
    return found


def test_on_a_gpu_an_interval_has_as_many_steps_as_take_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the loss of short steps is read, which waits for the GPU, not every ten steps but every 1,000."""
    found = steps_of_intervals("cuda", None, [3.0, 0.002, 0.002, 0.016, 5.0, 5.0], monkeypatch)
    assert (GPU_LOG_SECONDS, LOG_STEPS) == (2.0, 10)
    assert found == [10, 10, 1000, 1000, 125, 10]


@pytest.mark.parametrize(("device", "log_steps", "steps"), [("cpu", None, 10), ("cuda", 7, 7), ("cpu", 7, 7)])
def test_on_a_cpu_or_if_it_is_given_the_number_of_steps_is_fixed(
    monkeypatch: pytest.MonkeyPatch, device: str, log_steps: int | None, steps: int
) -> None:
    """Check that a resumed run on a CPU logs the same lines, however busy the machine is."""
    assert steps_of_intervals(device, log_steps, [3.0, 0.002, 0.002], monkeypatch) == [steps] * 3
