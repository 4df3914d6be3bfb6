"""A test of the README's promise that one command trains, evaluates and draws an AlexNet, starting from nothing."""

import json
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_make_demo_trains_an_alexnet_that_has_learned() -> None:
    """Check that top-1 is at least 0.8 with ten classes. The test runs in this checkout and replaces runs/demo."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((ROOT / "runs/demo/metrics.json").read_text())
    assert metrics["top1"] >= 0.8 and metrics["samples"] == 200
    for name in ("filters", "activations", "neighbours", "patches", "curves"):
        assert f"runs/demo/pictures/{name}.png" in done.stdout
        assert (ROOT / f"runs/demo/pictures/{name}.png").stat().st_size > 10_000
    assert "top1" in done.stdout
    assert (ROOT / "runs/demo/report.html").stat().st_size > 100_000
    assert {path.name for path in (ROOT / "runs/demo").glob("*.pt")} == {"best.pt", "last.pt"}
    assert sum(path.stat().st_size for path in (ROOT / "runs/demo").rglob("*")) < 750 << 20
