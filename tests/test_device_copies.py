"""Tests of turbo's copies to a GPU, without one: a pretended GPU works as late as the order of its streams allows."""

import importlib
import shutil
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from pipelines import Augment, DataError, Loader, open_loader
from pipelines.turbo import batches as turbo_batches
from pipelines.turbo import copies, normalise
from pipelines.turbo.buffers import Layout, buffers_in_a_block
from tests.conftest import wait_until

FIXED = Augment(crop="center", flip=False, normalise="mean", size=32)
MEAN_IMAGE = Augment(normalise="mean_image", lighting=0.1, size=32)


class Event:
    """An event of the pretended GPU. To wait for it runs its stream's work up to where it was recorded."""

    def __init__(self, **_: Any) -> None:
        self.stream: Stream | None = None
        self.end = 0

    def synchronize(self) -> None:
        assert self.stream
        self.stream.run(self.end)


class Stream:
    """A stream of the pretended GPU: a queue of work that runs only when somebody waits for it."""

    gpu: "Gpu"

    def __init__(self, *_: Any) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.queued = self.done = 0

    def add(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.queued += 1

    def run(self, end: int) -> None:
        while self.done < end:
            self.done += 1
            self.queue.popleft()()

    def synchronize(self) -> None:
        self.run(self.queued)

    def wait_event(self, event: Event) -> None:
        self.add(event.synchronize)

    def record_event(self, event: Event) -> Event:
        event.stream, event.end = self, self.queued
        return event


class Gpu(TorchFunctionMode):
    """A pretended GPU, whose memory is the CPU's. Copies are queued on the current stream; ``uses`` are recorded."""

    def __init__(self) -> None:
        self.caller = self.current = Stream()
        self.uses: list[tuple[int, Stream]] = []  # address, stream of each record_stream
        self.log: list[tuple[str, Stream]] = []
        super().__init__()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def queue(self, name: str, out: torch.Tensor, made: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return ``out``, which gets its contents when the current stream runs."""
        self.log.append((name, self.current))
        with torch._C.DisableTorchFunction():
            out.view(torch.uint8).fill_(0xA5)
            self.current.add(lambda: _write(out, made))
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_gpu = "cuda" in str(kwargs.get("device", "")) or any(isinstance(a, torch.device) for a in args)
        with torch._C.DisableTorchFunction():
            if func is torch.Tensor.to and on_gpu:
                source = args[0]
                if not kwargs.get("non_blocking"):
                    return source.clone()
                if source.dtype != torch.uint8:
                    return source  # the loader's labels, which are there
                return self.queue("copy", torch.empty_like(source), lambda: source)
            if func is torch.Tensor.clone and self.current is not self.caller:
                return self.queue("clone", torch.empty_like(args[0]), lambda: args[0])
            return func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})

    def normalise(self, map_: normalise.OnDevice, pixels: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        out = torch.empty(pixels.shape, dtype=torch.float16)
        return self.queue("normalise", out, lambda: map_._by_operations(pixels, *others))

    def record_stream(self, tensor: torch.Tensor, stream: Stream) -> None:
        self.uses.append((tensor.untyped_storage().data_ptr(), stream))

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what a kernel on the caller's stream would read now."""
        self.caller.run(self.caller.queued)
        return tensor.clone()


def _write(out: torch.Tensor, made: Callable[[], torch.Tensor]) -> None:
    with torch._C.DisableTorchFunction():
        out.copy_(made())


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, pretended: Gpu) -> Iterator[Gpu]:
    """Put the pretended GPU in the place of torch's."""
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: pretended.current,
        "stream": pretended.stream,
        "device": lambda *_: nullcontext(),
        "device_count": lambda: 1,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *args: pretended.record_stream(*args))
    monkeypatch.setattr(normalise.OnDevice, "__call__", lambda *args: pretended.normalise(*args))
    with pretended:
        yield pretended


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with pretended(monkeypatch, Gpu()) as found:
        yield found


def open_on(device: str, folder: Path, augment: str | Augment = FIXED, **options: Any) -> Loader:
    options = {"split": "train", "batch_size": 8, "threads": 2} | options
    return open_loader(folder, augment=augment, device=device, backend="turbo", **options)


def on_cpu(folder: Path, augment: str | Augment = FIXED, **options: Any) -> list[Any]:
    return list(open_on("cpu", folder, augment, **options))


def assert_same(gpu: Gpu, ours: Any, theirs: Any) -> None:
    """Check a batch of the pretended GPU, but no padding, up to the rounding of float16, and exactly in uint8."""
    exact = ours.images.dtype == torch.uint8
    images, expected = gpu.read(ours.images)[: ours.valid].to(theirs.images.dtype), theirs.images[: ours.valid]
    torch.testing.assert_close(images, expected, rtol=2e-3, atol=0 if exact else 2e-3)
    assert torch.equal(gpu.read(ours.labels), theirs.labels) and ours.valid == theirs.valid


