"""Measure how fast shards are written, batches are made, and the networks train on batches from nowhere.

python -m benchmarks shard --data IMAGES [--peers] [--json FILE]
python -m benchmarks loader --data SHARDS [--json FILE]
python -m benchmarks step [--json FILE]
python -m benchmarks checkpoint [--json FILE]
"""

import json
import os
import platform
import time
from typing import Annotated

import torch
import tyro

from alexnet import AlexNetError
from benchmarks.checkpoint import CheckpointOptions, run_checkpoint
from benchmarks.loader import LoaderOptions, describe_loader, loader_rows, run_loader
from benchmarks.picture import draw_rates
from benchmarks.shard import ShardOptions, run_shard
from benchmarks.step import StepOptions, run_step
from pipelines import DataError
from pipelines.shards import write_atomically
from tools.terminal import run

Command = (
    Annotated[LoaderOptions, tyro.conf.subcommand("loader")]
    | Annotated[StepOptions, tyro.conf.subcommand("step")]
    | Annotated[ShardOptions, tyro.conf.subcommand("shard")]
    | Annotated[CheckpointOptions, tyro.conf.subcommand("checkpoint")]
)


def main(options: LoaderOptions | StepOptions | ShardOptions | CheckpointOptions) -> None:
    result = measure(options)
    print(f"{'':<48}{'images/s':>10}{'least':>10}{'most':>10}{'ratio':>8}")
    for row in result["rows"]:
        print(f"{row['name']:<48}{row['median']:>10}{row['least']:>10}{row['most']:>10}{row['ratio']:>8}")
    print("\n".join(result.get("diagnosis", ())))
    if isinstance(options, LoaderOptions) and options.picture:
        draw_rates(loader_rows(result), describe_loader(result), options.picture)
        print(f"drawn in {options.picture}")
    if options.json:
        write_atomically(options.json, json.dumps(machine() | result, indent=1).encode() + b"\n")
        print(f"written to {options.json}")


def measure(options: LoaderOptions | StepOptions | ShardOptions | CheckpointOptions) -> dict:
    match options:
        case LoaderOptions():
            return run_loader(options)
        case StepOptions():
            return run_step(options)
        case ShardOptions():
            return run_shard(options)
        case CheckpointOptions():
            return run_checkpoint(options)


def machine() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    run(main, Command, __doc__, errors=(AlexNetError, DataError))  # type: ignore[arg-type]
