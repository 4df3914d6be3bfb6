"""Build the static libjpeg-turbo that wheels contain, and a checkout on a machine without libjpeg's headers.

    python wheels/libjpeg.py build/libjpeg      # build/libjpeg/lib/libjpeg.a, build/libjpeg/include/*.h

It needs cmake, a C compiler and, on x86-64, nasm: without the assembly a decode takes twice the time. The source is
fetched once, from upstream or from Debian, and refused unless its SHA-256 is the one below. All symbols are hidden, so
that nothing clashes with the copies of libjpeg in torch, OpenCV, Pillow and simplejpeg.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from contextlib import suppress
from pathlib import Path

VERSION = "3.1.3"
SHA256 = "3a13a5ba767dc8264bc40b185e41368a80d5d5f945944d1dbaa4b2fb0099f4e5"
UPSTREAM = f"https://github.com/libjpeg-turbo/libjpeg-turbo/archive/refs/tags/{VERSION}.tar.gz"
IN_DEBIAN = f"pool/main/libj/libjpeg-turbo/libjpeg-turbo_{VERSION}.orig.tar.gz"  # the same bytes
APT_HELPER = "/usr/lib/apt/apt-helper"
HEADERS = ("jpeglib.h", "jmorecfg.h", "jerror.h")
HERE = Path(__file__).resolve().parent
OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_POSITION_INDEPENDENT_CODE=ON", "-DENABLE_SHARED=OFF"),
    *("-DCMAKE_C_VISIBILITY_PRESET=hidden", "-DWITH_TURBOJPEG=OFF", "-DWITH_TOOLS=OFF", "-DWITH_TESTS=OFF"),
    "-DREQUIRE_SIMD=ON",
    # Else each transform of a block looks up a thread-local variable. All threads store the same value in it.
    "-DHAVE_THREAD_LOCAL=OFF",
)


class BuildError(Exception):
    """A message of one line: what is missing, and what to do."""


def main(out: Path) -> None:
    """Build the library into ``out``, unless it is there already. Raises BuildError."""
    made = out / f"made-{hashlib.sha256(repr((SHA256, OPTIONS)).encode()).hexdigest()[:16]}"
    if made.exists():
        return
    check_programs()
    out.mkdir(parents=True, exist_ok=True)
    source = unpacked(archive(out), out)
    check_struct(source, build(source, out))
    install(source, out)
    made.touch()


def check_programs() -> None:
    """Raise BuildError if a program is missing that the build needs."""
    wanted = ["cmake", *(["nasm"] if platform.machine().lower() in ("x86_64", "amd64") else [])]
    if missing := [program for program in wanted if not shutil.which(program)]:
        raise BuildError(f"libjpeg-turbo needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")


def archive(folder: Path) -> Path:
    """Return the path of the source archive in ``folder``, fetched if it is missing. Raises BuildError."""
    path = folder / f"libjpeg-turbo-{VERSION}.tar.gz"
    for fetch in (lambda _: None, from_upstream, from_debian):
        with suppress(OSError, subprocess.CalledProcessError):
            fetch(path)
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
            return path
        path.unlink(missing_ok=True)
    raise BuildError(f"cannot fetch {UPSTREAM}: put the file there as {path} (SHA-256 {SHA256})")


def from_upstream(path: Path) -> None:
    with urllib.request.urlopen(UPSTREAM, timeout=60) as answer:
        path.write_bytes(answer.read(16 << 20))


def from_debian(path: Path) -> None:
    """Fetch the archive by apt from the mirror that this machine uses."""
    sites = subprocess.check_output(["apt-get", "indextargets", "--format", "$(SITE)"], text=True).split()
    for site in dict.fromkeys(sites):
        done = subprocess.run([APT_HELPER, "download-file", f"{site}/{IN_DEBIAN}", str(path), f"SHA256:{SHA256}"])
        if done.returncode == 0:
            return


def unpacked(path: Path, folder: Path) -> Path:
    """Unpack the archive. Return the folder with the sources."""
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"libjpeg-turbo-{VERSION}"


def build(source: Path, out: Path) -> Path:
    """Compile the library. Return the folder of the build, which has jconfig.h. Raises BuildError."""
    folder = out / "build"
    run("cmake", "-S", source, "-B", folder, *OPTIONS)
    run("cmake", "--build", folder, "--target", "jpeg-static", "--parallel", os.cpu_count() or 1)
    return folder


def check_struct(source: Path, built: Path) -> None:
    """Compile check_entropy.c, which compares entropy.c's struct with this libjpeg's own. Raises BuildError."""
    folders = [f"-I{folder}" for folder in (built, source / "src", HERE.parent / "pipelines/turbo")]
    run(os.environ.get("CC", "cc"), "-std=gnu11", "-fsyntax-only", *folders, HERE / "check_entropy.c")


def install(source: Path, out: Path) -> None:
    """Copy the library, its headers and its licence to ``out``, and delete the sources."""
    for folder in ("lib", "include"):
        (out / folder).mkdir(exist_ok=True)
    shutil.copy(out / "build/libjpeg.a", out / "lib")
    for header in (out / "build/jconfig.h", *(source / "src" / name for name in HEADERS)):
        shutil.copy(header, out / "include")
    shutil.copy(source / "README.ijg", out)
    shutil.copy(source / "LICENSE.md", out)
    shutil.rmtree(source)
    shutil.rmtree(out / "build")


def run(*line: object) -> None:
    """Run a command. Raises BuildError with the end of its output if it fails."""
    done = subprocess.run([*map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(f"{line[0]} failed:\n{done.stdout[-2000:]}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
