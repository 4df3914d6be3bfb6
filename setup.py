"""Only what setup.cfg cannot say: the compiled part of the turbo loader, which is left out where it cannot be built."""

from setuptools import Extension, setup

NATIVE = Extension(
    "pipelines.turbo._native",
    [
        "pipelines/turbo/native.c",
        "pipelines/turbo/sample.c",
        "pipelines/turbo/gather.c",
        "pipelines/turbo/entropy.c",
        "pipelines/turbo/restarts.c",
        "pipelines/turbo/checksum.c",
    ],
    depends=["pipelines/turbo/entropy.h", "pipelines/turbo/checksum.h", "pipelines/turbo/sample.h"],
    libraries=["jpeg", "m"],
    extra_compile_args=["-O3", "-ffp-contract=off"],  # crops to the bit as in Python
    py_limited_api=True,  # it uses nothing of Python's: one file for all versions
    optional=True,
)

setup(ext_modules=[NATIVE])
