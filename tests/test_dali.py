"""Tests of the DALI graph: each augmentation, and errors that name what is damaged; test_loader tests all loaders."""

import io
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from pipelines import Augment, DataError, load_manifest, open_loader
from pipelines.augment import Jitter, colour_matrix, load_mean_image
from pipelines.dali import graph
from pipelines.dali.batches import DaliBatches
from pipelines.dali.trace import gpu_fault
from pipelines.images.picture import read_picture
from pipelines.plan import Plan
from tests.conftest import command, shard

PLAIN = Augment(crop="center", flip=False, normalise="none")


def opened(folder: Path, augment: str | Augment, batch_size: int = 256, split: str = "train", **options):
    return open_loader(folder, split, batch_size, augment, backend="dali", training=split == "train", **options)


def first_images(folder: Path, augment: str | Augment, batch_size: int = 256, **options) -> torch.Tensor:
    return next(iter(opened(folder, augment, batch_size, **options))).images


def trained(folder: Path, augment: Augment, batch_size: int):
    """Return a training loader of the val images, because evaluation would change the augmentation."""
    return open_loader(folder, "val", batch_size, augment, backend="dali", training=True)


def pictures(folder: Path, split: str) -> list[torch.Tensor]:
    """Return the images of a split in order, as Pillow decodes them; by label if each has a class of its own."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".jpg"):
                label = int(members[name.replace(".jpg", ".cls")])
                found.append((label, torch.from_numpy(read_picture(data, ".jpg").pixels).permute(2, 0, 1)))
    return [picture for _, picture in (sorted(found, key=lambda pair: pair[0]) if "numbered" in str(folder) else found)]


def assert_same_pixels(ours: torch.Tensor, oracle: torch.Tensor) -> None:
    """Check up to rounding: two builds of libjpeg-turbo may round the inverse transform and the chroma differently."""
    error = (ours.float() - oracle.float()).abs()
    assert error.mean() < 1 and error.max() < 24


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 256 equal images. Red encodes the column and green the row, so that a crop shows its place."""
    folder = tmp_path_factory.mktemp("alike")
    ramp = np.arange(256, dtype=np.uint8)
    across, down = np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256))
    image = Image.fromarray(np.stack([across, down, np.full((256, 256), 128, np.uint8)], -1))
    for split, count in (("train", 128), ("val", 1)):
        for name in ("a", "b"):
            (folder / "in" / split / name).mkdir(parents=True)
            for number in range(count):
                image.save(folder / "in" / split / name / f"{number}.png")
    return shard(folder / "in", folder / "out", quality=95)


def windows(images: torch.Tensor) -> torch.Tensor:
    """Return N,5: left, top, right and bottom of each crop, in pixels of the source, and whether it is mirrored."""
    images = images.float()
    first, last = images[:, 0, :, 0].mean(1), images[:, 0, :, -1].mean(1)
    top, bottom = images[:, 1, 0].mean(1), images[:, 1, -1].mean(1)
    return torch.stack([torch.minimum(first, last), top, torch.maximum(first, last), bottom, first > last], 1)


@pytest.mark.parametrize(
    "factors", [(1, 1, 1, 0), (1.3, 1, 1, 0), (1, 0.7, 1, 0), (1, 1, 1.4, 0), (1, 1, 1, 0.1), (1.2, 0.8, 1.3, -0.14)]
)
def test_the_colour_matrix_is_what_dali_does(factors: tuple[float, float, float, float]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    brightness, contrast, saturation, hue = factors
    pipeline = Pipeline(1, 1, None)
    with pipeline:
        pixels = types.Constant(rgb, device="cpu", layout="HWC")
        jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue * 360}
        pipeline.set_outputs(fn.color_twist(pixels, **jitter))
    pipeline.build()
    matrix, offset = colour_matrix(*factors)
    expected = np.clip(rgb @ matrix.T + offset, 0, 255)
    assert np.abs(np.array(pipeline.run()[0][0]) - expected).max() < 0.51  # DALI rounds


