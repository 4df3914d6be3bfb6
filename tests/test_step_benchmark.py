"""Tests of the step benchmark as a user runs it, at the smallest size."""

import json
from pathlib import Path

import pytest
import torch

from alexnet import AlexNet
from benchmarks.harness.roofline import train_flops
from tests.conftest import assert_refused, script


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
    assert layers["conv3"]["flops"] == 2 * 3 * 2 * 256 * 384 * 9 * 13 * 13  # images, passes, multiply and add
    assert layers["conv2"]["flops"] == 2 * 3 * 2 * 256 * 48 * 25 * 27 * 27, "each group of 128 sees 48 channels"
    assert layers["fc7"]["bytes"] > 3 * 4 * 4096 * 4096
    assert all(layer["least_ms"] > 0 and layer["milliseconds"] > 0 for layer in layers.values())
    assert picture.stat().st_size > 10_000
    assert "bound by" in done.stdout and "share" in done.stdout


def test_wrong_settings_end_with_2() -> None:
    assert_refused(script("benchmarks/__main__.py", "step", "--batch-sizes", "0"), "batch-sizes", code=2)
    assert_refused(script("benchmarks/__main__.py", "step", "--rounds", "0"), "rounds", code=2)


def test_the_operations_of_torchvisions_net_are_the_published_ones() -> None:
    """Check 0.714 billion multiply-adds forward, and three times that in training, without a gradient of the images."""
    flops = train_flops(AlexNet("one_weird_trick"), torch.device("cpu"))
    conv1 = 2 * 64 * 363 * 55 * 55
    assert (flops + conv1) / 6 == pytest.approx(0.714e9, rel=0.001)
