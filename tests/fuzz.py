"""Feed the compiled decoder sequences of JPEGs under sanitizers, on every core, for some minutes.

    make fuzz MINUTES=10        # or: python -m tests.fuzz --minutes 10

It builds turbo/*.c with AddressSanitizer and UndefinedBehaviorSanitizer and runs tests/sequences.py once per core.
It exits with 1 at the first wrong pixel or bad access, with the JPEG in hexadecimal or the sanitizer's trace. Run it
after each change of the C code.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipelines.turbo import native
from tests.sequences import Decoding

SOURCES = sorted((Path(native.__file__).parent).glob("*.c"))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
BETWEEN_LOOKS = 1000  # inputs between two looks at the clock


@dataclass(frozen=True)
class Options:
    minutes: float = 10
    """Minutes to decode for."""
    seed: int = 0
    """Seed of the first process; each further process adds one."""
    library: Path | None = None
    """Run one process with this library, which was built already."""


def main(options: Options) -> int:
    if options.library:
        return run(options, options.library)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "native.so"
        build(library)
        runtime = subprocess.check_output(["cc", "-print-file-name=libasan.so"], text=True).strip()
        environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
        line = [sys.executable, "-m", "tests.fuzz", "--minutes", options.minutes, "--library", library, "--seed"]
        cores = os.cpu_count() or 1
        processes = [
            subprocess.Popen([*map(str, line), str(options.seed + core)], env=environment) for core in range(cores)
        ]
        return max(abs(process.wait()) for process in processes)


def build(library: Path) -> None:
    """Compile the decoder with sanitizers. Raises CalledProcessError."""
    flags = ["-shared", "-fPIC", "-g", "-O1", "-ffp-contract=off", *SANITIZERS]
    subprocess.run(["cc", *flags, *map(str, SOURCES), "-o", str(library), "-ljpeg", "-lm"], check=True)


def run(options: Options, path: Path) -> int:
    """Decode until the time is over. Print the counts once a minute and at the end. Return the exit status 0."""
    library = native.load_library(str(path))
    assert library, f"{path} does not load"
    native.native_library.cache_clear()
    for module in [module for name, module in sys.modules.items() if name.startswith("pipelines.")]:
        if hasattr(module, "native_library"):
            module.native_library = lambda: library
    decoding, start = Decoding(options.seed), time.monotonic()
    said = start
    while time.monotonic() - start < 60 * options.minutes:
        decoding.run(BETWEEN_LOOKS)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            report(options.seed, decoding.counts, said - start)
    report(options.seed, decoding.counts, time.monotonic() - start)
    return 0


def report(seed: int, counts: Counter[str], seconds: float) -> None:
    inputs = sum(count for outcome, count in counts.items() if "markers" not in outcome)
    print(f"seed {seed}: {inputs} inputs in {seconds:.0f} s: {dict(sorted(counts.items()))}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
