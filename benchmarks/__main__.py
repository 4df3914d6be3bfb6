"""Measure how fast shards are written, batches made and networks trained, compared with references and limits.

python -m benchmarks shard --data IMAGES [--peers] [--json FILE]
python -m benchmarks loader --data SHARDS [--json FILE]
python -m benchmarks step [--json FILE]
python -m benchmarks train --data SHARDS [--json FILE]
python -m benchmarks budget|decode|pieces|pixels|ceilings|runs|kernels|gpu ...  # docs/gpu.md
python -m benchmarks checkpoint [--json FILE]
python -m benchmarks bytes [--json FILE]               # of a step's Triton kernels, without a GPU
python -m benchmarks evaluate|first --data SHARDS [--json FILE]
python -m benchmarks small [--json FILE]               # accuracy of recipes on small sets: docs/recipes.md
"""

import json
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from alexnet import AlexNetError
from benchmarks.budget import BudgetOptions, run_budget
from benchmarks.ceilings import CeilingsOptions, run_ceilings
from benchmarks.checkpoint import CheckpointOptions, run_checkpoint
from benchmarks.decoder_survey import RunsOptions, run_runs
from benchmarks.evaluate import EvaluateOptions, run_evaluate
from benchmarks.first_batch import FirstOptions, run_first
from benchmarks.gpu import GpuOptions, run_gpu
from benchmarks.gpu_decode import DecodeOptions, run_decode
from benchmarks.gpu_decoder import PiecesOptions, run_pieces
from benchmarks.harness.machine import machine, result_path
from benchmarks.kernels import KernelsOptions, run_kernels
from benchmarks.loader import LoaderOptions, run_loader
from benchmarks.pixels import PixelsOptions, run_pixels
from benchmarks.plots.loaders import save_loaders
from benchmarks.remote import RemoteOptions, run_remote
from benchmarks.shard import ShardOptions, run_shard
from benchmarks.small import SmallOptions, run_small
from benchmarks.step import StepOptions, run_step
from benchmarks.step_bytes import BytesOptions, run_bytes
from benchmarks.train import TrainOptions, run_train
from pipelines import DataError
from pipelines.files import write_atomically
from pipelines.terminal import run_command
from pipelines.turbo.native import turbo_text

# Name, options, and the function that measures. It yields the result so far after every round; the last is printed.
COMMANDS: tuple[tuple[str, type, Callable[[Any], Iterator[dict]]], ...] = (
    ("loader", LoaderOptions, run_loader),
    ("step", StepOptions, run_step),
    ("shard", ShardOptions, run_shard),
    ("train", TrainOptions, run_train),
    ("ceilings", CeilingsOptions, run_ceilings),
    ("runs", RunsOptions, run_runs),
    ("kernels", KernelsOptions, run_kernels),
    ("budget", BudgetOptions, run_budget),
    ("decode", DecodeOptions, run_decode),
    ("pixels", PixelsOptions, run_pixels),
    ("pieces", PiecesOptions, run_pieces),
    ("checkpoint", CheckpointOptions, run_checkpoint),
    ("evaluate", EvaluateOptions, run_evaluate),
    ("first", FirstOptions, run_first),
    ("remote", RemoteOptions, run_remote),
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
    for result in MEASURES[type(options)](options):
        if isinstance(options, LoaderOptions | TrainOptions | EvaluateOptions | FirstOptions):
            result |= {"decoder": turbo_text()}
        save(options, result, partial=True)
    print(result.get("decoder", ""), end="\n" * ("decoder" in result))
    ran = [row["rounds"] for row in result["rows"] if "rounds" in row]
    partial = min(ran, default=0) < result.get("rounds", 0) or bool(result.get("left_out"))
    print_rates([row for row in result["rows"] if "median" in row])
    failed = [f"failed: {one['name']}: {one['why']}" for one in result.get("failed", ())]
    result["diagnosis"] = list(dict.fromkeys([*result.get("diagnosis", ()), *failed]))
    print("\n".join(result["diagnosis"]))
    if isinstance(options, LoaderOptions) and options.picture:
        save_loaders(result, options.picture)
        print(f"drawn in {options.picture}")
    if partial:
        print(f"partial: {min(ran, default=0)} of {result.get('rounds')} rounds")
        print("\n".join(f"left out: {line}" for line in result.get("left_out", ())))
    save(options, result, partial)
    if result.get("wrong"):
        raise DataError(result["wrong"])
    if options.json:
        print(f"written to {result_path(options.json, result['benchmark'])}")


def save(options: Any, result: dict[str, Any], partial: bool) -> None:
    """Write the result, if a file was asked for. A command writes it after every round: a later one may not end."""
    if options.json:
        path = result_path(options.json, result["benchmark"])
        write_atomically(path, json.dumps(machine() | {"partial": partial} | result, indent=1).encode() + b"\n")


def print_rates(rows: list[dict]) -> None:
    width = max((len(row["name"]) for row in rows), default=0)
    if rows:
        print(f"{'':<{width}}{'images/s':>12}{'least':>12}{'most':>12}{'ratio':>8}")
    for row in rows:
        print(f"{row['name']:<{width}}{row['median']:>12}{row['least']:>12}{row['most']:>12}{row['ratio']:>8}")


if __name__ == "__main__":
    run_command(main, Command, __doc__, errors=(AlexNetError, DataError))
