"""Tests of open_loader in other people's loops: exact, or an error that says what to do."""

import json
import multiprocessing
import resource
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipelines import Augment, DataError, Loader, factory, open_loader
from pipelines.augment import Jitter
from pipelines.shards.records import Records
from pipelines.turbo.batches import TurboBatches
from tests.conftest import NUMBERED_IMAGES, command

READERS = ("dali", "turbo")


def labels_of(loader: Loader) -> list[int]:
    return [label for batch in loader for label in batch.labels[: batch.valid].tolist()]


def turbo(folder: Path, batch_size: int = 8, **options) -> Loader:
    return open_loader(folder, "train", batch_size, backend="turbo", threads=1, **options)


# A saved position


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"augment": "paper"}, "augment.normalise was 'mean_std', now 'mean_image'"),
        ({"augment": Augment(jitter=Jitter(0.1))}, "augment.jitter was None, now a dict"),
        ({"split": "val"}, "split was 'train', now 'val'"),
        ({"training": False}, "training was True, now False"),
        ({"transform": lambda images, labels: (images, labels)}, "transform was None, now "),
    ],
)
def test_the_position_of_another_loader_is_refused(numbered_shards: Path, changed: dict, words: str) -> None:
    before = {"split": "train", "seed": 3}
    state = open_loader(numbered_shards, batch_size=8, backend="turbo", **before).state_dict()
    with pytest.raises(DataError, match=words):
        open_loader(numbered_shards, batch_size=8, backend="turbo", **(before | changed)).load_state_dict(state)


def test_the_position_in_other_shards_is_refused(numbered_shards: Path, demo_shards: Path) -> None:
    with pytest.raises(DataError, match=r"the sha256 of manifest\.json was "):
        turbo(demo_shards).load_state_dict(turbo(numbered_shards).state_dict())


def test_dalis_position_is_of_one_rank(numbered_shards: Path) -> None:
    ranks = [open_loader(numbered_shards, "train", 8, backend="dali", rank=rank, world_size=2) for rank in (0, 1)]
    with pytest.raises(DataError, match="rank was 0, now 1"):
        ranks[1].load_state_dict(ranks[0].state_dict())


def test_the_position_alone_can_be_taken(numbered_shards: Path) -> None:
    loader, other = turbo(numbered_shards, seed=3), turbo(numbered_shards, seed=4)
    next(iter(loader))
    other.load_state_dict(loader.state_dict(), strict=False)
    expected = labels_of(turbo(numbered_shards, seed=4))
    assert labels_of(other) == expected[8:]


@pytest.mark.parametrize("backend", READERS)
def test_a_state_is_json(numbered_shards: Path, backend) -> None:
    loader = open_loader(numbered_shards, "train", 8, backend=backend, augment=Augment(jitter=Jitter(0.1)))
    batches = iter(loader)
    next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = open_loader(numbered_shards, "train", 8, backend=backend, augment=Augment(jitter=Jitter(0.1)))
    resumed.load_state_dict(state)
    assert torch.equal(next(iter(resumed)).images, next(batches).images)


def test_a_state_of_an_earlier_version_is_read(numbered_shards: Path) -> None:
    loader = turbo(numbered_shards)
    loader.load_state_dict({"backend": "turbo", "epoch": 0, "taken": 8, "step": 8, "opened_at": 0, "source": b"turbo"})
    assert labels_of(loader) == labels_of(turbo(numbered_shards))[8:]


@pytest.mark.parametrize(("name", "value"), [("taken", -8), ("taken", 1 << 70), ("taken", "8"), ("epoch", None)])
def test_a_damaged_position_is_refused(numbered_shards: Path, name: str, value) -> None:
    loader = turbo(numbered_shards)
    with pytest.raises(DataError, match="no position"):
        loader.load_state_dict(loader.state_dict() | {name: value})


def test_a_closed_loader_keeps_its_position_or_says_that_it_cannot(numbered_shards: Path) -> None:
    loader = turbo(numbered_shards)
    next(iter(loader))
    loader.close()
    resumed = turbo(numbered_shards)
    resumed.load_state_dict(loader.state_dict())
    assert labels_of(resumed) == labels_of(turbo(numbered_shards))[8:]
    dali = open_loader(numbered_shards, "train", 8, backend="dali")
    next(iter(dali))
    dali.close()
    with pytest.raises(RuntimeError, match="closed in mid-epoch"):
        dali.state_dict()


# Iterations


