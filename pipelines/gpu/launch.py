"""The kernels on a GPU: loaded from compiled code, launched on torch's current stream."""

import ctypes
from typing import Any

import torch

from pipelines.gpu.compiler import cubin, known_architectures, nvrtc_version
from pipelines.gpu.kernels import Batch, launches


def unavailable(device: torch.device) -> str:
    """Return why this GPU cannot decode, in one line, with the versions found; "" if it can. Nothing is compiled."""
    if not torch.cuda.is_available():
        return "the GPU's decoder needs a GPU, and torch finds none that it can use (torch.cuda.is_available())"
    try:
        compiler, architectures = nvrtc_version(), known_architectures()
        driver = _driver()
    except OSError as error:
        return str(error)
    status, version = driver.cuDriverGetVersion()
    if status or version // 1000 < compiler[0]:
        found = f"the driver supports CUDA {version // 1000}.{version % 1000 // 10}"
        return f"the GPU's decoder is compiled by NVRTC {compiler[0]}.{compiler[1]}, but {found}: update the driver"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor not in architectures:
        return f"NVRTC {compiler[0]}.{compiler[1]} does not compile for this GPU, sm_{major}{minor}"
    return ""


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise OSError(f"the GPU's decoder needs CUDA's bindings: pip install cuda-bindings ({error})") from None
    return driver


class GpuKernels:
    """The kernels, loaded on one GPU."""

    def __init__(self, device: torch.device) -> None:
        """Compile them, or take them from the cache, and load them. Raises OSError with one line."""
        if reason := unavailable(device):
            raise OSError(reason)
        driver = self._driver = _driver()
        self._device = device
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the context that the code is loaded into
            major, minor = torch.cuda.get_device_capability()
            self._module = self._checked(driver.cuModuleLoadData(cubin(f"sm_{major}{minor}")))
        self._functions: dict[str, Any] = {}

    def run(self, batch: Batch, blocks_of_image: int) -> None:
        """Queue the decoding of a batch, whose pointers are those of this GPU's memory. Raises OSError."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(batch))  # copied by each launch
        with torch.cuda.device(self._device):
            stream = self._driver.CUstream(torch.cuda.current_stream().cuda_stream)
            for kernel, blocks, threads in launches(batch, blocks_of_image):
                sizes = (blocks, batch.rows, 1, threads, 1, 1, 0)
                function = self._function(kernel)
                self._checked(self._driver.cuLaunchKernel(function, *sizes, stream, ctypes.addressof(arguments), 0))

    def _function(self, kernel: str) -> Any:
        if kernel not in self._functions:
            found = self._driver.cuModuleGetFunction(self._module, kernel.encode())
            self._functions[kernel] = self._checked(found)
        return self._functions[kernel]

    @staticmethod
    def _checked(result: tuple[Any, ...]) -> Any:
        """Return the value of a call of the driver. Raises OSError if it failed."""
        status, *values = result
        if status:
            raise OSError(f"the GPU's decoder failed: {status.name}")
        return values[0] if values else None
