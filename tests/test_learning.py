"""Tests that the nets of 2012 learn at their published rate and initial weights, on the 0..255 scale."""

import pytest
import torch

from benchmarks.learning import PHOTOGRAPHS, learn


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "precision"), [("paper", "fp32"), ("source2012", "fp32"), ("paper", "bf16")])
def test_thirty_two_photographs_are_known_by_heart_within_200_steps(variant: str, precision: str) -> None:
    """Catch a net stuck at chance: loss log 1000 and one right at most. Nine in ten suffice, without dropout: at
    the full rate of 0.01 the last few come and go, as crops of the same photograph may nearly coincide."""
    for progress in learn(variant, 200, torch.device("cpu"), precision=precision):
        if (progress.right or 0) >= 0.9 * PHOTOGRAPHS:
            return
    pytest.fail(f"{progress.right} of {PHOTOGRAPHS} right after {progress.step} steps, loss {progress.loss}")
