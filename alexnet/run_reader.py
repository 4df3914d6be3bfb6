"""A reader of run folders: it finds their checkpoint and data, and checks the files that commands write."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypedDict

import numpy as np

from alexnet import AlexNetError
from alexnet.files import MAX_BYTES, read_json, read_limited
from alexnet.log import read_lines
from alexnet.metrics import Predictions
from alexnet.mistakes import Mistake, read_mistakes
from alexnet.run_folder import ROOT
from alexnet.tables import original

URL = re.compile(r"[a-z][a-z0-9]+:/")  # of shards in a bucket: only opening them tells if they are there


class Group(TypedDict):
    """A group of images that share a property."""

    group: str
    images: int
    top1: float
    interval: tuple[float, float]


class Metrics(TypedDict, total=False):
    """The fields of metrics.json that are shown."""

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    calibration_error: float
    loss: float
    mean_confidence: float
    data: str
    split: str
    samples: int
    classes: int
    crops: int
    images_per_second: float
    confused: tuple[tuple[str, str, int], ...]
    by_property: dict[str, tuple[Group, ...]]


class ClassRow(NamedTuple):
    """A row of classes.csv."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float
    wnid: str


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; a missing file's are empty."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    classes: list[ClassRow]
    predictions: Predictions | None
    mistakes: list[Mistake]

    def last_epoch(self) -> dict[str, Any]:
        return next((entry for entry in reversed(self.log) if entry["kind"] == "epoch"), {})

    def of_steps(self, field: str) -> float | None:
        """Return the median of a field over the log's steps; None if no line has it."""
        values = [entry[field] for entry in self.log if entry["kind"] == "step" and field in entry]
        return median(values) if values else None


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint of a run folder, best.pt or else last.pt; a path of a file as it is. Raises AlexNetError.

    Every command that takes a checkpoint takes the folder of its run too.
    """
    if not path.is_dir():
        return path
    for name in ("best.pt", "last.pt"):
        if (path / name).is_file():
            return path / name
    raise AlexNetError(f"no checkpoint in {path}: neither best.pt nor last.pt; name the folder that train.py wrote")


def find_data(path: Path, state: dict[str, Any]) -> Path:
    """Return the shard folder, or the URL, that the checkpoint at ``path``, with the content ``state``, was trained on.

    The run's config.json beside it says it, as a resumed run may have moved, else the configuration in the checkpoint.
    A relative path starts at the working directory, or at this checkout. Raises AlexNetError if it is not there.
    """
    configs = (_read(path.with_name("config.json"), dict[str, Any]), state.get("config"))
    named = [config["data"] for config in configs if isinstance(config, dict) and isinstance(config.get("data"), str)]
    for data in named:
        if URL.match(data):
            return Path(data)
        for folder in (Path(data), ROOT / data):
            if folder.is_dir():
                return folder
    known = f"was trained on {named[0]}, which is not here" if named else "does not say what it was trained on"
    raise AlexNetError(f"{path} {known}: name its shard folder with --data")


def read_run(path: Path) -> Run:
    """Read a run folder, given it or a checkpoint in it. Raises AlexNetError if there is no run, or it is damaged."""
    folder = path.parent if path.is_file() else path
    if not (folder / "log.jsonl").is_file():
        raise AlexNetError(f"no run at {folder}: log.jsonl is missing; name a folder that train.py wrote")
    config, environment = (_read(folder / f"{name}.json", dict[str, Any]) for name in ("config", "env"))
    metrics, classes = _read(folder / "metrics.json", Metrics), folder / "classes.csv"
    rows = _read_classes(classes) if classes.is_file() else []
    predictions = _read_predictions(folder / "predictions.csv", [row.wnid for row in rows])
    return Run(
        folder,
        config=config,
        environment=environment,
        log=read_lines(folder / "log.jsonl"),
        metrics=metrics,
        classes=rows,
        predictions=predictions,
        mistakes=read_mistakes(folder),
    )


def _read(path: Path, kind: Any) -> dict[str, Any]:
    return read_json(path, kind) if path.is_file() else {}


def _read_classes(path: Path) -> list[ClassRow]:
    try:
        table = csv.DictReader(read_limited(path).decode().splitlines())
        return [
            ClassRow(
                original(row["name"]),
                int(row["images"]),
                precision=float(row["precision"]),
                recall=float(row["recall"]),
                f1=float(row["f1"]),
                wnid=original(row.get("wnid") or ""),
            )
            for row in table
        ]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise AlexNetError(f"{path} is damaged ({error}): make it again, or remove it") from error


def _read_predictions(path: Path, wnids: list[str]) -> Predictions | None:
    """Read predictions.csv, without the loss; None if it is missing, too long to be drawn, or of other classes."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    try:
        rows = list(csv.DictReader(read_limited(path).decode().splitlines()))
        named = ([original(row[column]) for row in rows] for column in ("true", "predicted"))
        labels, predicted = (np.array([numbers.get(wnid, -1) for wnid in column], np.int64) for column in named)
        ranks = np.array([int(row["rank"]) for row in rows], np.int64)
        confidence = np.array([float(row["confidence"]) for row in rows])
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, csv.Error) as error:
        raise AlexNetError(f"{path} is damaged ({error}): make it again, or remove it") from error
    if not len(rows) or min(labels.min(), predicted.min()) < 0 or not ((confidence >= 0) & (confidence <= 1)).all():
        return None
    return Predictions(labels, predicted, ranks, confidence, np.full(len(rows), np.nan))
