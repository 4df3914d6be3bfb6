"""Tests that metrics equal scikit-learn's and that every image counts once, on any number of ranks."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from torch import nn

from alexnet import AlexNetError, checkpoint
from alexnet.engine import predict
from alexnet.log import read_log
from alexnet.metrics import (
    BINS,
    Predictions,
    accuracy_by_group,
    calibration_error,
    collect,
    confusion,
    more_scores,
    most_confused,
    reliability,
    score_batch,
    scores,
    wilson,
)
from pipelines import AUGMENTS, Batch, open_loader
from pipelines.preprocess import Preparation
from pipelines.shards.gallery import Gallery
from pipelines.shards.groups import groups_of
from pipelines.shards.index import list_samples
from tests.conftest import NUMBERED_IMAGES, command, script, shard

CPU = torch.device("cpu")


def random_answers(classes: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor, Predictions]:
    """Return logits, labels and predictions of 997 samples in batches of 100. The last class never occurs."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(997, classes, generator=generator)
    labels = torch.randint(classes - 1, (997,), generator=generator)
    logits[torch.arange(997), labels] += 1
    if ties:
        logits = logits.round()
    parts = zip(logits.split(100), labels.split(100), strict=True)
    return logits, labels, collect([score_batch(*part) for part in parts])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [3, 12, 200])
def test_figures_agree_with_scikit_learn(classes: int, ties: bool) -> None:
    logits, labels, answers = random_answers(classes, ties)
    true, rated = labels.numpy(), logits.numpy()
    predicted = classes - 1 - rated[:, ::-1].argmax(1)  # the last of equal scores, as in top_k_accuracy_score
    found = scores(answers, classes) | more_scores(answers, classes)
    expected = {"top1": sklearn.metrics.accuracy_score(true, predicted), "samples": 997}
    likely = scipy.special.softmax(rated.astype(np.float64), axis=1)
    expected["loss"] = sklearn.metrics.log_loss(true, likely, labels=range(classes))
    for k in (1, 5):
        ranked = sklearn.metrics.top_k_accuracy_score(true, rated, k=k, labels=range(classes)) if k < classes else 1.0
        expected[f"top{k}"] = ranked
    for average, suffix in (("macro", ""), ("weighted", "_weighted")):
        values = sklearn.metrics.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
        names = (f"{name}{suffix}" for name in ("precision", "recall", "f1"))
        expected |= dict(zip(names, values[:3], strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    matrix = sklearn.metrics.confusion_matrix(true, predicted, labels=range(classes))
    assert np.array_equal(confusion(answers, classes), matrix)


def test_the_calibration_error_is_the_mean_gap_of_confidence_and_accuracy() -> None:
    logits, labels, answers = random_answers(12, ties=False)
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for i in range(BINS):
        chosen = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        if chosen.any():
            gap = confidence[chosen].mean() - (predicted == labels)[chosen].double().mean()
            expected += chosen.double().mean().item() * abs(gap.item())
    assert calibration_error(reliability(answers)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 7), (655, 655), (30_000, 50_000)])
def test_intervals_are_wilsons(hits: int, n: int) -> None:
    interval = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_the_most_confused_pairs_come_first_and_right_answers_not_at_all() -> None:
    assert most_confused(np.array([[9, 1, 0], [0, 9, 3], [0, 0, 9]])) == [(1, 2, 3), (0, 1, 1)]


def test_a_network_that_has_diverged_gets_no_figures() -> None:
    logits = torch.randn(4, 10)
    logits[1, 3] = float("nan")
    with pytest.raises(AlexNetError, match="not finite for 1 of 4"):
        collect([score_batch(logits, torch.zeros(4, dtype=torch.int64))])


def test_an_evaluation_of_203_images_in_batches_of_64_counts_203(demo_shards: Path) -> None:
    model = small_net()
    loader = open_loader(demo_shards, "val", 64)
    metrics = scores(predict(model, loader, CPU), 10)
    assert metrics["samples"] == 203
    with torch.inference_mode():
        predicted = torch.cat([model(batch.images)[: batch.valid].argmax(1) for batch in loader])
    labels = torch.cat([batch.labels[: batch.valid] for batch in loader])
    assert metrics["top1"] == pytest.approx((predicted == labels).double().mean().item(), abs=1e-9)


