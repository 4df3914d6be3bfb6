"""The promise of the README: one command, from nothing to a trained, evaluated, drawn AlexNet."""

import json
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_make_demo_trains_an_alexnet_that_has_learned() -> None:
    """At least 0.8 of the ten classes right. Runs here, in this checkout: it replaces runs/demo."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((ROOT / "runs/demo/metrics.json").read_text())
    assert metrics["top1"] >= 0.8 and metrics["samples"] == 200
    for name in ("filters", "activations", "neighbours", "patches", "curves"):
        assert f"runs/demo/pictures/{name}.png" in done.stdout
        assert (ROOT / f"runs/demo/pictures/{name}.png").stat().st_size > 10_000
    assert "top1" in done.stdout
    assert (ROOT / "runs/demo/report.html").stat().st_size > 100_000
