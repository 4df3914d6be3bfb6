"""Tests of loading and launching the GPU's decoder, against a fake of the driver, as there may be no GPU."""

import ctypes
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from pipelines.gpu import emulated, launch
from pipelines.gpu.kernels import Batch, launches, source
from pipelines.gpu.tables import LOOK

GPU = torch.device("cuda", 0)
OUT_OF_MEMORY = SimpleNamespace(name="CUDA_ERROR_OUT_OF_MEMORY")


class Driver:
    """A fake of cuda.bindings.driver that notes the launches."""

    CUstream = staticmethod(lambda handle: f"stream {handle}")

    def __init__(self, version: int = 13020, failing: str = "") -> None:
        self.version, self.failing, self.launches = version, failing, []

    def cuDriverGetVersion(self) -> tuple:
        return 0, self.version

    def cuModuleLoadData(self, code: bytes) -> tuple:
        return (OUT_OF_MEMORY,) if self.failing else (0, code)

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple:
        return 0, module + b" " + name

    def cuLaunchKernel(self, function: bytes, *rest) -> tuple:
        *sizes, stream, arguments, extra = rest
        batch = Batch.from_address(ctypes.c_void_p.from_address(arguments).value or 0)
        self.launches.append((function.decode(), sizes, stream, batch.rows, extra))
        return (0,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake, stream = Driver(), SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(launch, "_driver", lambda: fake)
    monkeypatch.setattr(launch, "cubin", str.encode)
    monkeypatch.setattr(launch, "nvrtc_version", lambda: (13, 2))
    monkeypatch.setattr(launch, "known_architectures", lambda: [80, 90, 100])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return fake


def test_kernels_are_launched_in_order_on_torchs_stream(driver: Driver) -> None:
    """Check the grids of a batch of 3 rows: 65 pieces, 100 blocks and 30 x 30 pixels of each."""
    assert launch.unavailable(GPU) == ""
    batch = Batch(rows=3, pieces=65, size=30)
    launch.GpuKernels(GPU).run(batch, 100)
    grids = {"find_markers": (1, 256), "decode_pieces": (2, 64), "transform": (7, 128), "finish": (1, 256)}
    assert driver.launches == [
        (f"sm_90 {name}", [blocks, 3, 1, threads, 1, 1, 0], "stream 7", 3, 0)
        for name, (blocks, threads) in grids.items()
    ]


def test_grids_are_those_that_the_source_was_written_for() -> None:
    defined = {name: int(number) for name, number in re.findall(r"#define (\w+)\s+(\d+)", source())}
    found = list(launches(Batch(rows=1, pieces=1, size=64), 1))
    assert [one.threads for one in found] == [
        defined[f"{name}_THREADS"] for name in ("FIND", "PIECE", "TRANSFORM", "FINISH")
    ]
    assert found[-1].blocks == 64 * 64 // defined["AT_ONCE"] // defined["FINISH_THREADS"]
    assert defined["LOOK"] == LOOK


def test_what_cannot_run_is_named(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.failing = "loading"
    with pytest.raises(OSError, match="failed: CUDA_ERROR_OUT_OF_MEMORY"):
        launch.GpuKernels(GPU)
    driver.version = 12080
    assert "NVRTC 13.2, but the driver supports CUDA 12.8: update the driver" in launch.unavailable(GPU)
    driver.version = 13000
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    assert "NVRTC 13.2 does not compile for this GPU, sm_70" in launch.unavailable(GPU)
    with pytest.raises(OSError, match="sm_70"):
        launch.GpuKernels(GPU)


def test_a_missing_compiled_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "emulated_library", lambda: None)
    with pytest.raises(OSError, match="was not built"):
        emulated.runner()
    assert emulated.load_library("/dev/null") is None