def small_net(classes: int = 10) -> nn.Module:
    """Return a network that takes next to no time: every 16th pixel, and one matrix."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(1, stride=16), nn.Flatten(), nn.Linear(3 * 14 * 14, classes))


def test_ten_crops_are_the_mean_of_their_probabilities(demo_shards: Path) -> None:
    model = small_net().eval()
    loader = open_loader(demo_shards, "val", 20, AUGMENTS["crop_flip"].for_evaluation(10))
    answers = predict(model, loader, CPU)
    assert len(answers) == 203
    images, labels, *_ = next(iter(loader))
    with torch.inference_mode():
        mean = torch.stack([model(images[10 * i : 10 * i + 10]).softmax(1).mean(0) for i in range(20)])
    assert np.array_equal(answers.predicted[:20], mean.argmax(1).numpy())
    assert np.allclose(answers.confidence[:20], mean.amax(1).numpy(), atol=1e-6)
    assert np.array_equal(answers.labels[:20], labels.numpy())


def test_evaluate_tells_what_best_pt_is_worth(run_folder: Path) -> None:
    done = script("tools/evaluate.py", run_folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["samples"] == NUMBERED_IMAGES and metrics["images_per_second"] > 0
    assert metrics["top1_interval"][0] <= metrics["top1"] <= metrics["top1_interval"][1]
    logged = max(e["top1"] for e in read_log(run_folder / "log.jsonl") if e["kind"] == "epoch")
    assert metrics["top1"] == pytest.approx(logged, abs=1e-6), "best.pt is the best epoch"
    assert "top1" in done.stdout and "images/s" in done.stdout
    assert "warning" not in done.stdout and "among" not in done.stdout, "these are the images it was trained for"
    assert metrics["loss"] == pytest.approx(
        next(e["loss"] for e in read_log(run_folder / "log.jsonl") if e.get("top1") == logged), abs=1e-4
    )
    classes = list(csv.DictReader((run_folder / "classes.csv").open()))
    assert [row["wnid"] for row in classes] == [f"c{i:03d}" for i in range(NUMBERED_IMAGES)]
    assert sum(int(row["right"]) for row in classes) == round(metrics["top1"] * NUMBERED_IMAGES)
    answers = list(csv.DictReader((run_folder / "predictions.csv").open()))
    for row in answers:
        assert row["true"] == f"c{int(row['key'].removeprefix('val_')):03d}", "each line is about its own image"
    for name in ("confusions", "reliability"):
        assert (run_folder / "pictures" / f"{name}.png").stat().st_size > 10_000


def test_two_ranks_say_what_one_says(run_folder: Path, numbered_shards: Path) -> None:
    """Check 101 images in two shares of unequal size. Batches of other sizes round slightly differently."""
    line = ("tools/evaluate.py", run_folder / "best.pt", "--data", numbered_shards, "--batch-size", 40)
    assert script(*line).returncode == 0
    alone = json.loads((run_folder / "metrics.json").read_text()), (run_folder / "predictions.csv").read_text()
    (run_folder / "predictions.csv").unlink()
    done = command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *line)
    assert done.returncode == 0, done.stderr[-2000:]
    both = json.loads((run_folder / "metrics.json").read_text()), (run_folder / "predictions.csv").read_text()
    for name in ("samples", "top1", "top5", "f1"):
        assert both[0][name] == pytest.approx(alone[0][name], abs=1e-9)
    keys = [[line.split(",")[0] for line in text.splitlines()] for text in (alone[1], both[1])]
    assert keys[0] == keys[1] and done.stdout.count("top1") == 1


def test_accuracy_by_property_tells_groups_apart(demo_shards: Path) -> None:
    """Check with predictions that are right for large files only."""
    manifest = open_loader(demo_shards, "val", 64).manifest
    keys, sizes = list_samples(manifest, "val")
    large = sizes > np.median(sizes)
    labels = np.arange(203) % 10
    answers = Predictions(
        labels, np.where(large, labels, (labels + 1) % 10), np.where(large, 0, 3), np.ones(203), np.ones(203)
    )
    found = groups_of(manifest, "val", keys=keys, image_bytes=sizes, labels=labels)
    groups = accuracy_by_group(answers, found)["file size"]
    assert [group["top1"] for group in groups] == [0, 0, 1, 1]
    assert sum(group["images"] for group in groups) == 203


def test_evaluating_asks_for_each_batch_once_and_fetches_results_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the host does not wait for the GPU before the end. ``benchmarks evaluate`` measures what it costs."""
    events: list[str] = []
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name), name, events))
    model = small_net(3)
    model.register_forward_hook(lambda *_: events.append("forward"))

    def batches() -> Iterator[Batch]:
        for _ in range(4):
            events.append("batch")
            yield Batch(torch.randn(6, 3, 224, 224), torch.arange(6) % 3, 6)

    assert len(predict(model, batches(), CPU)) == 24
    assert events == ["batch", "forward"] * 4 + ["cpu", "numpy"]


