"""Measure how fast batches are made, or how fast the networks train on batches from nowhere.

python -m benchmarks loader --data SHARDS [--json FILE]
python -m benchmarks step [--json FILE]
"""

import json
import os
import platform
import time
from typing import Annotated

import torch
import tyro

from alexnet import AlexNetError
from benchmarks.loader import LoaderOptions, run_loader
from benchmarks.step import StepOptions, run_step
from pipelines import DataError
from pipelines.shards import write_atomically
from tools.terminal import run

Command = (
    Annotated[LoaderOptions, tyro.conf.subcommand("loader")] | Annotated[StepOptions, tyro.conf.subcommand("step")]
)


def main(options: LoaderOptions | StepOptions) -> None:
    result = run_loader(options) if isinstance(options, LoaderOptions) else run_step(options)
    print(f"{'':<28}{'images/s':>10}{'least':>10}{'most':>10}{'ratio':>8}")
    for row in result["rows"]:
        print(f"{row['name']:<28}{row['median']:>10}{row['least']:>10}{row['most']:>10}{row['ratio']:>8}")
    if options.json:
        write_atomically(options.json, json.dumps(machine() | result, indent=1).encode() + b"\n")
        print(f"written to {options.json}")


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
