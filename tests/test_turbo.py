"""Tests of the CPU loader: right pixels for all shards, any resume, named errors, and no leaked threads or memory."""

import hashlib
import os
import re
import resource
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from benchmarks.first_batch import BATCH_SIZE, of_imagenets_size
from pipelines import Augment, DataError, Loader, load_manifest, open_loader
from pipelines.augment import Jitter, colour_matrix, load_mean_image
from pipelines.crops import resized_box
from pipelines.plan import Plan
from pipelines.sharding.verify import verify
from pipelines.shards.index import list_samples
from pipelines.shards.records import Records
from pipelines.turbo.buffers import Layout, LentBuffers
from pipelines.turbo.decode import read_member
from pipelines.turbo.normalise import Normalise, OnDevice
from pipelines.turbo.randomness import draw, epoch_order
from tests.conftest import NUMBERED_IMAGES, command, shard, wait_until, without_checksums

PIXELS = Augment(crop="center", flip=False, normalise="none")


def turbo(
    folder: Path, split: str = "train", batch_size: int = 8, augment: str | Augment = PIXELS, **options
) -> Loader:
    return open_loader(folder, split, batch_size, augment, backend="turbo", **options)


def labels_of(batches: Iterable) -> list[int]:
    return [label for batch in batches for label in batch.labels[: batch.valid].tolist()]


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 pictures of many sizes, smooth as photographs are, one of them grey."""
    folder = tmp_path_factory.mktemp("any") / "images"
    rng = np.random.default_rng(0)
    sizes = [(500, 375), (375, 500), (256, 256), (300, 1200), (1200, 900), (257, 260)] * 4
    for number, (height, width) in enumerate(sizes):
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        picture = rough.resize((width, height), Image.Resampling.BICUBIC)
        for split in ("train", "val"):
            path = folder / split / f"c{number % 2}" / f"{split}_{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            (picture.convert("L") if number == 3 else picture).save(path, quality=90)
    return folder


@pytest.fixture(scope="module")
def folders(any_size: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("folders")
    made = {resize: shard(any_size, out / resize, resize=resize) for resize in ("square", "shorter", "none")}
    return made | {"raw": shard(any_size, out / "raw", encoding="raw")}


def stored(folder: Path, split: str = "val") -> list[torch.Tensor]:
    """Return the images of a split in order, as Pillow decodes them: 3,H,W uint8."""
    manifest = load_manifest(folder)
    records = Records(manifest, split)
    images = (read_member(bytes(records.read(i).data), manifest.image) for i in range(len(records)))
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def oracle(image: torch.Tensor) -> torch.Tensor:
    """Resize the shorter side to 256, antialiased bicubic, and crop the centre, all by torchvision."""
    height, width = image.shape[1:]
    shorter = [max(256, round(side * 256 / min(height, width))) for side in (height, width)]
    if shorter != [height, width]:
        image = transforms.resize(image, shorter, transforms.InterpolationMode.BICUBIC, antialias=True)
    top, left = ((side - 224 + 1) // 2 for side in image.shape[1:])  # a half is rounded up, as by DALI
    return transforms.crop(image, top, left, 224, 224)


@pytest.mark.parametrize("kind", ["square", "shorter", "none", "raw"])
def test_evaluation_sees_what_torchvision_would(folders: dict[str, Path], kind: str) -> None:
    """Check up to rounding: two libjpeg-turbo builds differ by single steps in the inverse transform and the chroma."""
    images = torch.cat([batch.images[: batch.valid] for batch in turbo(folders[kind], "val", 5)])
    for image, source in zip(images, stored(folders[kind]), strict=True):
        error = (image.float() - oracle(source).float()).abs()
        assert error.max() <= (0 if kind == "raw" else 6) and error.mean() < 0.3


@pytest.mark.parametrize("kind", ["square", "none"])
def test_ten_crops_are_five_and_the_same_mirrored_in_consecutive_rows(folders: dict[str, Path], kind: str) -> None:
    batch = next(iter(turbo(folders[kind], "val", 4, replace(PIXELS, crop="ten"))))
    assert batch.images.shape == (40, 3, 224, 224) and batch.labels.shape == (4,)
    image = stored(folders[kind])[0]
    whole = image if kind == "square" else transforms.resize(image, [256], transforms.InterpolationMode.BICUBIC)
    *corners, _ = transforms.five_crop(whole, [224, 224])  # top left, top right, bottom left, bottom right
    five = [*corners, oracle(image)]
    ten = [*five, *map(transforms.horizontal_flip, five)]
    for ours, theirs in zip(batch.images[:10], ten, strict=True):
        assert (ours.float() - theirs.float()).abs().mean() < 0.5


@pytest.mark.parametrize("kind", ["square", "shorter", "none", "raw"])
def test_dali_and_turbo_evaluate_the_same_pixels(folders: dict[str, Path], kind: str) -> None:
    """Check up to the rounding of decoders and, under none, of two antialiased bicubic filters."""
    pytest.importorskip("nvidia.dali")
    theirs, ours = (
        torch.cat([batch.images for batch in open_loader(folders[kind], "val", 8, PIXELS, backend=backend)]).float()
        for backend in ("dali", "turbo")
    )
    error = (ours - theirs).abs()
    assert error.mean() < (1 if kind == "none" else 0.3) and error.max() <= (32 if kind == "none" else 6)


def test_a_random_crop_of_a_large_image_is_near_to_the_one_of_the_resized_image(folders: dict[str, Path]) -> None:
    """Check that a linear resize of a part, to whole pixels, is close to an antialiased resize of everything."""
    loader = turbo(folders["none"], "val", 24, Augment(flip=False, normalise="none"), training=True)
    (batch,) = list(loader)
    draws, order = draw(0, 0, Augment(flip=False), first=0, count=24), epoch_order(0, 0, 24)
    sources = stored(folders["none"])
    for image, sample, shape in zip(batch.images, order, draws.crop_draws, strict=True):
        source = sources[sample]
        whole = transforms.resize(source, [256], transforms.InterpolationMode.BICUBIC).float()
        top, left = int(shape[0] * (whole.shape[1] - 223)), int(shape[1] * (whole.shape[2] - 223))
        error = (image.float() - whole[:, top : top + 224, left : left + 224]).abs()
        assert error.mean() < 3, sample  # half a pixel of a smooth image


def test_resized_crops_have_torchvisions_areas_and_places() -> None:
    scale, ratio, draws = (0.08, 1.0), (3 / 4, 4 / 3), 4000
    torch.manual_seed(0)
    blank = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(draws)])
    shapes = draw(1, 2, Augment(crop="resized"), first=0, count=draws).crop_draws
    ours = np.array([resized_box(shape, (375, 500), scale, ratio) for shape in shapes])
    assert (ours[:, 0] + ours[:, 2]).max() <= 375 and (ours[:, 1] + ours[:, 3]).max() <= 500 and ours.min() >= 0
    spread = np.hypot(ours.std(0), theirs.std(0)) / draws**0.5
    assert (abs(ours.mean(0) - theirs.mean(0)) < 5 * spread).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.08)  # five deviations of the deviation of 4000 draws


def test_jitter_is_the_formula_cut_off_and_rounded(folders: dict[str, Path]) -> None:
    augment = Augment(crop="center", flip=False, normalise="none", jitter=Jitter(0.4, 0.4, 0.4, 0.1))
    jittered, plain = (
        next(iter(turbo(folders["square"], "val", 24, which, training=True))).images.permute(0, 2, 3, 1)
        for which in (augment, PIXELS)
    )
    matrices = draw(0, 0, augment, first=0, count=24).colours
    assert matrices is not None
    for image, source, matrix in zip(jittered, plain, matrices, strict=True):
        expected = np.clip(source.numpy() @ matrix[:, :3].T + matrix[:, 3], 0, 255)
        # half a step of rounding, and OpenCV's factors are whole 1024ths: 3 * 255 / 2048
        assert np.abs(image.numpy() - expected).max() < 0.5 + 0.38


def test_jitter_that_changes_nothing_changes_nothing() -> None:
    matrix, offset = colour_matrix(1, 1, 1, 0)
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)
    assert not offset.any()


@pytest.mark.parametrize("normalise", ["mean_image", "mean", "mean_std"])
def test_one_image_and_a_batch_are_normalised_alike(folders: dict[str, Path], normalise) -> None:
    """Compare NumPy, used for one image on a CPU, with torch, used for a batch on the GPU; here both run on the CPU."""
    manifest = load_manifest(folders["square"])
    augment = Augment(normalise=normalise, lighting=0.1, lit_divisor=1.1)
    finish = Normalise(manifest, augment, torch.device("cpu"))
    assert isinstance(finish.batch, OnDevice)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 224, 224, 3), np.uint8)
    views = np.array([(0, 0, 0), (3, 32, 1), (32, 5, 0), (7, 9, 1), (32, 32, 1), (0, 32, 0)])
    colours = finish.colours(rng.normal(size=(6, 3)))
    out = np.empty(pixels.shape, np.float32)
    for one, view, colour, place in zip(pixels, views.tolist(), colours, out, strict=True):
        finish.one(one, (view[0], view[1], bool(view[2])), colour, place)
    batch = finish.batch(*map(torch.from_numpy, (pixels, views, colours))).float().numpy()
    np.testing.assert_allclose(batch, out, rtol=2e-3, atol=2e-3)  # float16 has eleven bits


def test_the_mean_image_is_taken_off_where_the_image_was_cropped(folders: dict[str, Path]) -> None:
    manifest = load_manifest(folders["square"])
    mean = torch.from_numpy(load_mean_image(manifest)).permute(2, 0, 1)
    subtracted = next(iter(turbo(folders["square"], "val", 4, replace(PIXELS, normalise="mean_image")))).images
    plain = next(iter(turbo(folders["square"], "val", 4))).images
    torch.testing.assert_close(subtracted, plain - mean[:, 16:240, 16:240], atol=1e-3, rtol=0)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_take_disjoint_parts_of_the_order_and_equally_many(world_size: int) -> None:
    for samples in (1, 9, 101, 203, 1000):
        for batch_size in (1, 3, 8):
            plans = [
                Plan(samples=samples, batch_size=batch_size, rank=rank, world_size=world_size, training=True)
                for rank in range(world_size)
            ]
            batches = plans[0].batches
            firsts = [plan.first(batch * plan.step) for plan in plans for batch in range(batches)]
            places = [place for first in firsts for place in range(first, first + batch_size)]
            assert sorted(places) == list(range(batches * batch_size * world_size))
            assert samples - len(places) < batch_size * world_size, "less than a batch of each is left out"


def test_the_order_depends_on_seed_and_epoch_alone(numbered_shards: Path) -> None:
    loader, later = turbo(numbered_shards), turbo(numbered_shards, threads=1)
    epochs = [labels_of(loader) for _ in range(5)]
    later.epoch = 2
    assert labels_of(later) == epochs[2] and later.epoch == 3
    assert labels_of(turbo(numbered_shards, seed=1)) != epochs[0]
    assert all(len(set(epoch)) == 96 for epoch in epochs) and set().union(*epochs) == set(range(NUMBERED_IMAGES))


def test_other_ranks_and_batches_go_on_with_the_samples_that_nobody_has_had(numbered_shards: Path) -> None:
    before = [turbo(numbered_shards, batch_size=5, rank=rank, world_size=2) for rank in range(2)]
    seen = [label for loader in before for label in labels_of(islice(loader, 4))]
    after = [turbo(numbered_shards, batch_size=7, rank=rank, world_size=3) for rank in range(3)]
    for loader in after:
        loader.load_state_dict(before[0].state_dict())
    rest = [labels_of(loader) for loader in after]
    assert [len(labels) for labels in rest] == [14, 14, 14], "61 are left: two batches of 7 on each of 3"
    shown = seen + [label for labels in rest for label in labels]
    assert len(shown) == len(set(shown)) == 40 + 42


RESUME = """
import hashlib, sys, torch
from itertools import islice
from pipelines import open_loader
loader = open_loader(sys.argv[1], "train", 16, "modern", backend="turbo", seed=4)
loader.load_state_dict(torch.load(sys.argv[2], weights_only=True))
digest = hashlib.sha256()
for batch in islice(loader, 3):
    digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