def test_jitter_has_the_spread_of_the_recipe(alike: Path) -> None:
    """Check brightness by its factor of the blue value 128, and that saturation and hue do not change lightness."""
    blue = first_images(alike, replace(PLAIN, jitter=Jitter(brightness=0.3)))[:, 2].float().mean((1, 2)) / 128
    assert 0.69 < blue.min() < 0.73 and 1.27 < blue.max() < 1.31
    assert abs(blue.mean() - 1) < 5 * 0.3 / 3**0.5 / 16  # five deviations of the mean of 256
    for jitter in (Jitter(saturation=0.5), Jitter(hue=0.1)):
        corner = first_images(alike, replace(PLAIN, jitter=jitter))[:, :, :20, :20].float().mean((2, 3))  # bluish
        assert (corner[:, 2] - corner[:, 0]).std() > 5
        light = corner @ torch.tensor([0.299, 0.587, 0.114])
        assert light.std() < 1, "colours change, lightness does not"


def test_pixels_that_are_not_normalised_are_those_of_the_image(demo_shards: Path) -> None:
    batch = next(iter(opened(demo_shards, PLAIN, 8, "val")))
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous(memory_format=torch.channels_last)
    for ours, picture in zip(batch.images, pictures(demo_shards, "val"), strict=False):
        assert_same_pixels(ours, transforms.center_crop(picture, [224, 224]))


def test_ten_crops_are_torchvisions_five_and_the_five_mirrored(numbered_shards: Path) -> None:
    batch = next(iter(trained(numbered_shards, replace(PLAIN, crop="ten"), 4)))
    assert batch.images.shape == (40, 3, 224, 224) and batch.labels.shape == (4,)
    for views, label in zip(batch.images.split(10), batch.labels.tolist(), strict=True):
        five = transforms.five_crop(pictures(numbered_shards, "val")[label], [224, 224])
        for ours, oracle in zip(views, [*five, *map(transforms.horizontal_flip, five)], strict=True):
            assert_same_pixels(ours, oracle)


def test_ten_crops_lose_their_own_part_of_the_mean_image(alike: Path) -> None:
    images = first_images(alike, Augment(crop="ten", flip=False, normalise="mean_image"), 2)
    assert images.shape[0] == 20 and images.abs().mean() < 1 and images.abs().max() < 24


def test_the_mean_image_moves_with_the_crop_and_the_flip(alike: Path) -> None:
    """Check that nothing remains of equal images, because the mean image is cropped and mirrored as they are."""
    augment = Augment(normalise="mean_image")
    images = first_images(alike, augment)
    assert images.abs().mean() < 1 and images.abs().max() < 24
    assert len(windows(first_images(alike, replace(augment, normalise="none"))).unique(dim=0)) > 200, "crops differ"


def test_what_was_lit_is_divided(alike: Path) -> None:
    dim = Augment(crop="center", flip=False, lighting=1e-9, normalise="mean")
    divided = first_images(alike, replace(dim, lit_divisor=1.1))
    torch.testing.assert_close(divided * 1.1, first_images(alike, dim), rtol=0, atol=1e-3)


def test_the_mean_image_is_subtracted_and_in_evaluation_nothing_is_divided(demo_shards: Path) -> None:
    augment = replace(PLAIN, normalise="mean_image", lighting=0.1, lit_divisor=1.1)
    ours = next(iter(opened(demo_shards, augment, 8, "val"))).images
    plain = next(iter(opened(demo_shards, PLAIN, 8, "val"))).images
    mean = torch.from_numpy(load_mean_image(load_manifest(demo_shards))[16:240, 16:240]).permute(2, 0, 1)
    torch.testing.assert_close(ours, plain - mean, rtol=0, atol=1e-3)


def test_lighting_is_added_where_the_mean_image_is_subtracted(alike: Path) -> None:
    manifest = load_manifest(alike)
    lit = first_images(alike, Augment(crop="center", flip=False, lighting=0.1, normalise="mean_image")).double()
    dark = first_images(alike, Augment(crop="center", flip=False, normalise="mean_image")).double()
    light = lit - dark
    assert light.std((2, 3)).max() < 1e-3, "one light for an image"
    expected = 0.1 * np.sqrt(manifest.statistics.eigenvalues[0])
    along = light.mean((2, 3)) @ torch.tensor([row[0] for row in manifest.statistics.eigenvectors], dtype=torch.float64)
    np.testing.assert_allclose(along.std(), expected, rtol=0.25)  # five deviations of 256 draws


