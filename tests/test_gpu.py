"""What only a GPU can show: the same graph there, and a compiled step."""

import json
from pathlib import Path

import pytest
import torch

from alexnet.log import read_log
from pipelines import open_loader
from tests.conftest import NUMBERED_IMAGES, script

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def test_the_graph_gives_the_same_pixels_on_the_gpu(demo_shards: Path) -> None:
    """nvJPEG and libjpeg-turbo round differently, by a few of 255 steps at the edges of colour."""
    here, there = (list(open_loader(demo_shards, "val", 64, "paper", device)) for device in ("cpu", "cuda"))
    assert [batch.valid for batch in there] == [64, 64, 64, 11]
    for on_cpu, on_gpu in zip(here, there, strict=True):
        assert on_gpu.images.device.type == on_gpu.labels.device.type == "cuda"
        assert on_gpu.images.dtype == torch.float16
        assert on_gpu.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
        assert (on_gpu.images.cpu().float() - on_cpu.images).abs().mean() < 2


def test_a_resumed_loader_gives_the_batches_that_would_have_come_on_the_gpu(demo_shards: Path) -> None:
    loader = open_loader(demo_shards, "train", 32, "paper", "cuda", seed=3)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    resumed = open_loader(demo_shards, "train", 32, "paper", "cuda", seed=3)
    resumed.load_state_dict(state)
    for ours, theirs in zip(resumed, batches, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("variant", ["bn", "paper"])
def test_training_runs_compiled_and_is_evaluated(numbered_shards: Path, tmp_path: Path, variant: str) -> None:
    options = ("--epochs", "3", "--batch-size", "25", "--variant", variant, "--learning-rate", "0.001")
    done = script("train.py", "--data", numbered_shards, "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    steps = [entry for entry in read_log(tmp_path / "run" / "log.jsonl") if entry["kind"] == "step"]
    assert steps[-1]["step"] == 3 * (NUMBERED_IMAGES // 25)
    done = script("tools/evaluate.py", tmp_path / "run" / "best.pt", "--data", numbered_shards)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["samples"] == NUMBERED_IMAGES
