"""Tests of the training step: compilation, waits for the device, precisions, EMA, and several views per image."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet import RECIPES, AlexNet, AlexNetError
from alexnet.ema import EMA
from alexnet.engine import TrainStep, forward, gpu_failure, predict
from alexnet.log import Interval
from alexnet.metrics import scores
from alexnet.optim import Schedule, make_optimizer
from alexnet.options import Computation
from alexnet.train_state import choose_algorithms
from benchmarks.learning import photographs
from tests.conftest import assert_refused, script

CPU = torch.device("cpu")


def random_batch(size: int = 2, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(size, 3, 224, 224) * scale
    return images.contiguous(memory_format=torch.channels_last), torch.arange(size) % 3


@pytest.mark.parametrize("variant", [pytest.param("source2012", marks=pytest.mark.slow), "bn"])
def test_after_the_first_steps_nothing_is_compiled_again(variant) -> None:
    """Check for one unbroken graph for training and one for evaluation, through epochs of both and a changing rate.

    The backend runs the graphs as they are traced, so it needs no C compiler.
    """
    torch._dynamo.reset()
    counters.clear()
    model = AlexNet(variant, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)
    recipe = replace(RECIPES["demo"], variant=variant, epochs=3, warmup_epochs=1)
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, 2)
    step = TrainStep(compiled, optimizer, recipe, CPU)
    for epoch in range(3):
        compiled.train()
        for number in (0, 1):
            schedule.set_rate(optimizer, 2 * epoch + number)
            step(*random_batch())
        scores(predict(compiled, [(*random_batch(), 2), (*random_batch(), 1)], CPU), 3)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 2, f"{graphs} graphs after epoch {epoch}"
    assert not counters["graph_break"]


class WaitsForTheDevice(TorchDispatchMode):
    """A mode that fails if a value is read from a tensor, as by .item(), bool() or print: a GPU's host would wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "local_scalar_dense" not in str(function) and "nonzero" not in str(function), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["paper", "source2012", "modern"])
def test_between_two_lines_of_the_log_nothing_waits_for_the_device(name) -> None:
    recipe = RECIPES[name]
    model = AlexNet(recipe.variant, 3)
    optimizer, schedule = make_optimizer(model, recipe), Schedule(recipe, 10)
    ema = EMA(model, recipe.average_decay) if recipe.average_decay else None
    step, interval = TrainStep(model, optimizer, recipe, CPU, ema=ema), Interval(CPU)
    batch = random_batch()
    with WaitsForTheDevice():
        for number in (249, 250):  # the rate of source2012 drops between them
            schedule.set_rate(optimizer, number)
            interval.add(step(*batch), 2, 0.0)
    assert 0 <= step.take_right() <= 4 and step.take_right() == 0
    with pytest.raises(AssertionError, match="local_scalar"), WaitsForTheDevice():
        interval.summary(251)


def test_bf16_follows_fp32_on_the_0_to_255_scale() -> None:
    """Check that the first loss agrees within a few roundings of the logits, and that the next one is finite."""
    losses = {}
    for name in ("fp32", "bf16"):
        torch.manual_seed(0)
        recipe = replace(RECIPES["paper"], precision=name)
        model = AlexNet("source2012", 3, dropout=0)
        step = TrainStep(model, make_optimizer(model, recipe), recipe, CPU)
        torch.manual_seed(1)
        images, labels = random_batch(scale=70.0)
        losses[name] = [step(images, labels).item() for _ in range(2)]
    assert all(map(math.isfinite, losses["bf16"])), losses
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.05)
    assert losses["bf16"] != losses["fp32"], "half precision was not used"


@pytest.mark.parametrize("variant", ["paper", "source2012"])
def test_fp16_has_room_for_the_0_to_255_scale(variant) -> None:
    """Check that with photographs and initial weights, each layer's output is at most a tenth of float16's range. It is
    measured in float32, because CPUs have no fp16 convolution worth the name."""
    torch.manual_seed(0)
    model = AlexNet(variant, 10)
    largest = 0.0
    with torch.inference_mode():
        maps = photographs()[:4]
        for layer in [*model.features, torch.nn.Flatten(), *model.classifier]:
            maps = layer(maps)
            largest = max(largest, maps.abs().max().item())
    assert largest < torch.finfo(torch.float16).max / 10


def small_network() -> AlexNet:
    """Return a network with layers so small that a CPU can train them in float16."""
    model = AlexNet("bn", 3)
    model.features = torch.nn.Sequential(torch.nn.AvgPool2d(37), torch.nn.Conv2d(3, 4, 1))
    model.classifier = torch.nn.Sequential(torch.nn.Linear(4 * 6 * 6, 3))
    return model


