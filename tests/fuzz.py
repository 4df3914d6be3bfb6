"""Feed the compiled decoders damaged JPEGs under sanitizers, on every core, for some minutes.

    make fuzz MINUTES=10        # or: python -m tests.fuzz --minutes 10
    python -m tests.fuzz --decoders gpu --minutes 60

It builds turbo/*.c and gpu/emulated.cpp with AddressSanitizer and UndefinedBehaviorSanitizer and runs
tests/sequences.py and tests/pieces.py in turns, once per core. It exits with 1 at the first wrong pixel or bad access,
with the JPEG in hexadecimal or the sanitizer's trace. Run it after each change of the C code or of the kernels.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from pipelines.gpu import emulated
from pipelines.gpu.kernels import FOLDER
from pipelines.turbo import native
from tests.pieces import Pieces
from tests.sequences import Decoding

SOURCES = sorted((Path(native.__file__).parent).glob("*.c"))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
TURBO, GPU = "native.so", "emulated.so"  # names of the libraries
BETWEEN_LOOKS = 1000  # inputs between two looks at the clock


@dataclass(frozen=True)
class Options:
    minutes: float = 10
    """Minutes to decode for."""
    seed: int = 0
    """Seed of the first process; each further process adds one."""
    decoders: tuple[Literal["turbo", "gpu"], ...] = ("turbo", "gpu")
    """The decoders to test: turbo's compiled part, the GPU's kernels emulated."""
    libraries: Path | None = None
    """Run one process with the libraries in this folder, which were built already."""


def main(options: Options) -> int:
    if options.libraries:
        return run(options, options.libraries)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        runtime = subprocess.check_output(["cc", "-print-file-name=libasan.so"], text=True).strip()
        environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
        line = [sys.executable, "-m", "tests.fuzz", "--minutes", options.minutes, "--libraries", folder]
        line += ["--decoders", *options.decoders, "--seed"]
        cores = os.cpu_count() or 1
        processes = [
            subprocess.Popen([*map(str, line), str(options.seed + core)], env=environment) for core in range(cores)
        ]
        return max(abs(process.wait()) for process in processes)


def build(folder: Path) -> None:
    """Compile the decoders with sanitizers into the folder. Raises CalledProcessError."""
    flags = ["-shared", "-fPIC", "-g", "-O1", "-ffp-contract=off", *SANITIZERS, "-o"]
    turbo = [str(folder / TURBO), *map(str, SOURCES), "-ljpeg", "-lm"]
    subprocess.run(["cc", *flags, *turbo], check=True)
    subprocess.run(
        ["c++", "-std=c++20", "-fno-strict-aliasing", *flags, str(folder / GPU), str(FOLDER / "emulated.cpp")],
        check=True,
    )


def run(options: Options, folder: Path) -> int:
    """Decode until the time is over. Print the counts once a minute and at the end. Return the exit status 0."""
    use_libraries(folder)
    makers: dict[str, Callable[[int], Decoding | Pieces]] = {"turbo": Decoding, "gpu": Pieces}
    tests, start = {name: makers[name](options.seed) for name in options.decoders}, time.monotonic()
    said = start
    while time.monotonic() - start < 60 * options.minutes:
        for test in tests.values():
            test.run(BETWEEN_LOOKS)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            report(options.seed, tests, said - start)
    report(options.seed, tests, time.monotonic() - start)
    return 0


def use_libraries(folder: Path) -> None:
    """Use the libraries in the folder in place of those that were built without sanitizers."""
    turbo, gpu = native.load_library(str(folder / TURBO)), emulated.load_library(str(folder / GPU))
    assert turbo and gpu, f"a library in {folder} does not load"
    native.native_library.cache_clear()
    for module in [module for name, module in sys.modules.items() if name.startswith("pipelines.")]:
        for name, library in (("native_library", turbo), ("emulated_library", gpu)):
            if hasattr(module, name):
                setattr(module, name, partial(lambda found: found, library))


def report(seed: int, tests: Mapping[str, Decoding | Pieces], seconds: float) -> None:
    for name, test in tests.items():
        inputs = sum(count for outcome, count in test.counts.items() if "markers" not in outcome)
        print(
            f"{name}, seed {seed}: {inputs} inputs in {seconds:.0f} s: {dict(sorted(test.counts.items()))}", flush=True
        )


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
