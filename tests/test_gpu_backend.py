"""Tests of the gpu backend with its kernels emulated on the CPU: the batches are turbo's, and so are the errors."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.log import read_log
from pipelines import AUGMENTS, Augment, Batch, DataError, Loader, factory, open_loader
from pipelines.gpu import batches as gpu_batches
from pipelines.gpu import decoder, opening, resident
from pipelines.sharding import members
from pipelines.shards.locations import Locations
from pipelines.turbo.native import has_native
from tests.conftest import SMALLEST, assert_refused, script, shard, wait_until, without_checksums
from tests.test_device_copies import Gpu, pretended

pytestmark = pytest.mark.skipif(
    not has_native() or bool(opening.missing_part()), reason="needs the compiled parts, of this version"
)
PIXELS = Augment(crop="random", normalise="none", size=64)


def smaller(name: str) -> Augment:
    """Return an augmentation with crops of 64 of 96 pixels, at least half of the image, so that nothing is shrunk."""
    return replace(AUGMENTS[name], size=64, scale=(0.5, 1.0))


def pictures(folder: Path, train: int, val: int) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            path = folder / split / f"c{number % 3}" / f"{split}_{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((130, 100)).save(path)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("gpu") / "images", 45, 21)


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(images, tmp_path_factory.mktemp("gpu") / "shards", size=96, shard_mb=0.05)


@pytest.fixture(scope="module")
def mixed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of which every third file has another quality, and so another header."""
    encode, qualities = members.encode_jpeg, iter([90, 90, 60] * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "encode_jpeg", lambda pixels, _: encode(pixels, next(qualities)))
        return shard(images, tmp_path_factory.mktemp("mixed") / "shards", size=96, shard_mb=0.05)


def opened(backend: str, folder: Path, split: str = "train", augment: Any = PIXELS, **options: Any) -> Loader:
    options = {"batch_size": 8, "seed": 3, "threads": 2} | options
    return open_loader(folder, split, augment=augment, backend=backend, **options)


def pairs(folder: Path, *given: Any, epochs: int = 1, **options: Any) -> Iterator[tuple[Batch, Batch]]:
    """Yield the batches of turbo and gpu side by side, after comparing all but the pixels."""
    resident = options.pop("resident", False)
    with (
        closing(opened("turbo", folder, *given, **options)) as turbo,
        closing(opened("gpu", folder, *given, **options, resident=resident)) as gpu,
    ):
        for _ in range(epochs):
            for theirs, ours in zip(turbo, gpu, strict=True):
                assert torch.equal(ours.labels, theirs.labels) and ours.valid == theirs.valid
                assert (ours.keys, ours.extras) == (theirs.keys, theirs.extras)
                assert ours.images.dtype == theirs.images.dtype and ours.images.shape == theirs.images.shape
                assert ours.images.is_contiguous(memory_format=torch.channels_last)
                yield theirs, ours
        assert gpu.skipped == turbo.skipped


def difference(theirs: Batch, ours: Batch) -> float:
    """Return the largest difference of the pixels that count."""
    rows = theirs.valid * len(theirs.images) // len(theirs.labels)
    return float((ours.images[:rows].float() - theirs.images[:rows].float()).abs().max())


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["paper", "source2012", "torchvision", "modern", "crop_flip"])
def test_batches_are_turbos(folder: Path, name: str, split: str, resident: bool) -> None:
    """Check random and center crops to the bit, resized ones within a level, and within two after jitter."""
    levels = {"torchvision": 1, "modern": 2}.get(name, 0) if split == "train" else 0
    augment = smaller(name)
    deviation = 50  # the pixels' is above it
    most = levels / deviation if augment.normalise == "mean_std" else levels
    epochs = 2 if split == "train" else 1
    worst = [difference(*pair) for pair in pairs(folder, split, augment, epochs=epochs, keys=True, resident=resident)]
    assert len(worst) == {"train": 10, "val": 3}[split] and max(worst) <= max(most, 1e-4)