@pytest.mark.parametrize("update", ["torch", "paper"])
def test_a_step_whose_scaled_loss_overflows_is_left_out_even_the_first(update) -> None:
    """Check that the scale is halved, and that the momentum, which torch would not create, is zero in the next step."""
    torch.manual_seed(0)
    recipe = replace(RECIPES["paper"], precision="fp16", update=update)
    model, batch = small_network(), random_batch()
    step = TrainStep(model, make_optimizer(model, recipe), recipe, CPU)
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 1e30})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(*batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert step.scaler.get_scale() == pytest.approx(5e29)
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 128.0})
    step(*batch)
    gradients_applied = [b - a for a, b in zip(before, model.parameters(), strict=True)]
    assert all(0 < change.abs().max() < 1 for change in gradients_applied)


def test_the_average_is_that_of_a_scalar_loop_and_counts_batch_statistics() -> None:
    torch.manual_seed(0)
    model = AlexNet("bn", 2)
    average = EMA(model, decay=0.3)
    bias, batches = model.classifier[6].bias, model.features[1].num_batches_tracked
    expected = bias.detach().clone()
    for update in range(1, 5):
        with torch.no_grad():
            bias.fill_(float(update))
        model.features[1].running_mean.fill_(float(update))
        batches.fill_(update)
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    ours = average.model.state_dict()
    torch.testing.assert_close(ours["classifier.6.bias"], expected)
    assert 3 < ours["features.1.running_mean"][0] < 4 and ours["features.1.num_batches_tracked"] == 4
    assert not average.model.training and model.training


def test_several_views_of_an_image_count_once_by_their_mean_probability() -> None:
    """Check four consecutive rows per image, the last image only padding. The metrics are those of the averages."""
    torch.manual_seed(0)
    model = AlexNet("paper", 6).eval()
    with torch.no_grad():
        model.classifier[6].weight.mul_(30)  # so that the views differ
    images, labels = torch.randn(12, 3, 224, 224) * 60, torch.tensor([4, 1, 2])
    with torch.inference_mode():
        views = forward(model, images, "fp32", CPU).softmax(1).view(3, 4, 6)
    labels[0] = views[0].mean(0).argmax()
    labels[1] = (views[1].mean(0).argmax() + 1) % 6
    metrics = scores(predict(model, [(images, labels, 2)], CPU), 6)
    assert metrics["samples"] == 2 and metrics["top1"] == 0.5


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("computation", "device", "images", "ranks", "mode"),
    [
        (Computation(), CPU, 128, 1, "off"),
        (Computation(), CUDA, 128, 1, "graphs"),
        (Computation(), CUDA, 256, 1, "graphs"),
        (Computation(), CUDA, 1024, 1, "on"),
        (Computation(), CUDA, 128, 2, "on"),
        (Computation(accumulate=2), CUDA, 128, 1, "on"),
        (Computation(deterministic=True), CUDA, 128, 1, "on"),
        (Computation(compile="graphs"), CPU, 1024, 2, "graphs"),
        (Computation(compile="off"), CUDA, 128, 1, "off"),
    ],
)
def test_small_batches_on_a_gpu_are_cuda_graphs_where_they_hold(computation, device, images, ranks, mode) -> None:
    assert computation.compile_mode(device, images, ranks) == mode


def test_parts_of_a_batch_as_cuda_graphs_are_refused_because_gradients_would_be_lost(tmp_path: Path) -> None:
    """Check the command line. torch returned one part's gradient of four without an error (its issue 96693)."""
    line = ("train.py", "--out", tmp_path, "--accumulate", "4", "--compile", "graphs")
    assert_refused(script(*line), "--accumulate 4 with --compile graphs", "gradients", "--compile on", code=2)
    Computation(accumulate=4, compile="on"), Computation(compile="graphs")


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_times_its_algorithms_unless_runs_must_be_the_same(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    used: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", used.append)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    choose_algorithms(deterministic)
    assert torch.backends.cudnn.benchmark is not deterministic and used == [True] * deterministic


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1"), "--accumulate 2"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "lower --batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "the GPU failed"),
        (torch.AcceleratorError("CUDA error: an illegal memory access\nCompile with"), "illegal memory access): give"),
        (RuntimeError("The size of tensor a (3) must match"), None),
        (RuntimeError(), None),
    ],
)
def test_errors_of_a_gpu_say_what_to_do(error: RuntimeError, words: str | None) -> None:
    """Check that a batch that does not fit is told from a GPU that failed, and both from our own errors."""
    said = gpu_failure(error)
    assert (words in said and "\n" not in said and "GPU 0" not in said) if words else said is None


def test_a_loss_that_is_not_finite_stops_the_run_at_a_named_step() -> None:
    interval = Interval(CPU)
    for loss in (1.0, 2.0, math.inf, math.nan, 1.0):
        interval.add(torch.tensor(loss), 1, 0.0)
    with pytest.raises(AlexNetError, match=r"loss became inf in step 18: lower --learning-rate; last\.pt"):
        interval.summary(20)