def test_a_resized_crop_of_everything_is_torchvisions_resize(numbered_shards: Path) -> None:
    whole = Augment(crop="resized", scale=(1, 1), ratio=(1, 1), flip=False, normalise="none")
    batch = next(iter(trained(numbered_shards, whole, 8)))
    for ours, label in zip(batch.images, batch.labels.tolist(), strict=True):
        picture = pictures(numbered_shards, "val")[label]
        assert_same_pixels(ours, transforms.resize(picture, [224, 224], antialias=True))


def test_resized_crops_have_the_areas_and_ratios_of_the_recipe(alike: Path) -> None:
    """Check areas uniform in 0.2 to 0.8, ratios log-uniform in 3/4 to 4/3, and that half of the images are flipped."""
    augment = Augment(crop="resized", scale=(0.2, 0.8), normalise="none")
    left, top, right, bottom, mirrored = windows(first_images(alike, augment)).T
    width, height = right - left + 1, bottom - top + 1
    area, ratio = width * height / 256**2, width / height
    assert 0.17 < area.min() < 0.25 and 0.74 < area.max() < 0.83
    assert abs(area.mean() - 0.5) < 0.06  # five deviations of the mean of 256
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.42 and abs(ratio.log().mean()) < 0.06
    assert 0.35 < mirrored.mean() < 0.65
    assert left.min() < 5 and right.max() > 250 and top.min() < 5 and bottom.max() > 250


@pytest.mark.parametrize("backend", ["dali", "turbo"])
def test_random_crops_of_images_as_they_came_are_those_of_resized_ones(tmp_path: Path, backend) -> None:
    """Check that 224 of 256 pixels are 280 of 320, anywhere in 480 columns; colours encode every other one."""
    across, down = np.meshgrid(np.arange(480) / 2, np.arange(320) / 2)
    image = Image.fromarray(np.stack([across, down, np.full_like(across, 128)], -1).astype(np.uint8))
    (tmp_path / "in" / "train" / "a").mkdir(parents=True)
    for number in range(128):
        image.save(tmp_path / "in" / "train" / "a" / f"{number}.jpg", quality=95, subsampling=0)
    folder = shard(tmp_path / "in", tmp_path / "out", resize="none", splits=("train",))
    batch = next(iter(open_loader(folder, "train", 128, Augment(normalise="none"), backend=backend)))
    left, top, right, bottom, mirrored = windows(batch.images).T * 2
    assert ((right - left - 280).abs() < 5).all() and ((bottom - top - 280).abs() < 5).all()
    assert left.min() < 12 and right.max() > 464 and top.min() < 4 and bottom.max() > 314
    assert abs((left + right).mean() / 2 - 240) < 25  # five deviations of the mean of 128
    assert 0.3 < mirrored.mean() / 2 < 0.7