def noting(method: Callable, name: str, events: list[str]) -> Callable:
    """Return the method of a tensor, which also adds its name to ``events``."""

    def noted(*arguments: Any) -> Any:
        events.append(name)
        return method(*arguments)

    return noted


@pytest.fixture(scope="module")
def subset(numbered_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 12 of the 101 classes, with images of 240 pixels and therefore another mean."""
    source = tmp_path_factory.mktemp("subset") / "images"
    for number in range(40, 52):
        for split in ("train", "val"):
            folder = source / split / f"c{number:03d}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(numbered_images / split / folder.name)
    return shard(source, source.with_name("shards"), size=240)


def test_a_part_of_the_classes_is_evaluated_among_them(trained: Path, run_folder: Path, subset: Path) -> None:
    """Check predictions against the network's logits of these classes, and its own normalisation for other data."""
    done = script("tools/evaluate.py", run_folder, "--data", subset)
    assert done.returncode == 0, done.stderr
    assert "among the 12 classes of the data, of 101 in the network" in done.stdout
    assert "size 240 here and 256 in training" in done.stdout
    found = json.loads((run_folder / "metrics.json").read_text())
    assert (found["classes"], found["network_classes"], found["samples"]) == (12, 101, 12)
    model, state = checkpoint.load_model(trained / "best.pt", CPU)
    preparation = Preparation(state["augment"], 240, state["statistics"], None)
    gallery = Gallery(subset, "val", preparation)
    rows = list(csv.DictReader((run_folder / "predictions.csv").open()))
    for number, row in enumerate(rows):
        view, label = gallery[number]
        with torch.inference_mode():
            likely = model(preparation.tensor(view)[None])[0, 40:52].softmax(0)
        predicted = int(row["predicted"].removeprefix("c")) - 40
        assert row["true"] == f"c{40 + label:03d}" and float(row["confidence"]) == pytest.approx(
            likely[predicted].item(), abs=1e-3
        )
        assert likely[predicted] == pytest.approx(likely.max().item(), abs=1e-3)


def test_classes_are_found_by_wnid_and_unknown_ones_are_named() -> None:
    state = {"classes": [[f"n{number}", "name"] for number in range(9)]}
    assert checkpoint.class_columns(state, Path("best.pt"), ["n8", "n0", "n3"], Path("data")) == [8, 0, 3]
    numbers = ["0", "1", "10", "11", *map(str, range(2, 10))]  # in the order of the data's labels
    ten = {"classes": [[f"n{number}", "name"] for number in range(12)]}
    assert checkpoint.class_columns(ten, Path("best.pt"), numbers, Path("data")) == [0, 1, 10, 11, *range(2, 10)]
    with pytest.raises(AlexNetError, match="2 of the 2 in data"):
        checkpoint.class_columns(ten, Path("best.pt"), ["0", "1"], Path("data"))
    unknown = [f"x{number}" for number in range(7)]
    with pytest.raises(AlexNetError, match=r"on 9 classes, and 7 of the 8 in data .*\(x0, x1, x2, x3, x4, \.\.\.\)"):
        checkpoint.class_columns(state, Path("best.pt"), ["n1", *unknown], Path("data"))