print(digest.hexdigest())
"""


def test_a_new_process_goes_on_with_the_same_bytes(demo_shards: Path, tmp_path: Path) -> None:
    batches = iter(loader := turbo(demo_shards, batch_size=16, augment="modern", seed=4))
    for _ in range(5):
        next(batches)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    digest = hashlib.sha256()
    for batch in islice(batches, 3):
        digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
    done = command("-c", RESUME, demo_shards, tmp_path / "state.pt")
    assert done.stdout.strip() == digest.hexdigest(), done.stderr[-1000:]


def test_a_state_of_another_backend_is_refused(numbered_shards: Path) -> None:
    state = turbo(numbered_shards).state_dict() | {"backend": "dali"}
    with pytest.raises(DataError, match="backend was 'dali', now 'turbo'"):
        turbo(numbered_shards).load_state_dict(state)


@pytest.fixture
def damaged(numbered_shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(numbered_shards, tmp_path / "damaged")


def member(folder: Path, shard_name: str, suffix: str) -> tuple[str, int]:
    """Return the name of the third sample's member, and the offset of its contents."""
    with tarfile.open(folder / shard_name, "r:") as tar:
        found = [entry for entry in tar if entry.name.endswith(suffix)][2]
        return found.name, found.offset_data


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def break_image(folder: Path) -> str:
    """Overwrite the first marker, so that no decoder goes on. Return the member's name."""
    name, offset = member(folder, "val-000000.tar", ".jpg")
    overwrite(folder / "val-000000.tar", offset, b"\xff\xd9")
    return name


