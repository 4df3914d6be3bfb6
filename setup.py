"""The parts of the build that setup.cfg cannot describe: turbo's compiled part, the wheel's scripts and its tag."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

STATIC = "ALEXNET_STATIC_LIBJPEG" in os.environ  # make wheel: link what wheels/libjpeg.py built, or fail
LIBJPEG = Path("build/libjpeg")
SCRIPTS = ("train.py", "tools", "benchmarks")  # in the wheel they lie in alexnet/_commands, see alexnet/__main__.py
LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "*.json", "*.md", "*.txt")

NATIVE = Extension(
    "pipelines.turbo._native",
    [
        "pipelines/turbo/native.c",
        "pipelines/turbo/entropy.c",
        "pipelines/turbo/restarts.c",
        "pipelines/turbo/checksum.c",
    ],
    depends=["pipelines/turbo/entropy.h", "pipelines/turbo/checksum.h"],
    include_dirs=[str(LIBJPEG / "include")] if STATIC else [],
    extra_objects=[str(LIBJPEG / "lib/libjpeg.a")] if STATIC else [],
    libraries=["m"] if STATIC else ["jpeg", "m"],
    extra_compile_args=["-O3", "-ffp-contract=off"],  # crops to the bit as in Python
    # Calls stay inside: no library that another package loaded earlier can take the place of a function.
    extra_link_args=["-Wl,-Bsymbolic,--exclude-libs,ALL,--strip-all"] if sys.platform == "linux" else [],
    optional=not STATIC,
)


class BuildExtensions(build_ext):
    """A build of libraries that native.py loads by ctypes: they use nothing of Python's, so one file serves all."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols  # no PyInit_


class BuildPython(build_py):
    """A build that copies the scripts into the package, so that they take no names at the top of site-packages."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        commands = Path(self.build_lib, "alexnet/_commands")
        shutil.rmtree(commands, ignore_errors=True)
        commands.mkdir(parents=True)
        for script in map(Path, SCRIPTS):
            if script.is_dir():
                shutil.copytree(script, commands / script, ignore=LEFT_OUT)
            else:
                shutil.copy(script, commands)


class BuildWheel(bdist_wheel):
    """A wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[NATIVE],
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython, "bdist_wheel": BuildWheel},
)