@pytest.mark.parametrize("backend", READERS)
def test_an_older_iteration_ends_with_an_error(numbered_shards: Path, backend) -> None:
    loader = open_loader(numbered_shards, "train", 8, backend=backend)
    older = iter(loader)
    next(older)
    newest = iter(loader)
    expected = next(newest)
    state = loader.state_dict()
    with pytest.raises(RuntimeError, match="another iteration of this loader has begun"):
        next(older)
    assert state["epoch"] == 1 and state["taken"] == 8, "the state is that of the newest"
    labels = [*expected.labels.tolist(), *(label for batch in newest for label in batch.labels.tolist())]
    assert len(set(labels)) == len(labels) == NUMBERED_IMAGES // 8 * 8, "the newest is whole"
    for _ in loader:
        with pytest.raises(RuntimeError, match="another iteration"):
            for _ in zip(loader, loader, strict=True):
                pass
        break


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, DataError])
def test_after_an_exception_the_next_iteration_starts_afresh(
    numbered_shards: Path, failure: type[BaseException], backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = open_loader(numbered_shards, "train", 8, backend=backend)
    expected = labels_of(open_loader(numbered_shards, "train", 8, backend=backend))

    def fail(*_: object) -> None:
        raise failure("once")

    with monkeypatch.context() as patch, pytest.raises(failure, match="once"):
        target = ("pipelines.turbo.batches.TurboBatches._settle", "pipelines.dali.batches.DaliBatches._labels")
        patch.setattr(target[backend == "dali"], fail)
        next(iter(loader))
    assert labels_of(loader) == expected, "no batch was taken, so the epoch begins again"


def test_an_exception_in_a_thread_leaves_no_backend_behind(
    numbered_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(TurboBatches, "close", lambda self: closed.append(self))
    loader = turbo(numbered_shards)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "locate", lambda *_: 1 / 0)
        patch.setattr(Records, "read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(iter(loader))
    assert len(closed) == 1
    assert len(labels_of(loader)) == 96


@pytest.mark.parametrize("backend", (*READERS, "synthetic"))
def test_batches_taken_in_inference_mode_can_be_trained_on(demo_shards: Path, backend) -> None:
    """Check also those that were made ahead while the mode was on."""
    batches = iter(open_loader(demo_shards, "train", 32, backend=backend))
    with torch.inference_mode():
        first = next(batches)
    for batch in (first, next(batches), next(batches)):
        assert not batch.images.is_inference() and not batch.labels.is_inference()
        weight = torch.ones(1, requires_grad=True)
        (batch.images[:1, :, :2, :2] * weight).square().sum().backward()  # saves the images


def test_a_with_statement_closes_the_loader(numbered_shards: Path) -> None:
    with turbo(numbered_shards) as loader:
        next(iter(loader))
        source = loader._source
    assert loader._source is None and source._threads._shutdown  # type: ignore[union-attr]


def test_a_loader_says_what_it_is(demo_shards: Path) -> None:
    loader = turbo(demo_shards, 50, rank=1, world_size=2)
    assert loader.num_classes == len(loader.classes) == 10
    assert loader.classes == [entry.name for entry in loader.manifest.classes]
    assert "400 train samples" in repr(loader) and "rank 1 of 2" in repr(loader) and "backend turbo" in repr(loader)


# Ranks


def test_ranks_come_from_torchruns_environment(numbered_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        loader = turbo(numbered_shards)
        assert (loader.plan.rank, loader.plan.world_size) == (int(rank), 2)
        seen += labels_of(loader)
    assert len(set(seen)) == len(seen) == 96
    alone = turbo(numbered_shards, rank=0, world_size=1)
    assert alone.plan.world_size == 1, "what is given counts"


def test_ranks_come_from_torch_distributed(numbered_shards: Path, tmp_path: Path) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "5")
            patch.setenv("WORLD_SIZE", "8")
            assert turbo(numbered_shards).plan.world_size == 1
    finally:
        distributed.destroy_process_group()


# Other processes


def _labels_in_child(loader: Loader, results: multiprocessing.SimpleQueue) -> None:
    results.put(labels_of(loader))


def _older_in_child(batches, results: multiprocessing.SimpleQueue) -> None:
    try:
        next(batches)
    except RuntimeError as error:
        results.put(str(error))


def in_child(target, *arguments: object):
    """Return what ``target`` puts into a queue in a forked process."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=target, args=(*arguments, results))
    child.start()
    child.join(300)
    assert child.exitcode == 0, "it hangs, or failed"
    return results.get()


@pytest.mark.parametrize("backend", READERS)
def test_a_forked_process_opens_its_own_backend(numbered_shards: Path, backend) -> None:
    loader = open_loader(numbered_shards, "train", 8, backend=backend, seed=3)
    batches = iter(loader)
    next(batches)
    again = open_loader(numbered_shards, "train", 8, backend=backend, seed=3)
    again.epoch = 1
    assert in_child(_labels_in_child, loader) == labels_of(again), "the epoch after the one that was left early"
    assert "began in the parent process" in in_child(_older_in_child, batches)
    assert len([*batches]) == len(loader) - 1, "the parent's iteration is not disturbed"


class Dataset(torch.utils.data.IterableDataset):
    """A dataset as others write it around a loader."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self):
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            for batch in self.loader:
                yield batch.labels, [str(warning.message) for warning in given]


def test_workers_of_a_data_loader_warn_that_each_gives_all(numbered_shards: Path) -> None:
    loader = turbo(numbered_shards)
    next(iter(loader))
    wrapped = torch.utils.data.DataLoader(
        Dataset(loader), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    batches = [*wrapped]
    assert len(batches) == 2 * 12
    assert all("used in 2 worker processes" in message for _, (message,) in batches)


@pytest.mark.slow
@pytest.mark.parametrize("backend", READERS)
def test_more_shards_than_files_may_be_open(numbered_images: Path, numbered_shards: Path, backend, tmp_path) -> None:
    """Check with a limit below the number of shards; in a process of its own, whose limit is lowered."""
    from tests.conftest import shard

    folder = shard(numbered_images, tmp_path / "many", shard_mb=0.02)
    assert len([*folder.glob("train-*.tar")]) > 64
    program = f"""
import os, resource, sys
from pipelines import open_loader
loader = open_loader({str(folder)!r}, "train", 8, backend={backend!r}, threads=2)
limit = len(os.listdir("/dev/fd")) + 40
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
print(sorted(label for batch in loader for label in batch.labels.tolist()))
"""
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
    assert len(set(json.loads(done.stdout))) == 96


def test_shards_stay_open_while_half_of_the_files_are_free(numbered_shards: Path, monkeypatch) -> None:
    loader = turbo(numbered_shards)
    limit = 2 * (len([*Path("/dev/fd").iterdir()]) + 1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    records = Records(loader.manifest, "train")
    assert [records.read(sample).label for sample in range(101)]
    assert 1 <= len(records._files) <= 2 < len(loader.manifest.split("train").shards)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 2.5}, "batch_size is 2.5: it must be an integer, at least 1"),
        ({"threads": -1}, "threads is -1: it must be at least 1"),
        ({"threads": "2"}, "threads is '2'"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 1}, "give both"),
        ({"rank": 2, "world_size": 2}, "rank is 2: it must be from 0 to 1"),
        ({"augment": lambda pixels: pixels}, "augment is <function .*: it must be an Augment, or one of paper"),
        ({"on_error": "ignore"}, 'not "raise" or "skip"'),
        ({"keys": True, "backend": "dali"}, "keys needs the backend turbo or gpu, not dali"),
    ],
)
def test_wrong_arguments_are_named(numbered_shards: Path, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_loader(numbered_shards, **({"batch_size": 8, "backend": "turbo"} | arguments))


def test_integers_of_numpy_are_integers(numbered_shards: Path) -> None:
    loader = turbo(numbered_shards, np.int64(8), seed=np.int32(3))
    assert len(next(iter(loader)).labels) == 8 and json.dumps(loader.state_dict())


@pytest.mark.parametrize(
    ("threads", "has_dali", "backend", "why"),
    [
        (1, True, "dali", "turbo with threads=1 decodes some 4,545 images/s"),
        (2, True, "turbo", "some 9,091 images/s"),
        (64, True, "turbo", "some 70,000 images/s of 256x256, DALI at most 7,000"),
        (1, False, "turbo", "DALI is not installed"),
    ],
)
def test_auto_chooses_by_the_cores_of_the_rank(
    numbered_shards: Path, monkeypatch: pytest.MonkeyPatch, threads: int, has_dali: bool, backend: str, why: str
) -> None:
    monkeypatch.setattr(factory, "check_device", lambda _: None)
    monkeypatch.setattr("pipelines.gpu.opening.why_not", lambda *_: "no markers")
    monkeypatch.setattr(factory, "_has_dali", lambda: has_dali)
    monkeypatch.setattr("pipelines.dali.batches.require_dali", lambda: None)
    given = {"batch_size": 8, "device": "cuda", "threads": threads}
    loader = open_loader(numbered_shards, **given)
    assert loader.backend == backend and why in repr(loader)
    assert "auto" not in repr(open_loader(numbered_shards, **given, backend=backend))
    transformed = open_loader(numbered_shards, **given, keys=True)
    assert transformed.backend == "turbo" and "auto: DALI lacks keys; not gpu: no markers" in repr(transformed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_noticed_when_the_loader_is_opened(numbered_shards: Path) -> None:
    for backend in ("auto", "turbo"):
        with pytest.raises(DataError, match="device is 'cuda', but torch finds no GPU, or no driver"):
            open_loader(numbered_shards, "train", 8, device="cuda", backend=backend)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crop": "middle"}, "no crop 'middle', only random, resized, center, ten"),
        ({"flip": "vertical"}, "no flip 'vertical', only True, False"),
        ({"normalise": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}, "no normalise .*, only mean_image"),
        ({"jitter": 0.4}, "it must be a Jitter or None"),
        ({"scale": 0.5}, "scale is 0.5: it must be 2 numbers"),
        ({"mean": (0.485, 0.456, 0.406)}, "mean given with normalise='mean_std'"),
        ({"normalise": "mean", "std": (0.2, 0.2, 0.2)}, "std given with normalise='mean'"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "on the 0..1 scale"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.0, 0.2)}, "the std above 0"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2, 0.2)}, "mean is .*: it must be 3 numbers"),
        ({"lighting": float("nan")}, "lighting at least 0"),
    ],
)
def test_wrong_augments_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augment(**fields)


