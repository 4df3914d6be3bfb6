"""Tests of all loaders: every sample once, equal bytes for equal seeds, resumed equals uninterrupted, right pixels."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from pipelines import AUGMENTS, Augment, DataError, Loader, load_manifest, open_loader
from pipelines.augment import lighting_matrix
from pipelines.images.picture import read_picture
from pipelines.plan import Plan
from pipelines.sharding.sources import find_images
from tests.conftest import NUMBERED_IMAGES, ROOT, shard

READERS = ("dali", "turbo")
BACKENDS = (*READERS, "synthetic")


def valid_labels(loader: Loader) -> list[int]:
    return [label for batch in loader for label in batch.labels[: batch.valid].tolist()]


@pytest.mark.parametrize("backend", READERS)
def test_the_demo_reads_the_same_through_webdataset_and_open_loader(
    demo_images: Path, demo_shards: Path, backend
) -> None:
    """Check that the keys, labels and pixels of the shards are those of the source with both readers."""
    source = find_images(demo_images, ("val",), 0).splits["val"]
    shards = sorted(str(path) for path in demo_shards.glob("val-*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [sample.key for sample in source]
    assert [int(sample["cls"]) for sample in samples] == [sample.label for sample in source]

    plain = Augment(crop="center", flip=False, normalise="mean")
    mean = torch.tensor(load_manifest(demo_shards).statistics.mean_rgb)[:, None, None]
    batches = list(open_loader(demo_shards, split="val", batch_size=64, augment=plain, backend=backend))
    images = torch.cat([batch.images[: batch.valid] for batch in batches])
    labels = torch.cat([batch.labels[: batch.valid] for batch in batches])
    assert labels.tolist() == [sample.label for sample in source]
    for sample, image in zip(samples, images, strict=True):
        oracle = transforms.center_crop(
            torch.from_numpy(read_picture(sample["jpg"], ".jpg").pixels).permute(2, 0, 1), [224, 224]
        )
        error = (image + mean - oracle).abs()
        # two builds of libjpeg-turbo may round the inverse transform and the chroma differently
        assert error.mean() < 1 and error.max() < 24, sample["__key__"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_keeps_the_contract(demo_shards: Path, backend) -> None:
    loader = open_loader(demo_shards, "train", 32, "paper", backend=backend)
    assert len(loader) == 400 // 32
    batch = next(iter(loader))
    assert batch.images.shape == (32, 3, 224, 224) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == (32,) and batch.labels.dtype == torch.int64
    assert batch.valid == 32


@pytest.mark.parametrize("backend", BACKENDS)
def test_203_images_in_batches_of_64_count_203(demo_shards: Path, backend) -> None:
    batches = list(open_loader(demo_shards, "val", 64, backend=backend))
    assert [batch.valid for batch in batches] == [64, 64, 64, 11]
    assert all(len(batch.images) == len(batch.labels) == 64 for batch in batches), "shapes never change"


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_counts_each_image_once_over_all_ranks(numbered_shards: Path, world_size: int, backend) -> None:
    loaders = [
        open_loader(numbered_shards, "val", 8, backend=backend, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    for _ in range(2):
        assert sorted(label for loader in loaders for label in valid_labels(loader)) == list(range(NUMBERED_IMAGES))


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_train_epochs_are_exact_shuffled_and_disjoint_over_ranks(
    numbered_shards: Path, world_size: int, backend
) -> None:
    loaders = [
        open_loader(numbered_shards, "train", 8, backend=backend, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen: Counter[int] = Counter()
    orders = []
    for _ in range(4):
        epoch = [valid_labels(loader) for loader in loaders]
        assert {len(labels) for labels in epoch} == {NUMBERED_IMAGES // world_size // 8 * 8}
        flat = [label for labels in epoch for label in labels]
        assert len(set(flat)) == len(flat), "no image twice in an epoch"
        seen.update(flat)
        orders.append(flat)
    assert len({tuple(order) for order in orders}) == 4, "each epoch is shuffled anew"
    if world_size == 1:
        assert set(seen) == set(range(NUMBERED_IMAGES)), "what one epoch drops, another one shows"


def test_plans_cover_every_sample_for_any_size_and_number_of_ranks() -> None:
    for samples in (1, 2, 7, 64, 101, 203):
        for world_size in range(1, 9):
            for batch_size in (1, 3, 64):
                plans = [
                    Plan(samples=samples, batch_size=batch_size, rank=rank, world_size=world_size, training=False)
                    for rank in range(world_size)
                ]
                assert sum(plan.valid(i) for plan in plans for i in range(plan.batches)) == samples
                train = [
                    Plan(samples=samples, batch_size=batch_size, rank=rank, world_size=world_size, training=True)
                    for rank in range(world_size)
                ]
                assert len({plan.batches for plan in train}) == 1
                assert all(plan.valid(i) == batch_size for plan in train for i in range(plan.batches))


def images_of(loader: Loader, batches: int) -> list[torch.Tensor]:
    return [batch.images.clone() for batch, _ in zip(loader, range(batches), strict=False)]


@pytest.mark.parametrize("backend", READERS)
def test_the_same_seed_gives_the_same_bytes(demo_shards: Path, backend) -> None:
    first, again, other = (
        images_of(open_loader(demo_shards, "train", 32, "paper", backend=backend, seed=seed, threads=threads), 3)
        for seed, threads in ((5, 1), (5, 2), (6, 2))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize("stop", [0, 5, 12])
def test_a_resumed_loader_gives_the_batches_that_would_have_come(demo_shards: Path, stop: int, backend) -> None:
    """Check bit-identical batches after stops in mid-epoch and at its ends, and into the next epoch."""

    def batches(loader: Loader):
        while True:
            for batch in loader:
                yield batch.images.clone(), batch.labels

    loader = open_loader(demo_shards, "train", 32, "paper", backend=backend, seed=3)
    there = batches(loader)
    for _ in range(stop):
        next(there)
    state = loader.state_dict()
    expected = [next(there) for _ in range(16)]
    resumed = open_loader(demo_shards, "train", 32, "paper", backend=backend, seed=3)
    resumed.load_state_dict(state)
    for (images, labels), (expected_images, expected_labels) in zip(batches(resumed), expected, strict=False):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loaders_state_can_be_kept_in_a_checkpoint(demo_shards: Path, tmp_path: Path, backend) -> None:
    loader = open_loader(demo_shards, "train", 32, backend=backend)
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    resumed = open_loader(demo_shards, "train", 32, backend=backend)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(list(resumed)) == len(loader) - 1


@pytest.mark.parametrize("backend", READERS)
def test_an_epoch_left_early_is_followed_by_a_whole_new_one(numbered_shards: Path, backend) -> None:
    loader = open_loader(numbered_shards, "train", 8, backend=backend)
    first = next(iter(loader)).labels.tolist()
    labels = valid_labels(loader)
    assert len(set(labels)) == len(labels) == 96
    assert labels[:8] != first


@pytest.mark.parametrize("backend", READERS)
def test_evaluation_is_the_same_every_time(demo_shards: Path, backend) -> None:
    loader = open_loader(demo_shards, "val", 64, "paper", backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(images_of(loader, 4), images_of(loader, 4), strict=True))


@pytest.fixture(scope="module")
def marked_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 256 images in which red encodes the column and green the row, so that a crop shows its place."""
    folder = tmp_path_factory.mktemp("marked")
    ramp = np.arange(256, dtype=np.uint8)
    image = np.stack(
        [np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.full((256, 256), 128, np.uint8)], -1
    )
    for split, count in (("train", 256), ("val", 1)):
        for name in ("a", "b"):
            (folder / "in" / split / name).mkdir(parents=True)
            for number in range(count // 2 or 1):
                Image.fromarray(image).save(folder / "in" / split / name / f"{number}.png")
    return shard(folder / "in", folder / "out", quality=95)


@pytest.mark.parametrize("backend", READERS)
def test_random_crops_and_flips_cover_their_range_evenly(marked_shards: Path, backend) -> None:
    """Check that the corners of 256 crops run from 0 to 32 evenly, and that half of the crops are flipped."""
    augment = Augment(normalise="mean")
    mean = torch.tensor(load_manifest(marked_shards).statistics.mean_rgb)[:, None, None]
    images = next(iter(open_loader(marked_shards, "train", 256, augment, backend=backend))).images + mean
    flipped = images[:, 0, :, 0].mean(1) > images[:, 0, :, -1].mean(1)
    assert 0.35 < flipped.float().mean() < 0.65  # five deviations of 256 fair coins
    left = torch.minimum(images[:, 0, :, 0].mean(1), images[:, 0, :, -1].mean(1))
    top = images[:, 1, 0].mean(1)
    for corner in (left, top):
        assert -2 <= corner.min() < 3 and 29 < corner.max() <= 34
        assert abs(corner.mean() - 16) < 3  # five deviations of the mean of 256
    assert np.corrcoef(left, top)[0, 1] < 0.32  # left and top are independent


@pytest.mark.parametrize("backend", READERS)
def test_lighting_has_the_colours_spread_of_the_recipe(marked_shards: Path, backend) -> None:
    """Check that the light added to an image is constant over it, with 0.01 times the covariance of the pixels."""
    manifest = load_manifest(marked_shards)
    lit = Augment(crop="center", flip=False, lighting=0.1, normalise="mean")
    with_light, without = (
        next(iter(open_loader(marked_shards, "train", 256, augment, backend=backend))).images
        for augment in (lit, Augment(crop="center", flip=False, normalise="mean"))
    )
    light = with_light - without  # all images are equal
    assert light.std(dim=(2, 3)).max() < 1e-3
    components = torch.tensor(lighting_matrix(manifest.statistics), dtype=torch.float64)  # 3,3
    factors = light.mean(dim=(2, 3)).double() @ torch.linalg.pinv(components).T
    strong = [i for i in range(3) if manifest.statistics.eigenvalues[i] > 1]
    assert len(strong) >= 2
    np.testing.assert_allclose(factors[:, strong].std(0), 0.1, rtol=0.25)  # five deviations of 256 draws
    np.testing.assert_allclose(factors[:, strong].mean(0), 0, atol=0.035)


def test_augments_have_the_scale_that_they_name(demo_shards: Path) -> None:
    paper = torch.cat(images_of(open_loader(demo_shards, "train", 100, "paper"), 4))
    scaled = torch.cat(images_of(open_loader(demo_shards, "train", 100, "crop_flip"), 4))
    std = torch.tensor(load_manifest(demo_shards).statistics.std_rgb)
    assert (paper.mean(dim=(0, 2, 3)).abs() < 12).all(), "centred on the 0..255 scale"
    torch.testing.assert_close(paper.std(dim=(0, 2, 3)), std, rtol=0.15, atol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(3), rtol=0.15, atol=0)
    assert set(AUGMENTS) >= {"paper", "crop_flip"}


def test_without_dali_the_error_names_the_wheel(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"pip install 'alexnet-pipelines\[dali\]'"):
        open_loader(demo_shards, backend="dali")


def test_an_altered_image_ends_the_epoch_with_an_error_that_says_how_to_find_it(
    demo_shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "copy")
    tar = copy / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[512:1024] = bytes(512)
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"reading train from .* failed: .*--verify .* DALI says: nvImageCodec failure"):
        list(open_loader(copy, "train", 32, backend="dali"))


