"""Tests of ``train.py --init`` and ``--freeze``: the weights, the last layer, the scale of pixels, and resuming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from alexnet import AlexNet, AlexNetError, checkpoint
from alexnet.initial import IMAGENET_PLACES, LAST_LAYER, TORCHVISION_PREPARATION, Initial, read_initial
from alexnet.optim import make_optimizer
from alexnet.recipes import RECIPES
from pipelines import AUGMENTS, DataError, open_loader
from pipelines.preprocess import Preparation
from tests.conftest import assert_refused, script

TEN = [f"n{number:08d}" for number in range(10)]
QUICK = ("--batch-size", "100", "--learning-rate", "0.005", "--schedule", "steps", "--warmup-epochs", "0")


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state dict saved as torchvision's alexnet-owt-7be5be79.pth is."""
    path = tmp_path_factory.mktemp("torchvision") / "alexnet-owt-7be5be79.pth"
    torch.manual_seed(1)
    torch.save(torchvision.models.alexnet().state_dict(), path)
    return path


def changed(initial: Initial, name: str, value: Tensor | None) -> Initial:
    weights = {key: tensor for key, tensor in initial.weights.items() if key != name}
    return replace(initial, weights=weights | ({} if value is None else {name: value}))


def test_torchvisions_weights_give_torchvisions_features_and_a_new_last_layer(torchvision_file: Path) -> None:
    initial, images = read_initial(torchvision_file), torch.randn(2, 3, 224, 224)
    theirs, ours = torchvision.models.alexnet().eval(), AlexNet("one_weird_trick", 10).eval()
    theirs.load_state_dict(torch.load(torchvision_file, weights_only=True))
    own = ours.state_dict()[f"{LAST_LAYER}.weight"].clone()
    assert "a new last layer, 10 classes" in initial.load_into(ours, TEN)
    with torch.inference_mode():
        assert torch.equal(
            ours.classifier[:-1](ours.features(images).flatten(1)),
            theirs.classifier[:-1](theirs.features(images).flatten(1)),
        )
    assert torch.equal(ours.state_dict()[f"{LAST_LAYER}.weight"], own)

    imagenet = [IMAGENET_PLACES.get(place, f"n{place:08d}") for place in range(1000)]
    whole = AlexNet("one_weird_trick", 1000)
    assert "its last layer too" in initial.load_into(whole, imagenet)
    assert torch.equal(whole.state_dict()[f"{LAST_LAYER}.bias"], initial.weights[f"{LAST_LAYER}.bias"])
    assert "a new last layer, 1000 classes" in initial.load_into(whole, imagenet[::-1])


def test_weights_that_do_not_fit_are_refused_by_name(torchvision_file: Path) -> None:
    initial, model = read_initial(torchvision_file), AlexNet("one_weird_trick", 10)
    before = model.state_dict()["features.0.weight"].clone()
    faults = {
        r"features.3.weight has the shape \(64, 192, 5, 5\)": ("features.3.weight", torch.zeros(64, 192, 5, 5)),
        "lacks classifier.1.bias": ("classifier.1.bias", None),
        "'features.1.weight', which one_weird_trick does not have": ("features.1.weight", torch.zeros(64)),
        "features.0.weight holds values": ("features.0.weight", torch.full((64, 3, 11, 11), torch.nan)),
        "features.0.bias holds values": ("features.0.bias", torch.zeros(64, dtype=torch.int64)),
    }
    for words, (name, value) in faults.items():
        with pytest.raises(AlexNetError, match=words):
            changed(initial, name, value).load_into(model, TEN)
    with pytest.raises(AlexNetError, match=r"torchvision's AlexNet.* use --variant one_weird_trick"):
        initial.load_into(AlexNet("bn", 10), TEN)
    assert torch.equal(model.state_dict()["features.0.weight"], before), "nothing was loaded"


