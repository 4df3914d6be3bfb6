"""What only a GPU can show: the same graph there, and a compiled step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet import RECIPES, AlexNet
from alexnet.average import Average
from alexnet.engine import CompileMode, TrainStep, compile_model
from alexnet.log import Interval, read_log
from alexnet.optim import Schedule, make_optimizer
from alexnet.recipes import RecipeName
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


@pytest.mark.parametrize("compile_mode", ["off", "on", "graphs"])
@pytest.mark.parametrize("name", ["paper", "source2012", "modern"])
def test_the_host_never_waits_between_two_lines_of_the_log(name: RecipeName, compile_mode: CompileMode) -> None:
    """After the first steps, which compile and record: torch raises at every hidden synchronisation."""
    recipe, device = RECIPES[name], torch.device("cuda")
    model = AlexNet(recipe.variant, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, 10)
    average = Average(model, recipe.average_decay) if recipe.average_decay else None
    step = TrainStep(compile_model(model, compile_mode, device), optimizer, recipe, device, average)
    images = torch.randn(32, 3, 224, 224, device=device).half().contiguous(memory_format=torch.channels_last)
    labels, interval = torch.arange(32, device=device) % 10, Interval(device)
    for _ in range(4):
        step(images, labels)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number in range(8, 12):
            schedule.set_rate(optimizer, number)
            interval.add(step(images, labels), 32, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert interval.summary(12)["loss"] > 0


@pytest.mark.parametrize("variant", ["paper", "source2012", "bn"])
def test_a_compiled_step_in_half_precision_follows_the_eager_one_in_float32(variant: str) -> None:
    losses = {}
    for precision, compile_mode in (("fp32", "off"), ("bf16", "on"), ("fp16", "on"), ("bf16", "graphs")):
        torch.manual_seed(0)
        device = torch.device("cuda")
        recipe = replace(RECIPES["paper"], precision=precision, learning_rate=0.001)
        model = AlexNet(variant, 10, dropout=0).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        compiled = compile_model(model, compile_mode, device)  # type: ignore[arg-type]
        step = TrainStep(compiled, make_optimizer(model, recipe), recipe, device)
        images = torch.randn(32, 3, 224, 224, device=device) * 60
        labels = torch.arange(32, device=device) % 10
        losses[precision, compile_mode] = step(images, labels).item()
    for loss in losses.values():
        assert loss == pytest.approx(losses["fp32", "off"], rel=0.05)