@pytest.mark.parametrize("backend", READERS)
def test_a_given_mean_and_std_are_those_of_torchvisions_normalize(demo_shards: Path, backend) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = Augment(crop="center", flip=False, normalise="none")
    given = replace(plain, normalise="mean_std", mean=mean, std=std)
    pixels, images = (
        next(iter(open_loader(demo_shards, "val", 8, augment, backend=backend))).images for augment in (plain, given)
    )
    oracle = v2.functional.normalize(pixels.float() / 255, mean, std)
    torch.testing.assert_close(images, oracle, rtol=0, atol=1e-5)


# A transform of the caller's own


@pytest.mark.parametrize("augment", ["crop_flip", "paper"])
def test_a_transform_sees_uint8_pixels_and_what_it_returns_is_normalised(demo_shards: Path, augment: str) -> None:
    seen = []

    def look(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((images.clone(), labels.clone()))
        return images, labels

    plain, through = (next(iter(turbo(demo_shards, 32, augment=augment, transform=t))) for t in (None, look))
    assert seen[0][0].dtype == torch.uint8 and seen[0][0].shape == (32, 3, 224, 224)
    assert torch.equal(seen[0][1], plain.labels) and torch.equal(through.labels, plain.labels)
    assert through.images.dtype == torch.float32 and through.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(through.images, plain.images, rtol=1e-5, atol=1e-4)


def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Erase, colour and mix, as torchvision's transforms do."""
    images = torch.stack([v2.RandAugment()(image) for image in images])
    return v2.MixUp(num_classes=10)(v2.RandomErasing(p=1.0)(images.float()), labels)


def test_a_transform_is_repeatable_and_resumes(demo_shards: Path) -> None:
    """Check that its draws depend on seed, epoch and place alone, and disturb nobody's generator."""
    loader = turbo(demo_shards, 8, seed=3, transform=mixed)
    torch.manual_seed(1)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    second = next(batches)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert second.labels.shape == (8, 10) and second.labels.is_floating_point()
    torch.manual_seed(2)
    resumed = turbo(demo_shards, 8, seed=3, transform=mixed)
    resumed.load_state_dict(state)
    again = next(iter(resumed))
    assert torch.equal(again.images, second.images) and torch.equal(again.labels, second.labels)


def test_a_transform_that_returns_no_batch_is_refused(demo_shards: Path) -> None:
    with pytest.raises(ValueError, match=r"transform returned torch.uint8 images of the shape \(8, 3, 112, 112\)"):
        next(iter(turbo(demo_shards, transform=lambda images, labels: (images[..., ::2, ::2], labels))))


# Keys


@pytest.mark.parametrize("training", [True, False])
def test_keys_name_the_samples(numbered_shards: Path, training: bool) -> None:
    """Check against the labels: each image of these shards is the only one of its class."""
    loader = turbo(numbered_shards, keys=True, training=training)
    for batch in loader:
        assert batch.keys == [*(f"train_{label}" for label in batch.labels[: batch.valid].tolist())] + [""] * (
            8 - batch.valid
        )