def break_entropy(folder: Path) -> str:
    name, offset = member(folder, "val-000000.tar", ".jpg")
    overwrite(folder / "val-000000.tar", offset + 1500, b"\xff\xd9")
    return name


def break_label(folder: Path) -> str:
    name, offset = member(folder, "val-000000.tar", ".cls")
    overwrite(folder / "val-000000.tar", offset, b"777")
    return name


def break_name(folder: Path) -> str:
    """Write a path that leads out of the folder into the tar and the index. Return that path."""
    name, offset = member(folder, "val-000000.tar", ".jpg")
    evil = ("../" + name[3:]).encode()
    overwrite(folder / "val-000000.tar", offset - 512, evil)
    index = folder / "val-000000.idx"
    index.write_bytes(index.read_bytes().replace(name.encode(), evil))
    return evil.decode()


def break_header(folder: Path) -> str:
    name, offset = member(folder, "val-000000.tar", ".jpg")
    overwrite(folder / "val-000000.tar", offset - 512, bytes(512))
    return name


def lose_label(folder: Path) -> str:
    index = folder / "val-000000.idx"
    lines = index.read_text().splitlines(keepends=True)
    lines[3] = lines[3].split(" cls")[0] + "\n"
    index.write_text("".join(lines))
    return "damaged line in the index: jpg"


