"""The kernels on a GPU: loaded from compiled code, launched on torch's current stream."""

import ctypes
from typing import Any

import torch

from pipelines.gpu.compiler import cubin
from pipelines.gpu.kernels import Batch, launches


class GpuKernels:
    """The kernels, loaded on one GPU."""

    def __init__(self, device: torch.device) -> None:
        """Compile them, or take them from the cache, and load them. Raises OSError with one line."""
        if not torch.cuda.is_available():
            raise OSError("no GPU that torch can use was found: see torch.cuda.is_available()")
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise OSError(
                f"the GPU's decoder needs CUDA's Python bindings: pip install cuda-bindings ({error})"
            ) from None
        self._driver, self._device = driver, device
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

    def _checked(self, result: tuple[Any, ...]) -> Any:
        """Return the value of a call of the driver. Raises OSError, with the driver's version, if it failed."""
        status, *values = result
        if status:
            version = self._driver.cuDriverGetVersion()[1]
            known = f"the driver supports CUDA {version // 1000}.{version % 1000 // 10}, torch was built for"
            raise OSError(f"the GPU's decoder cannot run: {status.name}; {known} {torch.version.cuda}")
        return values[0] if values else None