@pytest.mark.parametrize("name", ["crop_flip", "torchvision", "modern"])
def test_uint8_pixels_are_turbos(folder: Path, name: str) -> None:
    augment = replace(smaller(name), normalise="none")
    worst = [difference(*pair) for pair in pairs(folder, "train", augment)]
    assert max(worst) <= {"crop_flip": 0, "torchvision": 1, "modern": 2}[name]


@pytest.mark.parametrize("normalise", ["none", "mean_image"])
@pytest.mark.parametrize("resident", [False, True])
def test_ten_crops_are_turbos(folder: Path, normalise: Any, resident: bool) -> None:
    augment = Augment(crop="ten", flip=False, normalise=normalise, size=64)
    assert max(difference(*pair) for pair in pairs(folder, "val", augment, resident=resident)) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_get_turbos_parts(folder: Path, world_size: int, split: str) -> None:
    """Check with a resident split, of which in evaluation each rank holds its own share."""
    held = []
    for rank in range(world_size):
        ranks = {"batch_size": 4, "rank": rank, "world_size": world_size, "resident": True}
        assert all(difference(*pair) == 0 for pair in pairs(folder, split, **ranks))
        with closing(opened("gpu", folder, split, **ranks)) as loader:
            next(iter(loader))
            held.append(len(loader._source._source.resident.data))  # type: ignore[union-attr]
    whole = opened("gpu", folder, split, resident=True)._open_backend.args[1].func.__self__._source.resident.data  # type: ignore[attr-defined]
    assert held == [len(whole)] * world_size if split == "train" else sum(held) == len(whole)


def test_a_run_goes_from_one_backend_to_the_other_and_back(folder: Path) -> None:
    expected = [batch.images for batch in opened("turbo", folder)]
    found, state = [], None
    for backend, batches in (("turbo", 2), ("gpu", 1), ("turbo", 1), ("gpu", 1)):
        loader = opened(backend, folder)
        if state:
            loader.load_state_dict(state)
        found += [batch.images for batch in islice(loader, batches)]
        state = loader.state_dict()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_other_ranks_and_batches_go_on(folder: Path) -> None:
    before = opened("gpu", folder, batch_size=10)
    next(iter(before))
    for backend in ("turbo", "gpu"):
        after = [opened(backend, folder, batch_size=7, rank=rank, world_size=2) for rank in range(2)]
        for loader in after:
            loader.load_state_dict(before.state_dict())
        labels = [[batch.labels.tolist() for batch in loader] for loader in after]
        if backend == "turbo":
            expected = labels
    assert labels == expected and len(labels[0]) == 2


def test_another_seed_is_refused_as_by_turbo(folder: Path) -> None:
    with pytest.raises(DataError, match="seed was 3, now 4"):
        opened("gpu", folder, seed=4).load_state_dict(opened("turbo", folder).state_dict())