def shift_index(folder: Path) -> str:
    name, offset = member(folder, "val-000000.tar", ".jpg")
    index = folder / "val-000000.idx"
    index.write_text(index.read_text().replace(f" {offset} ", f" {offset + 1} "))
    return name


BREAKS = [break_image, break_entropy, break_label, break_name, break_header, lose_label, shift_index]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("damage", BREAKS)
def test_a_damaged_sample_is_an_error_with_shard_and_key_or_skipped_and_reported(
    damaged: Path, damage, native: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check with the compiled part, if it was built, and without it."""
    if not native:
        monkeypatch.setattr("pipelines.turbo.native.has_native", lambda: False)
    name = damage(damaged)
    with pytest.raises(DataError, match="--verify") as error:
        list(turbo(damaged, "val"))
    assert "val-000000.tar" in str(error.value) and name.rpartition(".")[0] in str(error.value)
    loader = turbo(damaged, "val", on_error="skip")
    for _ in range(2):
        labels = labels_of(loader)
        assert len(set(labels)) == len(labels) == NUMBERED_IMAGES - 1
    assert len(loader.skipped) == 1 and loader.skipped[0][0] == "val-000000.tar"
    assert caplog.text.count("skipped: val-000000.tar") == 1, "said once"


def test_in_training_the_next_sample_takes_the_place_of_a_damaged_one(damaged: Path) -> None:
    labels = [Records(load_manifest(damaged), "val").read(sample).label for sample in range(101)]
    bad, order = labels[2], [labels[sample] for sample in epoch_order(0, 0, 101)]
    break_image(damaged)
    loader = turbo(damaged, "val", 101, training=True, on_error="skip")
    expected = [order[i + 1 - 101] if label == bad else label for i, label in enumerate(order)]
    assert labels_of(loader) == expected


def spans(folder: Path) -> list[slice]:
    """Return the bytes of each sample in the first val shard, from the image's header to the label's end, as slices."""
    lines = [line.split() for line in (folder / "val-000000.idx").read_text().splitlines()[1:]]
    return [slice(int(line[1]) - 512, int(line[5]) + int(line[6])) for line in lines]


@pytest.fixture(scope="module")
def unmarked(numbered_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards without restart markers, several of whose images have as many bytes."""
    return shard(numbered_images, tmp_path_factory.mktemp("unmarked") / "shards", shard_mb=0.5, no_restarts=True)


@pytest.mark.parametrize("native", [True, False])
def test_a_flipped_label_and_swapped_images_are_named(
    unmarked: Path, tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check samples that look healthy to a reader that does not know their checksums."""
    damaged = shutil.copytree(unmarked, tmp_path / "damaged")
    if not native:
        monkeypatch.setattr("pipelines.turbo.native.has_native", lambda: False)
    path = damaged / "val-000000.tar"
    tar, places = bytearray(path.read_bytes()), spans(damaged)
    digit = places[2].stop - 1
    tar[digit] = ord("0") + (tar[digit] - ord("0") + 1) % 10
    sizes = [span.stop - span.start for span in places]
    first, second = next(
        (a, b)
        for a in range(4, len(sizes))
        for b in range(a)
        if sizes[a] == sizes[b] and b != 2 and tar[places[a]][124:136] == tar[places[b]][124:136]
    )
    images = [slice(places[row].start + 512, places[row].stop - 515) for row in (first, second)]
    tar[images[0]], tar[images[1]] = tar[images[1]], tar[images[0]]
    path.write_bytes(tar)
    loader = turbo(damaged, "val", on_error="skip")
    assert sum(batch.valid for batch in loader) == 98
    listed, _ = list_samples(load_manifest(damaged), "val")
    assert {key for _, key, _ in loader.skipped} == {listed[row] for row in (2, first, second)}
    assert all("checksum" in reason for _, _, reason in loader.skipped)
    with pytest.raises(DataError, match="checksum"):
        verify(damaged, 1)


def test_shards_without_checksums_are_read_as_before(damaged: Path) -> None:
    expected = labels_of(turbo(damaged, "val"))
    without_checksums(damaged)
    path = damaged / "val-000000.tar"
    path.write_bytes(re.sub(rb"[0-9a-f]{8}(?=\0{4})", bytes(8), path.read_bytes()))
    assert labels_of(turbo(damaged, "val")) == expected


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_even_if_samples_may_be_skipped(damaged: Path) -> None:
    loader = turbo(damaged, "val", on_error="skip")
    os.truncate(damaged / "val-000000.tar", 30_000)
    with pytest.raises(DataError, match=r"val-000000\.tar ends at byte 30000"):
        list(loader)
    with pytest.raises(DataError, match="ends at byte"):  # the same again, and no hang
        list(loader)


def test_an_index_of_another_length_is_an_error(damaged: Path) -> None:
    index = damaged / "val-000000.idx"
    index.write_bytes(index.read_bytes().rpartition(b"\njpg")[0] + b"\n")
    with pytest.raises(DataError, match=r"index .*val-000000\.idx does not list"):
        list(turbo(damaged, "val"))


def test_epochs_left_early_leave_no_threads(numbered_shards: Path) -> None:
    before = threading.active_count()
    loader = turbo(numbered_shards, threads=2)
    for _ in range(50):
        for _batch in islice(loader, 2):
            pass
    wait_until(lambda: threading.active_count() <= before + 2, "epochs leave threads")
    loader.close()
    wait_until(lambda: threading.active_count() <= before, "closed loaders leave threads")


def test_a_batch_belongs_to_whoever_holds_it(numbered_shards: Path) -> None:
    loader = turbo(numbered_shards, augment="crop_flip")
    batches = [(batch.images, batch.images.clone()) for batch in loader]
    views = [images[2:3] for images, _ in batches]
    assert all(torch.equal(images, copy) for images, copy in batches)
    copies = [view.clone() for view in views]
    del batches
    list(loader)
    assert all(torch.equal(view, copy) for view, copy in zip(views, copies, strict=True))


def test_memory_is_used_again_only_when_no_view_of_it_is_left() -> None:
    buffers = LentBuffers(Layout(rows=2, images=2, size=4), np.float32)
    lent = buffers.take()
    images, part = lent.images, lent.memory.permute(0, 3, 1, 2)[1:]
    del lent
    assert buffers.take().images is not images
    del part
    assert buffers.take().images is images


@pytest.mark.slow
def test_the_first_of_1281170_samples_come_without_a_call_for_each(folders: dict[str, Path], tmp_path: Path) -> None:
    """Check that Python calls, in all threads, are fewer than samples: indices are read as arrays, not line by line."""
    folder = of_imagenets_size(folders["square"], tmp_path / "large")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        batch = next(iter(turbo(folder, batch_size=BATCH_SIZE)))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    assert len(batch.images) == BATCH_SIZE and calls < 1_000_000, calls


@pytest.mark.slow
def test_twenty_epochs_take_no_more_memory_than_three(demo_shards: Path) -> None:
    loader = turbo(demo_shards, batch_size=50, augment="modern")
    sizes = []
    for _ in range(20):
        for _batch in loader:
            pass
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    print([size >> 20 for size in sizes], "MiB")
    assert sizes[-1] < 1.03 * sizes[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", ["paper", "modern", "crop_flip"])
def test_a_gpu_gets_the_batches_of_a_cpu_in_half_precision(folders: dict[str, Path], augment: str) -> None:
    here, there = (list(turbo(folders["square"], augment=augment, device=device)) for device in ("cpu", "cuda"))
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.images.dtype == torch.float16 and theirs.images.device.type == "cuda"
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(theirs.images.float().cpu(), ours.images, rtol=2e-3, atol=2e-3)
        assert torch.equal(theirs.labels.cpu(), ours.labels)
