"""Tests that every reader of a run's log names a line that no run writes."""

import json
from pathlib import Path

import pytest

from alexnet import AlexNetError
from alexnet.log import RunLog, read_lines, read_log

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
