"""Tests that need a GPU: the same DALI graph there, turbo's copies to it, and a compiled training step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet import RECIPES, AlexNet, checkpoint
from alexnet.ema import EMA
from alexnet.engine import CompileMode, TrainStep, compile_model
from alexnet.log import Interval, read_log
from alexnet.optim import Schedule, make_optimizer
from alexnet.recipes import RecipeName
from alexnet.writer import Writer
from pipelines import AUGMENTS, Augment, DataError, open_loader
from pipelines.turbo.normalise import OnDevice
from tests.conftest import NUMBERED_IMAGES, SMALLEST, assert_refused, command, script

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


FIXED = Augment(crop="center", flip=False)
THE_SAME = {
    "paper, evaluated": AUGMENTS["paper"].for_evaluation(),
    "source2012, ten crops": AUGMENTS["source2012"].for_evaluation(10),
    "mean colour": replace(FIXED, normalise="mean"),
    "mean and deviation": FIXED,
    "bytes": replace(FIXED, normalise="none"),
    "resized whole": replace(FIXED, crop="resized", scale=(1, 1), ratio=(1, 1)),
}


@pytest.mark.parametrize("augment", THE_SAME.values(), ids=THE_SAME)
def test_the_graph_gives_the_same_pixels_on_the_gpu(numbered_shards: Path, augment: Augment) -> None:
    """Check up to rounding: nvJPEG and libjpeg-turbo differ by a few of 255 steps at the edges of colour."""
    scale = 50 if augment.normalise == "mean_std" else 1  # steps per standard deviation
    loaders = [
        open_loader(numbered_shards, "val", 16, augment, device=device, backend="dali", training=True)
        for device in ("cpu", "cuda")
    ]
    for on_cpu, on_gpu in zip(*loaders, strict=True):
        assert on_gpu.images.device.type == on_gpu.labels.device.type == "cuda"
        assert on_gpu.images.shape == on_cpu.images.shape == (16 * augment.crops, 3, 224, 224)
        assert on_gpu.images.dtype == (torch.uint8 if augment.normalise == "none" else torch.float16)
        assert on_gpu.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
        assert (on_gpu.images.cpu().float() - on_cpu.images.float()).abs().mean() * scale < 2


def test_evaluation_on_the_gpu_counts_each_image(demo_shards: Path) -> None:
    batches = list(open_loader(demo_shards, "val", 64, "paper", device="cuda", backend="dali"))
    assert [batch.valid for batch in batches] == [64, 64, 64, 11]


@pytest.mark.parametrize("name", AUGMENTS)
def test_each_augment_runs_on_the_gpu(demo_shards: Path, name: str) -> None:
    """Check that random draws have the same spread on the GPU as on the CPU."""
    on_gpu, on_cpu = (
        torch.cat(
            [b.images.float().cpu() for b in open_loader(demo_shards, "train", 50, name, device=device, backend="dali")]
        )
        for device in ("cuda", "cpu")
    )
    assert on_gpu.shape == on_cpu.shape == (400, 3, 224, 224) and on_gpu.isfinite().all()
    torch.testing.assert_close(on_gpu.std((0, 2, 3)), on_cpu.std((0, 2, 3)), rtol=0.1, atol=0)
    assert (on_gpu.mean((0, 2, 3)) - on_cpu.mean((0, 2, 3))).abs().max() < 0.1 * on_cpu.std()


def test_a_damaged_image_is_named_on_the_gpu(demo_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    _, offset, size, name, *_ = (copy / "train-000000.idx").read_text().splitlines()[5].split(" ")
    for start in (int(size) // 2, 0):  # zero the second half, then the header too
        with (copy / "train-000000.tar").open("r+b") as file:
            file.seek(int(offset) + start)
            file.write(bytes(int(size) - start))
        moved = shutil.copytree(copy, tmp_path / str(start))  # a new name: this process keeps mapped files
        with pytest.raises(DataError, match=f"shard train-000000.tar, image {name.removesuffix('.jpg')} cannot be"):
            list(open_loader(moved, "train", 32, "paper", device="cuda", backend="dali"))


@pytest.mark.parametrize("augment", ["paper", "modern", "source2012"])
def test_a_resumed_loader_gives_the_batches_that_would_have_come_on_the_gpu(demo_shards: Path, augment: str) -> None:
    loader = open_loader(demo_shards, "train", 32, augment, device="cuda", backend="dali", seed=3)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    resumed = open_loader(demo_shards, "train", 32, augment, device="cuda", backend="dali", seed=3)
    resumed.load_state_dict(state)
    for ours, theirs in zip(resumed, batches, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("transform", [None, lambda images, labels: (255 - images, labels + 1)], ids=["plain", "own"])
@pytest.mark.parametrize("augment", ["paper", "modern"])
def test_turbos_batches_are_right_while_the_gpu_is_busy(demo_shards: Path, augment: str, transform) -> None:
    """Check two epochs, of which the second is compared at its end, when all memory has been used again."""
    how = {"backend": "turbo", "transform": transform, "seed": 3}
    expected, loader = (
        open_loader(demo_shards, "train", 32, augment, device=where, **how) for where in ("cpu", "cuda")
    )
    busy = torch.randn(4096, 4096, device="cuda")
    for epoch in range(2):
        batches, copies = [], []
        for batch in loader:
            batches.append(batch)
            copies.append((batch.images.clone(), batch.labels.clone()))
            for _ in range(4 * epoch):
                busy @ busy
        for batch, copy, theirs in zip(batches, copies, expected, strict=True):
            assert torch.equal(batch.images, copy[0]) and torch.equal(batch.labels, copy[1])
            torch.testing.assert_close(copy[0].float().cpu(), theirs.images, rtol=2e-3, atol=2e-3)
            assert torch.equal(copy[1].cpu(), theirs.labels)


def test_turbo_copies_and_normalises_beside_the_callers_stream_and_never_waits(
    demo_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = iter(loader := open_loader(demo_shards, "train", 32, "paper", device="cuda", backend="turbo"))
    assert next(batches) and loader._source._buffers.take().memory.is_pinned()  # type: ignore[union-attr]
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(4):
                next(batches).images.square()
            torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ran = [(event["name"], event["args"]["stream"]) for event in events if "stream" in event.get("args", {})]
    callers = {stream for name, stream in ran if "pow" in name or "square" in name}
    beside = {stream for name, stream in ran if "HtoD" in name or name.startswith("_normalise")}
    assert len(callers) == len(beside) == 1 and callers != beside
    assert sum(name.startswith("_normalise") for name, _ in ran) >= 3, caplog.text


@pytest.mark.parametrize("images", [None, "mean image"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_the_kernel_of_normalisation_gives_the_bits_of_several_operations(dtype: torch.dtype, images) -> None:
    device, image = torch.device("cuda"), np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    scale = np.array([1 / 50, 1 / 60, 1], np.float32)
    finish = OnDevice((image, image) if images else None, scale, device, torch.float16)
    pixels = torch.randint(0, 256, (64, 224, 224, 3), device=device).to(dtype)
    crops = torch.randint(0, 33, (64, 3), device=device) % torch.tensor([33, 33, 2], device=device)
    batch = pixels, crops, torch.randn(64, 3, device=device)
    assert torch.equal(finish(*batch), finish._by_operations(*batch)) and finish._fused


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


@pytest.mark.parametrize("backend", ["dali", "turbo"])
def test_cuda_graphs_are_recorded_while_the_loader_works(numbered_shards: Path, tmp_path: Path, backend: str) -> None:
    """Check the losses of a compiled run with CUDA graphs beside those of an eager one, through two evaluations."""
    line = ("train.py", "--data", numbered_shards, "--backend", backend, "--epochs", "2", "--batch-size", "8")
    line += ("--learning-rate", "0.001", "--dropout", "0", "--log-steps", "1", "--augment", "source2012_quiet")
    losses = {}
    for mode in ("off", "graphs"):
        done = script(*line, "--out", tmp_path / mode, "--compile", mode)
        assert done.returncode == 0, done.stderr
        losses[mode] = [e["loss"] for e in read_log(tmp_path / mode / "log.jsonl") if e["kind"] == "step"]
    assert len(losses["graphs"]) == 2 * (NUMBERED_IMAGES // 8)
    assert losses["graphs"] == pytest.approx(losses["off"], rel=0.1)


def test_a_held_batch_keeps_its_pixels_while_others_follow(demo_shards: Path) -> None:
    """Check DALI's batches, which torch copies on its own stream, after the stream was kept busy."""
    loader = open_loader(demo_shards, "val", 16, FIXED, device="cuda", backend="dali")
    busy = torch.randn(4096, 4096, device="cuda")
    held = []
    for batch in loader:
        busy = busy @ busy / 4096
        held.append((batch.images, batch.images.clone()))
    assert all(torch.equal(images, copy) for images, copy in held)
    one_by_one = open_loader(demo_shards, "val", 16, FIXED, device="cuda", backend="dali")
    for (images, _), batch in zip(held, one_by_one, strict=True):
        torch.cuda.synchronize()
        assert torch.equal(images, batch.images)