def test_a_label_out_of_range_is_an_error(numbered_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(numbered_shards, tmp_path / "copy")
    path = copy / "val-000000.tar"
    data = path.read_bytes()
    with tarfile.open(path, "r:") as tar:
        offset = next(member.offset_data for member in tar if member.name.endswith(".cls"))
    path.write_bytes(data[:offset] + b"777" + data[offset + 3 :])
    with pytest.raises(DataError, match="label outside 0 to 100"):
        list(open_loader(copy, "val", 8, backend="dali"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"split": "test"}, DataError, "no split 'test', only train, val"),
        ({"batch_size": 500}, DataError, "lower the batch size"),
        ({"batch_size": 0}, ValueError, "batch_size is 0: it must be at least 1"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank is 2: it must be from 0 to 1"),
        ({"backend": "magic"}, ValueError, "only auto, dali, turbo, synthetic"),
        ({"augment": "none"}, ValueError, "only paper, source2012"),
        ({"backend": "dali", "on_error": "skip"}, ValueError, "on_error needs the backend turbo"),
        ({"augment": Augment(size=300)}, DataError, "too small for crops of 300"),
    ],
)
def test_wrong_arguments_are_refused(demo_shards: Path, arguments: dict, error, words: str) -> None:
    with pytest.raises(error, match=words):
        open_loader(demo_shards, **arguments)


def test_opening_shards_imports_no_network() -> None:
    """Check a dependency rule of the design: pipelines never imports alexnet."""
    modules = ", ".join(f"pipelines.{name}" for name in ("dali", "turbo", "synthetic", "preprocess"))
    program = f"import sys, {modules}; sys.exit('alexnet' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
