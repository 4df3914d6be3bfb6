"""Only what setup.cfg cannot say: compiled parts, each of which is left out where it cannot be built."""

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

# The GPU's decoder for a CPU: for tests, and for machines without a GPU.
EMULATED = Extension(
    "pipelines.gpu._emulated",
    ["pipelines/gpu/emulated.cpp"],
    depends=[f"pipelines/gpu/{name}.cu" for name in ("batch", "entropy", "pixels")],
    language="c++",
    extra_compile_args=["-O3", "-std=c++20", "-ffp-contract=off", "-fno-strict-aliasing"],  # rounds as the GPU does
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[NATIVE, EMULATED])