def mirrored(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert images.dtype == torch.uint8
    return 255 - images.flip(3), labels + torch.randint(0, 9, labels.shape)


@pytest.mark.parametrize("augment", [PIXELS, smaller("paper")])
def test_a_transform_sees_turbos_pixels(folder: Path, augment: Augment) -> None:
    assert max(difference(*pair) for pair in pairs(folder, "train", augment, transform=mirrored)) <= 1e-4


@pytest.mark.parametrize("resident", [False, True])
def test_files_with_another_header_are_decoded_by_the_cpu(
    mixed: Path, resident: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Check with keys too, for which all rows go through Python."""
    for keys in (False, True):
        assert all(difference(*pair) == 0 for pair in pairs(mixed, "train", keys=keys, resident=resident))
        assert caplog.text.count("their header is not that of most") == 1, "it is said once for each loader"
        caplog.clear()


@pytest.mark.parametrize("resident", [False, True])
def test_crops_that_libjpeg_would_shrink_are_turbos(folder: Path, resident: bool) -> None:
    augment = Augment(crop="resized", size=32, scale=(0.3, 1.0), normalise="none")
    assert max(difference(*pair) for pair in pairs(folder, "train", augment, resident=resident)) <= 1


def test_what_does_not_fit_into_a_batch_is_decoded_by_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_batches, "room_for", lambda rows, mean: 64 * int(rows * mean / 100))
    assert all(difference(*pair) == 0 for pair in pairs(folder))


def test_shards_beyond_the_files_that_may_be_open_are_read_by_python(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.shards.records._half_of_the_files_are_free", lambda: False)
    assert all(difference(*pair) == 0 for pair in pairs(folder))


# Damage


def damage(folder: Path, split: str, row: int, *, at: int, data: bytes) -> str:
    """Overwrite bytes of an image, of the first shard. Return its key."""
    line = (folder / f"{split}-000000.idx").read_text().splitlines()[1 + row].split()
    with (folder / f"{split}-000000.tar").open("r+b") as file:
        file.seek(int(line[1]) + at)
        file.write(data)
    return line[3].removesuffix(".jpg")


@pytest.fixture(params=["checksum", "header", "codes"])
def damaged(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str, str]:
    """Return shards with a bad image in each split, found by its checksum, by turbo, or by the GPU; and their keys."""
    copy = shutil.copytree(folder, tmp_path / "damaged")
    if request.param != "checksum":
        without_checksums(copy)
    at = 2 if request.param == "header" else 900
    train, val = (damage(copy, split, 2, at=at, data=b"\xff\xd9" * 2) for split in ("train", "val"))
    return copy, train, val


@pytest.mark.parametrize("resident", [False, True])
def test_damage_is_named_as_by_turbo(damaged: tuple[Path, str, str], resident: bool) -> None:
    copy, _, key = damaged
    said = []
    for backend in ("turbo", "gpu"):
        with pytest.raises(DataError, match=f"val-000000.tar: sample {key} ") as caught:
            list(opened(backend, copy, "val", resident=resident and backend == "gpu"))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_skipped_sample_is_replaced_as_by_turbo(damaged: tuple[Path, str, str], split: str, resident: bool) -> None:
    for augment in (PIXELS, smaller("paper")):
        found = list(pairs(damaged[0], split, augment, on_error="skip", keys=True, resident=resident))
        assert max(difference(*pair) for pair in found) <= 1e-4
    assert sum(batch.valid for _, batch in found) == (40 if split == "train" else 20)


def test_two_damaged_samples_of_a_batch_are_both_left_out(folder: Path, tmp_path: Path) -> None:
    """One is found by the CPU, which moves the rows behind it, and one behind it by the decoder."""
    copy = without_checksums(shutil.copytree(folder, tmp_path / "damaged"))
    lost = {damage(copy, "val", row, at=at, data=b"\xff\xd9" * 2) for row, at in ((1, 2), (3, 900))}
    found = list(pairs(copy, "val", on_error="skip", keys=True))
    keys = [key for _, batch in found for key in batch.keys[: batch.valid]]
    assert len(keys) == len(set(keys)) == 19 and not lost & set(keys)
    assert max(difference(*pair) for pair in found) == 0


def test_padding_of_an_evaluation_is_not_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those rows would be samples of the next rank, of shards that this one may not even have."""
    seen, of = [], Locations.of
    monkeypatch.setattr(Locations, "of", lambda self, samples: seen.extend(samples.tolist()) or of(self, samples))
    loader = opened("gpu", folder, "val", rank=0, world_size=2)
    batches = list(loader)
    assert max(seen) == loader.plan.own_samples - 1 and sum(batch.valid for batch in batches) == loader.plan.own_samples


# Memory


def test_too_little_memory_is_said_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda _: 30_000)
    monkeypatch.setattr("pipelines.gpu.gather.Gatherer.read", lambda *_: 1 / 0)
    with pytest.raises(
        DataError, match=r"needs 0\.000\d+ GB of memory for train of .*, and 3e-05 GB are free: \d+% would fit"
    ):
        opened("gpu", folder, resident=True)


def test_resident_memory_is_as_foretold_and_freed_when_the_loader_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foretold = []
    monkeypatch.setattr(resident, "check_memory", lambda needed, *_: foretold.append(needed))
    loader = opened("gpu", folder, resident=True)
    for _ in range(2):
        for _batch in islice(loader, 2):
            pass
    assert len(foretold) == 1, "an epoch that is left early does not read the split again"
    source = loader._source._source  # type: ignore[union-attr]
    assert len(source.resident.data) == foretold[0]
    loader.close()
    del source
    next(iter(loader))
    assert len(foretold) == 2


# What auto stands for, wrong arguments and shards


def test_auto_is_gpu_where_shards_and_gpu_allow_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, cuda = opened("turbo", folder).manifest, torch.device("cuda")
    for reason in ("", "the driver supports CUDA 11.4"):
        monkeypatch.setattr("pipelines.gpu.decoder.unavailable", lambda _, reason=reason: reason)
        backend, why = factory._automatic(cuda, manifest, 8, [])
        assert (backend == "gpu") == (not reason) and reason in why
    unmarked = replace(manifest, image=replace(manifest.image, restarts=False))
    backend, why = factory._automatic(cuda, unmarked, 8, ["keys"])
    assert backend == "turbo" and "DALI lacks keys; not gpu: their JPEGs have no restart markers" in why


def test_resident_is_for_gpu_only(folder: Path) -> None:
    with pytest.raises(ValueError, match="resident needs the backend gpu, not turbo"):
        opened("turbo", folder, resident=True)
    assert opened("auto", folder, resident=True).backend == "gpu"
    assert opened("auto", folder).backend == "turbo", "on a CPU"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"encoding": "raw"}, "their pixels are raw: turbo and dali read them; for gpu write JPEGs: .*shard_imagenet"),
        ({"resize": "shorter"}, r"their images differ in size \(--resize shorter\): turbo and dali read them; for gpu"),
        ({"no_restarts": True}, "their JPEGs have no restart markers: turbo and dali read them; for gpu .*SOURCE OUT"),
    ],
)
def test_other_shards_are_refused_with_the_backend_that_reads_them(
    images: Path, tmp_path: Path, made: dict, words: str
) -> None:
    folder = shard(images, tmp_path / "shards", size=96, splits=("val",), **made)
    with pytest.raises(DataError, match=words):
        opened("gpu", folder, "val")
    why = opening.why_not(opened("turbo", folder, "val").manifest, torch.device("cuda"))
    assert why and "\n" not in why, "auto takes another"