def test_archives_come_in_another_order_each_epoch(numbered_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check which archive comes first, with a shuffle buffer too small to mix archives."""
    monkeypatch.setattr(graph, "SHUFFLE_BUFFER", 1)
    archives = [archive_labels(path) for path in sorted(numbered_shards.glob("train-*.tar"))]
    loader = opened(numbered_shards, PLAIN, 8)
    first = []
    for _ in range(8):
        labels = set(next(batch.labels.tolist() for batch in list(loader)))
        first += [index for index, archive in enumerate(archives) if labels <= archive]
    assert len(first) == 8 and len(set(first)) > 2


def archive_labels(path: Path) -> set[int]:
    with tarfile.open(path) as tar:
        return {int(tar.extractfile(member).read()) for member in tar if member.name.endswith(".cls")}


def test_world_sizes_share_the_reordered_archives(numbered_shards: Path) -> None:
    for world_size in range(1, 9):
        loaders = [opened(numbered_shards, PLAIN, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
        for _ in range(2):
            epoch = [[label for batch in loader for label in batch.labels.tolist()] for loader in loaders]
            flat = [label for labels in epoch for label in labels]
            assert len(set(flat)) == len(flat) == world_size * (101 // world_size // 4 * 4)


def test_a_fresh_process_goes_on_to_the_bit(demo_shards: Path, tmp_path: Path) -> None:
    """Check bit-identical random draws from the second epoch, with reordered archives, into the third."""
    augments = ("modern", "source2012")
    expected = {}
    for augment in augments:
        loader = opened(demo_shards, augment, 32)
        assert len(list(loader)) == 12
        batches = iter(loader)
        for _ in range(8):
            next(batches)
        torch.save(loader.state_dict(), tmp_path / f"{augment}.pt")
        expected[augment] = [*batches, next(iter(loader))]
    done = command("-c", GO_ON, tmp_path, demo_shards, *augments)
    assert done.returncode == 0, done.stderr
    for augment in augments:
        for found, batch in zip(torch.load(tmp_path / f"{augment}_found.pt"), expected[augment], strict=True):
            assert torch.equal(found["images"], batch.images) and torch.equal(found["labels"], batch.labels)


GO_ON = """
import sys, torch
from pipelines import open_loader
folder, shards, *augments = sys.argv[1:]
for augment in augments:
    loader = open_loader(shards, "train", 32, augment, backend="dali")
    loader.load_state_dict(torch.load(f"{folder}/{augment}.pt", weights_only=True))
    found = [*loader, next(iter(loader))]
    torch.save([batch._asdict() for batch in found], f"{folder}/{augment}_found.pt")
"""


# Damage: each of the functions below changes a copy of the shards at sample 17 of train-000003.


@dataclass
class Victim:
    """A sample of a copy of a shard folder, with its line in the index and its members in the tar."""

    folder: Path
    shard: str = "train-000003"
    row: int = 17

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.shard}.tar"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.shard}.idx"

    @property
    def fields(self) -> list[str]:
        return self.index.read_text().splitlines()[1 + self.row].split(" ")

    @property
    def key(self) -> str:
        return self.fields[3].removesuffix(".jpg")

    def write(self, offset: int, data: bytes) -> None:
        with self.tar.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def write_image(self, offset: int, data: bytes) -> None:
        self.write(int(self.fields[1]) + offset, data)

    def write_fields(self, *fields: str) -> None:
        lines = self.index.read_text().splitlines()
        lines[1 + self.row] = " ".join(fields)
        self.index.write_text("\n".join(lines) + "\n")


def other_header(victim: Victim) -> None:
    victim.write_image(0, bytes(512))


def one_bit(victim: Victim) -> None:
    victim.write_image(0, b"\xfe")


def torn_marker(victim: Victim) -> None:
    victim.write_image(2, b"\0")


def half_an_image(victim: Victim) -> None:
    half = int(victim.fields[2]) // 2
    victim.write_image(half, bytes(half))


def small_image(victim: Victim) -> None:
    """Write a JPEG that every decoder reads, but that is too small for a crop of 224 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (100, 100)).save(file, "JPEG")
    victim.write_image(0, file.getvalue())


def cut_shard(victim: Victim) -> None:
    victim.tar.write_bytes(victim.tar.read_bytes()[:-20480])


def missing_member(victim: Victim) -> None:
    victim.write_fields(*victim.fields[:4])


def missing_line(victim: Victim) -> None:
    victim.index.write_text("\n".join(victim.index.read_text().splitlines()[:-1]) + "\n")


def wrong_offset(victim: Victim) -> None:
    extension, offset, *others = victim.fields
    victim.write_fields(extension, str(int(offset) + 512), *others)


def wrong_size(victim: Victim) -> None:
    extension, offset, size, *others = victim.fields
    victim.write_fields(extension, offset, str(int(size) + 4096), *others)


def path_for_a_name(victim: Victim) -> None:
    *image, _, extension, offset, size, _ = victim.fields
    victim.write_fields(*image, "../x.jpg", extension, offset, size, "../x.cls")


def anothers_index(victim: Victim) -> None:
    victim.index.write_bytes(replace(victim, shard="train-000002").index.read_bytes())