def filled(loader: Loader) -> turbo_batches.TurboBatches:
    """Return the loader's backend once its threads have filled all batches that they were given."""
    source = loader._source
    assert isinstance(source, turbo_batches.TurboBatches)
    wait_until(lambda: all(part.done() for work in source._made for part in work.parts), "threads end")
    return source


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("augment", [MEAN_IMAGE, replace(FIXED, normalise="none")])
def test_batches_are_those_of_a_cpu_however_late_the_gpu_works(
    numbered_shards: Path, gpu: Gpu, split: str, augment: str | Augment
) -> None:
    """Check in two epochs, so that all buffers are used again. Nothing is read before the epoch's end."""
    expected, loader = (
        on_cpu(numbered_shards, augment, split=split),
        open_on("cuda", numbered_shards, augment, split=split),
    )
    for ours, theirs in zip(list(loader), expected, strict=True):
        assert_same(gpu, ours, theirs)
    assert len(list(loader)) == len(expected)


def test_the_next_batch_is_copied_and_normalised_beside_the_callers_work(numbered_shards: Path, gpu: Gpu) -> None:
    batches = iter(loader := open_on("cuda", numbered_shards))
    for handed_out in (1, 2, 3):
        batch = next(batches)
        if handed_out > 1:
            assert [name for name, _ in gpu.log] == ["copy", "clone", "normalise"] * (handed_out + 1), "one ahead"
        used = {tensor.untyped_storage().data_ptr() for tensor in (batch.images, batch.labels)}
        assert used <= {address for address, stream in gpu.uses if stream is gpu.caller}, "torch would reuse it early"
        filled(loader)
    assert gpu.caller not in {stream for _, stream in gpu.log} and len({stream for _, stream in gpu.log}) == 1


def test_a_batch_waits_for_its_copy_on_the_stream_that_takes_it(numbered_shards: Path, gpu: Gpu) -> None:
    expected = on_cpu(numbered_shards)
    for number, batch in enumerate(islice(open_on("cuda", numbered_shards), 4)):
        assert_same(gpu, batch, expected[number])
        gpu.caller = gpu.current = Stream()


def test_the_host_gets_no_more_than_a_few_batches_ahead_of_the_gpu(numbered_shards: Path, gpu: Gpu) -> None:
    for number, _ in enumerate(open_on("cuda", numbered_shards)):
        waits_of_batches = gpu.caller.done
        assert waits_of_batches == max(0, number + 1 - copies.QUEUED)


def test_the_end_of_an_evaluation_loses_no_batch_and_begins_no_other(numbered_shards: Path, gpu: Gpu) -> None:
    loader = open_on("cuda", numbered_shards, split="val")
    for expected in (on_cpu(numbered_shards, split="val"),) * 2:
        seen = []
        for batch in loader:
            seen.append(batch)
            source = filled(loader)
        assert not source._made and sum(batch.valid for batch in seen) == 101
        for ours, theirs in zip(seen, expected, strict=True):
            assert_same(gpu, ours, theirs)


def test_the_position_counts_the_batches_handed_out(numbered_shards: Path, gpu: Gpu) -> None:
    batches = iter(loader := open_on("cuda", numbered_shards, MEAN_IMAGE))
    for _ in range(3):
        next(batches)
        filled(loader)
    resumed = open_on("cuda", numbered_shards, MEAN_IMAGE)
    resumed.load_state_dict(loader.state_dict())
    for ours, theirs in zip(resumed, batches, strict=True):
        assert torch.equal(gpu.read(ours.images), gpu.read(theirs.images))


def damaged(folder: Path, sample: int) -> Path:
    """Overwrite the beginning of an image of val."""
    line = (folder / "val-000000.idx").read_text().splitlines()[1 + sample].split()
    with (folder / "val-000000.tar").open("r+b") as file:
        file.seek(int(line[1]))
        file.write(b"\xff\xd9")
    return folder


def test_a_damaged_image_ends_no_batch_but_its_own(numbered_shards: Path, tmp_path: Path, gpu: Gpu) -> None:
    folder = damaged(shutil.copytree(numbered_shards, tmp_path / "shards"), 18)  # in the third batch
    loader, seen = open_on("cuda", folder, split="val"), 0
    with pytest.raises(DataError, match="--verify"):
        for _ in loader:
            seen += 1
            filled(loader)
    assert seen == 2
    skipping, expected = (list(open_on(where, folder, split="val", on_error="skip")) for where in ("cuda", "cpu"))
    for ours, theirs in zip(skipping, expected, strict=True):
        assert_same(gpu, ours, theirs)
    assert sum(batch.valid for batch in skipping) == 100


