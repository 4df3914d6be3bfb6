"""The kernels compiled for a GPU by NVRTC, which torch's wheels bring; compiled code is kept in a cache folder."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.files import write_atomically
from pipelines.gpu.kernels import source

OPTIONS = ("--std=c++20", "--fmad=false")  # rounds as the operations do, one by one
REPORT = "--ptxas-options=-v"  # registers and spilled bytes in the log


def cubin(architecture: str) -> bytes:
    """Return the kernels' machine code for an architecture, such as "sm_90", from the cache or newly compiled.

    Raises OSError with one line if NVRTC is missing, does not know the architecture, or fails.
    """
    version = ".".join(map(str, nvrtc_version()))
    key = hashlib.sha256("\0".join((source(), architecture, version, *OPTIONS)).encode()).hexdigest()
    kept = cache_folder() / f"{architecture}-{key[:32]}.cubin"
    code = _kept(kept)
    if code is None:
        code, _ = compile_kernels(architecture)
        with suppress(OSError):  # a folder that cannot be written: the next process compiles again
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(kept, hashlib.sha256(code).digest() + code)
    return code


def compile_kernels(architecture: str) -> tuple[bytes, str]:
    """Compile for an architecture. Return the machine code and the compiler's report on registers. Raises OSError."""
    nvrtc = _nvrtc()
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source().encode(), b"kernels.cu", 0, [], []))
    options = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS, REPORT)]
    try:
        result = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = b" " * _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        if result[0]:
            raise OSError(f"NVRTC cannot compile the GPU's decoder for {architecture}: {_first_line(log, result[0])}")
        code = b" " * _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return code, log.decode(errors="replace").rstrip("\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def nvrtc_version() -> tuple[int, int]:
    """Return the version of NVRTC, such as (13, 2). Raises OSError if it is missing."""
    nvrtc = _nvrtc()
    return tuple(_checked(nvrtc, nvrtc.nvrtcVersion()))


def known_architectures() -> list[int]:
    """Return the architectures that NVRTC compiles for: 90 for sm_90. Raises OSError if it is missing."""
    nvrtc = _nvrtc()
    count = _checked(nvrtc, nvrtc.nvrtcGetNumSupportedArchs())
    return list(_checked(nvrtc, nvrtc.nvrtcGetSupportedArchs()))[:count]


def cache_folder() -> Path:
    """Return the folder in which compiled kernels are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-pipelines"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"the GPU's decoder needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc ({reason})"
        ) from None
    return nvrtc


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    """Return the values of a call, one by itself. Raises OSError if it failed."""
    status, *values = result
    if status:
        raise OSError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else values


def _first_line(log: bytes, status: Any) -> str:
    lines = log.decode(errors="replace").replace("\0", "").split("\n")
    return next((line for line in lines if "error" in line), status.name)


def _kept(path: Path) -> bytes | None:
    """Return the code that a file of this user holds behind its checksum; None if there is none, or it is damaged."""
    try:
        if {path.stat().st_uid, path.parent.stat().st_uid} != {os.getuid()}:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