def refused(victim: Victim, augment: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(opened(victim.folder, augment, 32))


@pytest.mark.parametrize("augment", ["crop_flip", "source2012"])
@pytest.mark.parametrize("spoil", [other_header, one_bit, torn_marker, half_an_image, small_image])
def test_an_image_that_cannot_be_used_is_named(demo_shards: Path, tmp_path: Path, augment: str, spoil) -> None:
    victim = Victim(shutil.copytree(demo_shards, tmp_path / "copy"))
    spoil(victim)
    refused(victim, augment, rf"shard train-000003\.tar, image {victim.key} cannot be .*--verify.*DALI says: \S+")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_shard, r"train-000003\.tar has \d+ bytes instead of \d+"),  # no image was read yet
        (missing_member, r"train-000003\.idx does not fit shard .*{key}\.jpg'"),
        (missing_line, r"train-000003\.idx does not fit shard .*: it lists \d+ samples instead of \d+"),
        (wrong_offset, r"train-000003\.idx does not fit shard .*{key}\.jpg"),
        (wrong_size, r"train-000003\.idx does not fit shard .*{key}\.jpg"),
        (path_for_a_name, r"train-000003\.idx does not fit shard .*\.\./x\.jpg"),
        (anothers_index, r"train-000003\.idx does not fit shard .*members end at byte"),
    ],
)
def test_a_damaged_shard_or_index_is_named(demo_shards: Path, tmp_path: Path, spoil, words: str) -> None:
    victim = Victim(shutil.copytree(demo_shards, tmp_path / "copy"))
    key = victim.key
    spoil(victim)
    refused(victim, "crop_flip", words.format(key=key))


@pytest.mark.parametrize("digits", [b"777", b"0:5", b"x00"])
def test_a_label_that_is_none_is_named(numbered_shards: Path, tmp_path: Path, digits: bytes) -> None:
    victim = Victim(shutil.copytree(numbered_shards, tmp_path / "copy"), row=3)
    victim.write(int(victim.fields[5]), digits)
    words = f"shard train-000003.tar, image {victim.key} has a label outside 0 to 100"
    loader = opened(victim.folder, "crop_flip", 8)
    with pytest.raises(DataError, match=words):
        for _ in range(8):  # one epoch may drop the sample with its last batch
            list(loader)


def test_a_damaged_header_never_takes_the_process_with_it(demo_shards: Path, tmp_path: Path) -> None:
    """Guard against crashes of DALI 2.4's decoder, which depend on the place in the batch; in a process of its own."""
    victims = [Victim(shutil.copytree(demo_shards, tmp_path / str(row)), row=row) for row in (3, 12, 20, 30, 40)]
    for victim in victims:
        other_header(victim)
    program = f"""
from pipelines import DataError, open_loader
for folder in {[str(victim.folder) for victim in victims]}:
    try:
        list(open_loader(folder, "train", 32, backend="dali", training=False))
    except DataError as error:
        print(error)
"""
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
    assert all(victim.key in line for victim, line in zip(victims, done.stdout.splitlines(), strict=True))


def test_an_image_is_named_after_a_resume_and_again(demo_shards: Path, tmp_path: Path) -> None:
    """Check with damage done while the run was stopped. A pipeline that failed gives its reason each time."""
    victim = Victim(shutil.copytree(demo_shards, tmp_path / "copy"))
    loader = opened(victim.folder, "crop_flip", 32)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    moved = Victim(shutil.copytree(victim.folder, tmp_path / "moved"))  # a new name: this process keeps mapped files
    other_header(moved)
    resumed = opened(moved.folder, "crop_flip", 32)
    resumed.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(DataError, match=f"image {moved.key} cannot be used"):
            for _ in range(3):
                list(resumed)


# Without a GPU: the same graph on the CPU takes the paths of one.


def cpu_as_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int = 32) -> tuple[DaliBatches, list]:
    """Return batches that copy as from a GPU, and a list of the streams that DALI and the copies are given."""
    from nvidia.dali.plugin import pytorch

    manifest, streams = load_manifest(folder), []
    plan = Plan(samples=manifest.split("val").samples, training=False, rank=0, world_size=1, batch_size=batch_size)
    batches = DaliBatches(manifest, "val", plan, PLAIN, device=torch.device("cpu"), seed=0, threads=1)
    batches._graph = replace(batches._graph, gpu=True)
    run, copy = batches._pipeline.run, pytorch.feed_ndarray
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: 7)
    monkeypatch.setattr(batches._pipeline, "run", lambda stream: (streams.append(("run", stream)), run())[1])
    monkeypatch.setattr(
        pytorch, "feed_ndarray", lambda *a, cuda_stream: (streams.append(("copy", cuda_stream)), copy(*a))[1]
    )
    return batches, streams