@pytest.mark.parametrize("content", [{}, {"a": 1}, {3: torch.zeros(1)}, {"format": 9}])
def test_a_file_of_something_else_is_refused(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(AlexNetError, match=r"other\.pth .*(nor a state dict|no checkpoint)"):
        read_initial(tmp_path / "other.pth")


def test_images_are_normalised_as_the_weights_know_them(demo_shards: Path) -> None:
    """Compare with torchvision's own Normalize; a mean image becomes its colour; training and evaluation agree."""
    prepared = Preparation.of(TORCHVISION_PREPARATION)
    plain = open_loader(demo_shards, "val", 8, replace(AUGMENTS["crop_flip"], normalise="none"))
    images = next(iter(open_loader(demo_shards, "val", 8, prepared.onto(AUGMENTS["paper"])))).images
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.allclose(images, normalise(next(iter(plain)).images / 255), atol=1e-5)
    statistics = TORCHVISION_PREPARATION["statistics"]
    paper = Preparation("paper", 256, statistics, torch.zeros(256, 256, 3))
    assert paper.onto(AUGMENTS["modern"]).normalise == "mean" and paper.evaluation().normalise == "mean_image"
    assert paper.onto(AUGMENTS["modern"]).mean == pytest.approx((0.485, 0.456, 0.406))
    recorded = Preparation("modern", 256, statistics, None, "mean")
    assert recorded.evaluation() == paper.onto(AUGMENTS["modern"]).for_evaluation() and recorded.std.tolist() == [1] * 3
    for wrong in ("middle", 3, ["mean"]):
        with pytest.raises(DataError, match="normalis"):
            Preparation("modern", 256, statistics, None, wrong)


def test_frozen_features_neither_learn_nor_change_their_statistics() -> None:
    model = AlexNet("bn", 3)
    model.freeze_features()
    optimizer = make_optimizer(model, RECIPES["demo"])
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == set(model.classifier.parameters()) == set(optimizer.state)
    before = {name: value.clone() for name, value in model.features.state_dict().items()}
    torch.nn.Sequential(model).train()  # as DistributedDataParallel and torch.compile wrap it
    assert model.classifier[2].training
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all(parameter.grad is None for parameter in model.features.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.features.state_dict().items())


def test_freezing_without_weights_is_refused() -> None:
    assert_refused(script("train.py", "--freeze", "features"), "--freeze features without --init", code=2)


@pytest.mark.slow
def test_a_run_from_a_checkpoint_keeps_its_scale_and_resumes_without_it(
    trained: Path, demo_shards: Path, tmp_path: Path
) -> None:
    """Train one epoch and resume for a second, the initial weights deleted: as two at once. Then evaluate."""
    source, start = tmp_path / "source.pt", checkpoint.load(trained / "best.pt")
    source.write_bytes((trained / "best.pt").read_bytes())
    common = ("--data", demo_shards, *QUICK, "--init", source, "--freeze", "features", "--average-decay", "0.9")
    whole = script("train.py", *common, "--out", tmp_path / "whole", "--epochs", "2")
    assert whole.returncode == 0, whole.stderr
    assert f"initial weights from {source}" in whole.stdout and "a new last layer, 10 classes" in whole.stdout
    assert script("train.py", *common, "--out", tmp_path / "part", "--epochs", "1").returncode == 0
    source.unlink()
    resumed = script("train.py", "--out", tmp_path / "part", "--resume", "--epochs", "2")
    assert resumed.returncode == 0 and "initial weights" not in resumed.stdout, resumed.stderr

    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "part"))
    assert one["statistics"] == two["statistics"] == start["statistics"] and one["normalise"] == "mean_std"
    for kind in ("model", "trained"):
        assert all(torch.equal(one[kind][name], two[kind][name]) for name in one[kind])
    for name, value in start["model"].items():
        learned = name.startswith("classifier")
        assert torch.equal(one["model"][name], value) != learned, name

    done = script("tools/evaluate.py", tmp_path / "whole" / "last.pt")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert found["top1"] == one["metrics"]["top1"]
    assert json.loads((tmp_path / "part" / "config.json").read_text())["init"] == str(source)
    assert_refused(script("train.py", *common, "--out", tmp_path / "other"), "source.pt")