def test_a_missing_compiled_part_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "gathering_library", lambda: None)
    with pytest.raises(DataError, match=r"compiled part is missing .*: install a C compiler .*, or use turbo"):
        opened("gpu", folder)


def test_a_decoder_that_cannot_run_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the driver is of CUDA 11.4, and NVRTC 13.2 needs 13.0")

    monkeypatch.setattr(opening, "PieceDecoder", refuse)
    with pytest.raises(DataError, match=r"backend gpu cannot run: the driver is of CUDA 11\.4"):
        opened("gpu", folder)


def test_train_refuses_resident_with_another_backend() -> None:
    assert_refused(script("train.py", "--resident", "--backend", "turbo"), "--resident goes with --backend gpu", code=2)


@pytest.mark.slow
def test_a_run_is_trained_and_resumed_with_either_backend(few_shards: Path, tmp_path: Path) -> None:
    """Check with a run that gpu begins, from memory, and turbo ends: its losses are those of turbo alone."""
    line = ("train.py", "--data", few_shards, *SMALLEST, "--augment", "source2012_quiet", "--out")
    losses = {}
    for name, backends in (("both", ("gpu", "turbo")), ("turbo", ("turbo", "turbo"))):
        first = ("--epochs", "1", "--backend", backends[0], *(["--resident"] if backends[0] == "gpu" else []))
        then = ("--resume", "--epochs", "2", "--backend", backends[1], *(["--no-resident"] if name == "both" else []))
        for more in (first, then):
            done = script(*line, tmp_path / name, *more)
            assert done.returncode == 0, done.stderr
        losses[name] = [e["loss"] for e in read_log(tmp_path / name / "log.jsonl") if e["kind"] == "step"]
    assert losses["both"] == losses["turbo"] and len(losses["both"]) == 4


