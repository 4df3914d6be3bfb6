"""Measure how fast shards are written, batches made and networks trained, compared with references and limits.

python -m benchmarks shard --data IMAGES [--peers] [--json FILE]
python -m benchmarks loader --data SHARDS [--json FILE]
python -m benchmarks step [--json FILE]
python -m benchmarks train --data SHARDS [--json FILE]
python -m benchmarks ceilings|runs|kernels|gpu ...     # docs/gpu.md
python -m benchmarks checkpoint [--json FILE]
python -m benchmarks bytes [--json FILE]               # of a step's Triton kernels, without a GPU
python -m benchmarks evaluate|first --data SHARDS [--json FILE]
python -m benchmarks small [--json FILE]               # accuracy of recipes on small sets: docs/recipes.md
"""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from functools import reduce
from importlib import metadata
from operator import or_
from typing import Annotated, Any

import torch
import tyro

from alexnet import AlexNetError
from benchmarks.ceilings import CeilingsOptions, run_ceilings
from benchmarks.checkpoint import CheckpointOptions, run_checkpoint
from benchmarks.decoder_survey import RunsOptions, run_runs
from benchmarks.evaluate import EvaluateOptions, run_evaluate
from benchmarks.first_batch import FirstOptions, run_first
from benchmarks.gpu import GpuOptions, run_gpu
from benchmarks.kernels import KernelsOptions, run_kernels
from benchmarks.loader import LoaderOptions, describe_loader, loader_rows, run_loader
from benchmarks.plots.rates import draw_rates
from benchmarks.shard import ShardOptions, run_shard
from benchmarks.small import SmallOptions, run_small
from benchmarks.step import StepOptions, run_step
from benchmarks.step_bytes import BytesOptions, run_bytes
from benchmarks.train import TrainOptions, run_train
from pipelines import DataError
from pipelines.files import write_atomically
from pipelines.terminal import run_command
from pipelines.turbo.native import turbo_text

PACKAGES = ("torchvision", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "simplejpeg", "opencv-python-headless")
# Name, options, and the function that measures. It returns the result to print and save.
COMMANDS: tuple[tuple[str, type, Callable[[Any], dict]], ...] = (
    ("loader", LoaderOptions, run_loader),
    ("step", StepOptions, run_step),
    ("shard", ShardOptions, run_shard),
    ("train", TrainOptions, run_train),
    ("ceilings", CeilingsOptions, run_ceilings),
    ("runs", RunsOptions, run_runs),
    ("kernels", KernelsOptions, run_kernels),
    ("checkpoint", CheckpointOptions, run_checkpoint),
    ("evaluate", EvaluateOptions, run_evaluate),
    ("first", FirstOptions, run_first),
    ("small", SmallOptions, run_small),
    ("bytes", BytesOptions, run_bytes),
)
MEASURES = {options: measure for _, options, measure in COMMANDS}
Command: Any = reduce(
    or_,
    (Annotated[options, tyro.conf.subcommand(name)] for name, options, _ in COMMANDS),
    Annotated[GpuOptions, tyro.conf.subcommand("gpu")],
)


def main(options: Any) -> None:
    if isinstance(options, GpuOptions):
        run_gpu(options)
        return
    result = MEASURES[type(options)](options)
    if isinstance(options, LoaderOptions | TrainOptions | EvaluateOptions | FirstOptions):
        result |= {"decoder": turbo_text()}
        print(result["decoder"])
    print_rates([row for row in result["rows"] if "median" in row])
    print("\n".join(result.get("diagnosis", ())))
    if isinstance(options, LoaderOptions) and options.picture:
        draw_rates(loader_rows(result), describe_loader(result), options.picture)
        print(f"drawn in {options.picture}")
    if options.json:
        write_atomically(options.json, json.dumps(machine() | result, indent=1).encode() + b"\n")
        print(f"written to {options.json}")


def print_rates(rows: list[dict]) -> None:
    width = max((len(row["name"]) for row in rows), default=0)
    if rows:
        print(f"{'':<{width}}{'images/s':>12}{'least':>12}{'most':>12}{'ratio':>8}")
    for row in rows:
        print(f"{row['name']:<{width}}{row['median']:>12}{row['least']:>12}{row['most']:>12}{row['ratio']:>8}")


def machine() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))},
    }


if __name__ == "__main__":
    run_command(main, Command, __doc__, errors=(AlexNetError, DataError))
