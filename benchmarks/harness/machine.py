"""The machine that gave a result, and the names of results: by benchmark, card and version of torch."""

import os
import platform
import re
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torchvision", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "simplejpeg", "opencv-python-headless")
SAID_ALREADY = re.compile(r"\b(NVIDIA|GeForce|Tesla|Graphics|SXM\d?|HBM\d?\w?|\d+ ?GB)\b|[^A-Za-z0-9]+", re.IGNORECASE)


def machine() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": {name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))},
    }


def card(name: str | None) -> str:
    """Return a GPU's name as a part of a file's: "NVIDIA H100 80GB HBM3" is h100, "NVIDIA H100 PCIe" h100pcie."""
    return (SAID_ALREADY.sub("", name).lower() or "gpu") if name else "cpu"


def where(gpu: str | None, version: str) -> str:
    """Return card and torch's version, such as h100-torch2.11. Only results with the same are compared."""
    return f"{card(gpu)}-torch{'.'.join(version.split('.')[:2])}"


def result_path(given: Path, benchmark: str) -> Path:
    """Return a file to write; in a folder, it is named by benchmark, card and version of torch."""
    if not given.is_dir():
        return given
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return given / f"{benchmark}-{where(gpu, torch.__version__)}.json"
