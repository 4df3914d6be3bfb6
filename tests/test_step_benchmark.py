"""Tests of the step benchmark as a user runs it, at the smallest size."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from alexnet import AlexNet
from benchmarks.budget import UPDATE, BudgetOptions, budget, step_ms, table
from benchmarks.harness.roofline import Layer, Limits, train_flops
from tests.conftest import ROOT, assert_refused, script


@pytest.mark.slow
def test_it_writes_rows_layers_and_a_picture(tmp_path: Path) -> None:
    out, picture = tmp_path / "step.json", tmp_path / "step.png"
    small = ("--batch-sizes", "2", "--variants", "paper", "--compile", "off", "--rounds", "1", "--conv1", "direct")
    done = script("benchmarks/__main__.py", "step", *small, "--json", out, "--picture", picture, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == ["torchvision, fp32, eager, NCHW, 2", "torchvision, fp32, eager, 2", "paper, fp32, eager, 2"]
    assert max(row["ratio"] for row in result["rows"][:2]) == 1, "the ratio is to the fastest of torchvision"
    for row in result["rows"]:
        assert row["share"] > 0 and row["step_ms"] == pytest.approx(2000 / row["median"], rel=0.01)
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert list(layers)[:7] == ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3"]
    assert layers["conv3"]["flops"] == 2 * 3 * 2 * 256 * 384 * (3 * 13 - 2) ** 2  # images, passes, multiply and add
    assert layers["conv2"]["flops"] == 2 * 3 * 2 * 256 * 48 * (5 * 27 - 6) ** 2, "each group of 128 sees 48 channels"
    assert layers["fc7"]["bytes"] > 3 * 4 * 4096 * 4096
    assert all(0 < layer["least_ms"] <= layer["milliseconds"] * 1.000001 for layer in layers.values())
    assert picture.stat().st_size > 10_000
    assert "bound by" in done.stdout and "share" in done.stdout


def test_wrong_settings_end_with_2() -> None:
    assert_refused(script("benchmarks/__main__.py", "step", "--batch-sizes", "0"), "batch-sizes", code=2)
    assert_refused(script("benchmarks/__main__.py", "step", "--rounds", "0"), "rounds", code=2)


def test_the_operations_of_torchvisions_net_are_the_published_ones() -> None:
    """Check 0.714 billion multiply-adds forward without those of the padding, whose zeros nobody needs to multiply.

    Training takes three times that, without a gradient of the images.
    """
    model = AlexNet("one_weird_trick")
    padding, conv1, side = 0, 0, {"conv1": 224, "conv2": 27, "conv3": 13, "conv4": 13, "conv5": 13}
    for name, layer in model.convolutions().items():
        ones = torch.ones(1, 1, side[name], side[name])
        window = torch.ones(1, 1, *layer.kernel_size)
        inside = int(F.conv2d(ones, window, stride=layer.stride, padding=layer.padding).sum())
        outside = int(F.conv2d(F.pad(ones, [int(layer.padding[0])] * 4, value=1), window, stride=layer.stride).sum())
        channels = layer.out_channels * layer.in_channels
        padding += channels * (outside - inside)
        conv1 = conv1 or channels * inside
    flops = train_flops(model, torch.device("cpu"))
    assert (flops + 2 * conv1) / 6 + padding == pytest.approx(0.714e9, rel=0.001)


def test_no_limit_is_below_what_a_layer_reached() -> None:
    """Check that a limit of a slow moment gives no least time above the measured one."""
    layer = Layer("conv2", 10.0, 2_000_000, 1000)
    slow = Limits(1e8, 1e9)
    assert layer.least_ms(slow) > layer.milliseconds
    assert layer.least_ms(slow.raised(layer.reached())) == pytest.approx(10)
    assert slow.raised(Limits(2e8, 1.0)) == Limits(2e8, 1e9)


def test_the_budget_counts_operations_and_bytes_of_each_pass() -> None:
    """Check a batch of 2 by hand: conv2 of two groups, what follows it in one pass, and the update."""
    parts = {part.name: part for part in budget("paper", 2)}
    forward, *gradients = parts["conv2"].fused
    assert forward.flops == 2 * 2 * 256 * 48 * (5 * 27 - 6) ** 2 and gradients == [forward] * 2
    maps, pooled = 2 * 256 * 27**2, 2 * 256 * 13**2
    assert forward.bytes == 2 * (2 * 96 * 27**2 + maps + 256 * 48 * 25)
    passes = [one.bytes for one in parts["after conv2"].fused]
    assert passes == [2 * maps + 3 * pooled, 4 * maps + 3 * pooled], "2 bytes a value, 1 a pooling offset"
    assert len(parts["after conv2"].by_itself) == 2 * 3, "ReLU, normalisation, pooling"
    assert len(parts["conv1"].fused) == 2, "the images need no gradient"
    assert parts["update"].fused[0].bytes == UPDATE * 60_965_224
    flops = sum(one.flops for part in parts.values() for one in part.fused)
    assert flops == 2 * train_flops(AlexNet("paper"), torch.device("cpu"))


def test_the_docs_hold_the_budget_of_the_code() -> None:
    """Compare all cells but the measured ones."""
    page = [line.rsplit("|", 2)[0] for line in (ROOT / "docs/gpu.md").read_text().splitlines() if line.count("|") > 2]
    for line in table("paper", BudgetOptions()):
        assert line.rsplit("|", 2)[0] in page, f"docs/gpu.md lacks {line}: python -m benchmarks budget"
    for reached, fused, text in ((1.0, True, "7.2"), (0.6, True, "10.4"), (0.6, False, "14.0")):
        limits = BudgetOptions(reached=reached).limits
        assert f"{step_ms(budget('paper', 1024), limits, fused):.1f}" == text
