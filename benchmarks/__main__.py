"""Measure how fast shards are written, batches made and networks trained, beside what the machine allows.

python -m benchmarks shard --data IMAGES [--peers] [--json FILE]
python -m benchmarks loader --data SHARDS [--json FILE]
python -m benchmarks step [--json FILE]
python -m benchmarks train --data SHARDS [--json FILE]
python -m benchmarks ceilings|runs|kernels|gpu ...     # docs/gpu.md
python -m benchmarks checkpoint [--json FILE]
"""

import json
import os
import platform
import sys
import time
from importlib import metadata
from typing import Annotated

import torch
import tyro

from alexnet import AlexNetError
from benchmarks.ceilings import CeilingsOptions, run_ceilings
from benchmarks.checkpoint import CheckpointOptions, run_checkpoint
from benchmarks.gpu import GpuOptions, run_gpu
from benchmarks.kernels import KernelsOptions, run_kernels
from benchmarks.loader import LoaderOptions, describe_loader, loader_rows, run_loader
from benchmarks.picture import draw_rates
from benchmarks.runs import RunsOptions, run_runs
from benchmarks.shard import ShardOptions, run_shard
from benchmarks.step import StepOptions, run_step
from benchmarks.train import TrainOptions, run_train
from pipelines import DataError
from pipelines.shards import write_atomically
from tools.terminal import run

PACKAGES = ("torchvision", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "simplejpeg", "opencv-python-headless")
Measured = (
    LoaderOptions
    | StepOptions
    | ShardOptions
    | TrainOptions
    | CeilingsOptions
    | RunsOptions
    | KernelsOptions
    | CheckpointOptions
)
Command = (
    Annotated[LoaderOptions, tyro.conf.subcommand("loader")]
    | Annotated[StepOptions, tyro.conf.subcommand("step")]
    | Annotated[ShardOptions, tyro.conf.subcommand("shard")]
    | Annotated[TrainOptions, tyro.conf.subcommand("train")]
    | Annotated[CeilingsOptions, tyro.conf.subcommand("ceilings")]
    | Annotated[RunsOptions, tyro.conf.subcommand("runs")]
    | Annotated[KernelsOptions, tyro.conf.subcommand("kernels")]
    | Annotated[CheckpointOptions, tyro.conf.subcommand("checkpoint")]
    | Annotated[GpuOptions, tyro.conf.subcommand("gpu")]
)


def main(options: Measured | GpuOptions) -> None:
    if isinstance(options, GpuOptions):
        run_gpu(options)
        return
    result = measure(options)
    print_rates([row for row in result["rows"] if "median" in row])
    print("\n".join(result.get("diagnosis", ())))
    if isinstance(options, LoaderOptions) and options.picture:
        draw_rates(loader_rows(result), describe_loader(result), options.picture)
        print(f"drawn in {options.picture}")
    if options.json:
        write_atomically(options.json, json.dumps(machine() | result, indent=1).encode() + b"\n")
        print(f"written to {options.json}")


def measure(options: Measured) -> dict:
    match options:
        case LoaderOptions():
            return run_loader(options)
        case StepOptions():
            return run_step(options)
        case ShardOptions():
            return run_shard(options)
        case TrainOptions():
            return run_train(options)
        case CeilingsOptions():
            return run_ceilings(options)
        case RunsOptions():
            return run_runs(options)
        case KernelsOptions():
            return run_kernels(options)
        case CheckpointOptions():
            return run_checkpoint(options)


def print_rates(rows: list[dict]) -> None:
    width = max((len(row["name"]) for row in rows), default=0)
    if rows:
        print(f"{'':<{width}}{'images/s':>12}{'least':>12}{'most':>12}{'ratio':>8}")
    for row in rows:
        print(f"{row['name']:<{width}}{row['median']:>12}{row['least']:>12}{row['most']:>12}{row['ratio']:>8}")


def machine() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))},
    }


if __name__ == "__main__":
    run(main, Command, __doc__, errors=(AlexNetError, DataError))  # type: ignore[arg-type]