# Streams, on a pretended GPU that works as late as their order allows


class LateDecoder(decoder.PieceDecoder):
    """The emulated decoder, whose work is queued on the pretended GPU's current stream."""

    gpu: Gpu

    def __init__(self, layout: Any, _: torch.device, **given: Any) -> None:
        super().__init__(layout, torch.device("cpu"), **given)

    def __call__(self, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.empty((len(given[1]), self._size, self._size, 3), dtype=self._dtype)
        status = torch.empty(len(given[1]), dtype=torch.int32)
        made: list[torch.Tensor] = []

        def decode() -> torch.Tensor:
            made.extend(super(LateDecoder, self).__call__(*given))
            return made[0]

        return self.gpu.queue("decode", images, decode), self.gpu.queue("status", status, lambda: made[1])


class CopyingGpu(Gpu):
    """A pretended GPU that copies to the host, too, and places rows of pinned memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and kwargs.get("non_blocking"):
            return self.queue("to the host", args[0], lambda: args[1])
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.__setitem__:
            others, places, pixels = args
            return self.current.add(lambda: others.numpy().__setitem__(places.numpy(), pixels.numpy()))
        if func is torch.empty and "cuda" in str(kwargs.get("device", "")):
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with pretended(monkeypatch, CopyingGpu()) as found:
        monkeypatch.setattr(LateDecoder, "gpu", found, raising=False)
        monkeypatch.setattr(opening, "PieceDecoder", LateDecoder)
        yield found


def test_batches_are_right_however_late_the_gpu_works(folder: Path, gpu: Gpu) -> None:
    """Check two epochs, so that all buffers are used again. Nothing is read before the second one's end."""
    augment = smaller("paper")
    expected = opened("turbo", folder, "train", augment)
    loader = opened("gpu", folder, "train", augment, device="cuda")
    for ours, theirs in zip([*loader, *loader], [*expected, *expected], strict=True):
        assert ours.images.dtype == torch.float16
        images = gpu.read(ours.images).float()
        torch.testing.assert_close(images, theirs.images, rtol=2e-3, atol=2e-3)  # float16 has eleven bits
        assert torch.equal(gpu.read(ours.labels), theirs.labels)


def test_closing_waits_for_the_batches_on_the_gpu(folder: Path, gpu: Gpu) -> None:
    """The next backend decodes by the same decoder, on a stream of its own, into the same memory."""
    loader = opened("gpu", folder, device="cuda")
    batches = iter(loader)
    next(batches)
    source: Any = loader._source
    wait_until(lambda: all(work.whole for work in source._made), "the batches ahead are not read")
    next(batches)
    stream = source._stream._stream
    assert stream.queue, "batches behind the first are under way"
    loader.close()
    assert not stream.queue


def test_batches_are_decoded_beside_the_callers_work_and_their_memory_is_lent(folder: Path, gpu: Gpu) -> None:
    batches = iter(opened("gpu", folder, device="cuda"))
    first, second = next(batches), next(batches)
    used = {tensor.untyped_storage().data_ptr() for batch in (first, second) for tensor in (batch.images, batch.labels)}
    assert used <= {address for address, stream in gpu.uses if stream is gpu.caller}, "torch would reuse it early"
    assert gpu.caller not in {stream for _, stream in gpu.log} and len({stream for _, stream in gpu.log}) == 1


def test_a_damaged_image_is_replaced_behind_the_batches_made_ahead(folder: Path, tmp_path: Path, gpu: Gpu) -> None:
    copy = without_checksums(shutil.copytree(folder, tmp_path / "damaged"))
    damage(copy, "train", 2, at=900, data=b"\xff\xd9" * 2)
    options = {"on_error": "skip", "batch_size": 9}  # no image is left out
    loaders = [opened("turbo", copy, **options), opened("gpu", copy, **options, device="cuda")]
    for theirs, ours in zip(*loaders, strict=True):
        assert torch.equal(gpu.read(ours.images), theirs.images)
    assert loaders[0].skipped == loaders[1].skipped and len(loaders[0].skipped) == 1