def test_a_batch_that_does_not_fit_says_what_to_lower(few_shards: Path, tmp_path: Path, monkeypatch) -> None:
    """Check with an allocation that no GPU can make, in place of the step."""
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: torch.empty(2**50, device="cuda"))
    line = ("train.py", "--data", few_shards, "--out", tmp_path / "run", *SMALLEST, "--backend", "synthetic")
    assert_refused(script(*line), "too little memory (CUDA out of memory", "--batch-size", "--accumulate")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_rank_holds_no_memory_of_another_ranks_gpu() -> None:
    """Check a process of rank 1 alone, by the processes that NVML lists for GPU 0."""
    code = """
import os, pynvml, torch
from alexnet.ranks import rank_device
torch.zeros(1, device=rank_device("auto")).item()
pynvml.nvmlInit()
gpu = torch.cuda.get_device_properties(0).uuid
handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu}")
assert os.getpid() not in [one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
"""
    pytest.importorskip("pynvml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "1")
        done = command("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compile_mode", ["off", "on", "graphs"])
@pytest.mark.parametrize("name", ["paper", "source2012", "modern"])
def test_the_host_never_waits_between_two_lines_of_the_log(name: RecipeName, compile_mode: CompileMode) -> None:
    """Check after the first steps, which compile and record. Torch raises at every hidden synchronisation."""
    recipe, device = RECIPES[name], torch.device("cuda")
    model = AlexNet(recipe.variant, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, 10)
    ema = EMA(model, recipe.average_decay) if recipe.average_decay else None
    step = TrainStep(compile_model(model, compile_mode, device), optimizer, recipe, device, ema=ema)
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


def test_a_checkpoint_of_a_gpu_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    """Check although steps follow at once and another checkpoint reuses the memory. Saved tensors are on the CPU."""
    torch.manual_seed(0)
    device, recipe = torch.device("cuda"), RECIPES["paper"]
    model = AlexNet("paper", 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, recipe)
    step = TrainStep(model, optimizer, recipe, device)
    images, labels = torch.randn(32, 3, 224, 224, device=device), torch.arange(32, device=device) % 10
    expected = []
    with Writer(tmp_path, optimizer, keep=2) as writer:
        for _ in range(2):
            step(images, labels)
            expected.append({name: weights.clone() for name, weights in model.state_dict().items()})
            writer.save({"model": model.state_dict()}, {"optimizer": optimizer.state_dict()})
            for _ in range(3):
                step(images, labels)
    for name, weights in (("last.pt", expected[1]), ("last-1.pt", expected[0])):
        state = checkpoint.load(tmp_path / name)["model"]
        assert all(torch.equal(state[key], value.cpu()) for key, value in weights.items()), name


def test_a_run_on_the_gpu_goes_on_to_the_same_bits(numbered_shards: Path, tmp_path: Path) -> None:
    """Check with a run stopped by its number of epochs, which this schedule does not depend on."""
    line = ("train.py", "--data", numbered_shards, "--batch-size", "25", "--learning-rate", "0.001", "--deterministic")
    line += ("--schedule", "steps", "--variant", "paper", "--out")
    for name, epochs in (("whole", 2), ("stopped", 1)):
        done = command(*line, tmp_path / name, "--epochs", epochs)
        assert done.returncode == 0, done.stderr
    done = command("train.py", "--out", tmp_path / "stopped", "--resume", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    ours, theirs = (checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], weights) for name, weights in theirs.items())
