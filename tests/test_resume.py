"""A test of runs with an EMA that change their augmentation and are interrupted around the change."""

import json
from pathlib import Path

import pytest
import torch

from alexnet import checkpoint
from tests.conftest import assert_refused, command, script

CHANGING = (
    *("--batch-size", "50", "--learning-rate", "0.005", "--log-steps", "1", "--augment", "crop_flip"),
    *("--schedule", "steps", "--rate-steps", "2", "0.1", "--update", "paper", "--average-decay", "0.5"),
    *("--late-augment", "paper", "--late-augment-epoch", "1"),
)


def run(shards: Path, out: Path, epochs: int) -> Path:
    done = command("train.py", "--data", shards, "--out", out, *CHANGING, "--epochs", epochs)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def uninterrupted(numbered_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(numbered_shards, tmp_path_factory.mktemp("runs") / "whole", 3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_at_the_change_or_after_it_a_run_ends_as_the_uninterrupted_one(
    numbered_shards: Path, uninterrupted: Path, tmp_path: Path, stop: int
) -> None:
    """Check bit-identical weights and EMA, after a new augmentation's loader and the velocity at a drop of the rate.

    The run is stopped by its number of epochs, which this schedule does not depend on.
    """
    out = run(numbered_shards, tmp_path / "stopped", stop)
    config = json.loads((out / "config.json").read_text())
    config["settings"]["epochs"] = 3
    (out / "config.json").write_text(json.dumps(config))
    done = command("train.py", "--out", out, "--resume")
    assert done.returncode == 0 and f"after epoch {stop}" in done.stdout, done.stderr
    resumed, whole = (checkpoint.load(folder / "last.pt") for folder in (out, uninterrupted))
    for kind in ("model", "trained"):
        for name, weights in whole[kind].items():
            assert torch.equal(resumed[kind][name], weights), (kind, name)
    assert any(not torch.equal(whole["model"][name], weights) for name, weights in whole["trained"].items())


@pytest.mark.slow
def test_another_variant_or_an_unknown_field_is_refused_with_what_to_do(uninterrupted: Path) -> None:
    assert_refused(script("train.py", "--out", uninterrupted, "--resume", "--variant", "paper"), "--variant bn")
    config = json.loads((uninterrupted / "config.json").read_text())
    config["settings"]["label_smothing"] = 0.1
    (uninterrupted / "config.json").write_text(json.dumps(config))
    assert_refused(script("train.py", "--out", uninterrupted, "--resume"), "label_smothing", "label_smoothing")