def test_a_gpus_batches_are_torchs_own_and_nothing_returns_to_dali(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that no tensor of DALI's is wrapped: dropping one synchronizes the GPU, which ends a CUDA graph's capture.

    DALI and the copy get the stream that torch uses. A batch keeps its pixels although others follow.
    """
    expected = [batch.images.clone() for batch in opened(demo_shards, PLAIN, 32, "val")]
    batches, streams = cpu_as_gpu(demo_shards, monkeypatch)
    monkeypatch.setattr(torch, "from_dlpack", lambda tensor: pytest.fail("a tensor of DALI's was wrapped"))
    held = [batches.next() for _ in expected]
    assert streams == [("run", 7), ("copy", 7)] * len(expected)
    for rows, images in zip(held, expected, strict=True):
        assert torch.equal(rows.images, images) and rows.images.is_contiguous(memory_format=torch.channels_last)


def test_on_a_cpu_pixels_are_dalis_without_a_copy(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _ = cpu_as_gpu(demo_shards, monkeypatch)
    batches._graph = replace(batches._graph, gpu=False)
    wrapped, wrap = [], torch.from_dlpack
    monkeypatch.setattr(torch, "from_dlpack", lambda tensor: (wrapped.append(tensor), wrap(tensor))[1])
    batches.next()
    assert len(wrapped) == 1


GPU_FAULTS = [
    "CUDA runtime API error cudaErrorIllegalAddress (700): an illegal memory access was encountered",
    "CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719)",
    "CUDA allocation failed",
    "Can't allocate 805306368 bytes on device 0.",
    'NVJPEG error "6" : NVJPEG_STATUS_EXECUTION_FAILED',
    "The pipeline requires a CUDA-capable GPU but CUDA runtime initialization failed.",
]


@pytest.mark.parametrize("fault", GPU_FAULTS)
def test_a_fault_of_the_gpu_is_blamed_on_no_image(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    batches, _ = cpu_as_gpu(demo_shards, monkeypatch)

    def fail(_: object) -> None:
        raise RuntimeError(f"Error in MIXED operator `nvidia.dali.fn.decoders.image`,\n\nencountered:\n\n{fault}\n")

    monkeypatch.setattr(batches._pipeline, "run", fail)
    monkeypatch.setattr(batches, "_trace", lambda: pytest.fail("the image was searched for"))
    with pytest.raises(DataError, match=r"^the GPU failed when reading val") as raised:
        batches.next()
    said = str(raised.value)
    assert fault[:20] in said and "image" not in said and "--verify" not in said


def test_a_sample_named_by_the_decoder_of_a_gpu_that_fails_is_not_blamed(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the GPU itself is asked: its decoder names a sample for every kind of failure."""
    batches, _ = cpu_as_gpu(demo_shards, monkeypatch)
    source = f"{demo_shards}/val-000000.tar:512:val_1.jpg"

    def fail(_: object) -> None:
        raise RuntimeError(f'encountered:\n\nFailed to decode sample #3 : "{source}"')

    def lost(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for it.")

    monkeypatch.setattr(batches._pipeline, "run", fail)
    with pytest.raises(DataError, match=r"shard val-000000\.tar, image val_1 cannot be decoded"):
        batches.next()
    monkeypatch.setattr(batches, "_device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(DataError, match=r"^the GPU failed when .*: CUDA error: unspecified launch failure$"):
        batches.next()


@pytest.mark.parametrize(
    "said",
    [
        "Failed to decode sample #3",
        'NVJPEG error "3" : NVJPEG_STATUS_BAD_JPEG',
        "nvJPEG error #4",
        "source /data/cuda/train-000003.tar:512:a.jpg is no JPEG",
    ],
)
def test_what_an_image_can_cause_is_no_fault_of_the_gpu(said: str) -> None:
    assert gpu_fault(RuntimeError(said), torch.device("cpu")) is None


def test_a_search_on_a_gpu_that_fails_ends_without_an_image(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the one-by-one search does not blame the image at which the GPU ran out of memory."""
    batches, _ = cpu_as_gpu(demo_shards, monkeypatch)

    def refuse(_: object) -> None:
        raise RuntimeError('encountered:\n\nAssert on "shape" failed')

    class Full:
        def feed_input(self, *_: object) -> None: ...

        def run(self) -> None:
            raise RuntimeError("Can't allocate 805306368 bytes on device 0.")

    monkeypatch.setattr(batches._pipeline, "run", refuse)
    monkeypatch.setattr("pipelines.dali.trace.Trace._one_by_one", lambda self: Full())
    with pytest.raises(DataError, match=r"^the GPU failed when .*Can't allocate"):
        batches.next()