@pytest.mark.parametrize("normalise", ["none", "mean_std"])
def test_a_transform_runs_on_the_callers_stream_and_before_normalisation(
    numbered_shards: Path, gpu: Gpu, normalise: Any
) -> None:
    augment = replace(FIXED, normalise=normalise)

    def inverted(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert gpu.current is gpu.caller
        return 255 - gpu.read(images), gpu.read(labels)

    options = {"transform": inverted}
    ours = list(islice(open_on("cuda", numbered_shards, augment, **options), 6))
    for one, other in zip(ours, on_cpu(numbered_shards, augment, **options)[:6], strict=True):
        assert_same(gpu, one, other)


def test_a_closed_loader_keeps_no_pinned_memory(numbered_shards: Path, gpu: Gpu) -> None:
    batches = iter(loader := open_on("cuda", numbered_shards))
    next(batches)
    pool = weakref.ref(filled(loader)._buffers)
    loader.close()
    wait_until(lambda: pool() is None, "a closed loader keeps its buffers")


def test_a_cpu_loader_asks_nothing_of_a_gpu(numbered_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a CPU loader used torch.cuda")

    for name in ("Stream", "Event", "current_stream", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, refused)
    assert len(on_cpu(numbered_shards)) == 12


@pytest.mark.parametrize("rows", [32, 128, 256, 1024, 1500, 2048])
def test_pinned_memory_is_one_block_that_its_buffers_nearly_fill(rows: int) -> None:
    layout = Layout(rows, rows, 224)
    count = buffers_in_a_block(layout.nbytes, turbo_batches.AHEAD + 2)
    block = 2 ** (count * layout.nbytes - 1).bit_length()
    assert turbo_batches.AHEAD + 2 <= count <= 10 and 0.8 * block < count * layout.nbytes <= block


def test_the_arrays_of_a_buffer_lie_apart_and_aligned() -> None:
    layout = Layout(3, 30, 7)
    tensors = layout.cut(torch.zeros(layout.nbytes, dtype=torch.uint8))
    places = sorted((t.data_ptr() - tensors.images.data_ptr(), t.nbytes) for t in tensors)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(places)) and all(a % 64 == 0 for a, _ in places)
    assert [tuple(t.shape) for t in tensors] == [(30, 7, 7, 3), (3,), (30, 3), (30, 3)]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield the module of the kernel, which Triton interprets in Python."""
    pytest.importorskip("triton")
    name = "pipelines.turbo.normalise_kernel"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("subtracts", [True, False])
def test_one_kernel_gives_what_several_operations_give(interpreted: Any, subtracts: bool, dtype: torch.dtype) -> None:
    """Check each bit. 40x40 is no whole number of the kernel's blocks."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (48, 48, 3)).astype(np.float32)
    scale = np.array([1 / 50, 1 / 60, 1], np.float32)
    by_operations = normalise.OnDevice((image, image) if subtracts else None, scale, torch.device("cpu"), torch.float16)
    pixels = torch.from_numpy(rng.integers(0, 256, (5, 40, 40, 3), np.uint8)).to(dtype)
    crops = torch.tensor([(0, 0, 0), (8, 8, 1), (3, 5, 1), (8, 0, 0), (0, 8, 1)])
    colours = torch.from_numpy(rng.normal(size=(5, 3)).astype(np.float32))
    mean = torch.from_numpy(image) if subtracts else None
    ours = interpreted.normalise(pixels, mean, crops, colours, torch.from_numpy(scale), torch.float16)
    assert torch.equal(ours, by_operations(pixels, crops, colours))


def test_without_triton_a_batch_is_normalised_all_the_same_and_this_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pipelines.turbo.normalise_kernel", None)
    by_kernel, by_operations = (
        normalise.OnDevice(None, np.ones(3, np.float32), torch.device("cpu"), torch.float16) for _ in range(2)
    )
    by_kernel._fused = True
    batch = torch.ones(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3)
    for _ in range(2):
        assert torch.equal(by_kernel(*batch), by_operations(*batch))
    assert caplog.text.count("not by one of Triton's") == 1


@pytest.mark.slow
@pytest.mark.parametrize("subtracts", [True, False])
def test_the_kernel_is_compiled_for_an_h100_with_reads_and_writes_of_four_numbers(subtracts: bool) -> None:
    """Compile without a GPU, as Triton can."""
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    from pipelines.turbo.normalise_kernel import BLOCK, WARPS, _normalise

    types = {"pixels": "*u8", "image": "*fp32", "crops": "*i64", "colours": "*fp32", "scale": "*fp32", "out": "*fp16"}
    constants = {"SIZE": 224, "SUBTRACTS": subtracts, "BLOCK": BLOCK}
    signature = types | {"width": "i32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(types) + 1)}
    source = compiler.ASTSource(_normalise, signature, constants, aligned)
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    ptx = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert ptx.count("st.global") == ptx.count("st.global.v2.b32") == 1 and "ld.global.b8" not in ptx
