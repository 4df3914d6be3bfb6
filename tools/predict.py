"""Predict what pictures show: the five likeliest classes of each, with their probabilities.

    python tools/predict.py runs/demo cat.jpg holiday/
    cat cat.jpg | python tools/predict.py runs/demo -
    python tools/predict.py runs/demo/last.pt holiday/ --json > answers.jsonl

A folder stands for the image files in and below it, - for one picture on standard input. What is left out of a folder
is counted at the end, by kind. A picture that cannot be read is named and skipped; the exit code is then 1.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from alexnet import AlexNet, AlexNetError, checkpoint
from alexnet.engine import find_device
from alexnet.run_reader import find_checkpoint
from pipelines import DataError
from pipelines.images.picture import SUFFIXES, read_file, read_picture
from pipelines.images.walk import counted, pictures_below
from pipelines.preprocess import Preparation
from pipelines.terminal import in_range, require, run_command
from pipelines.untrusted import MAX_FILE_BYTES, printable


@dataclass(frozen=True)
class Options:
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder (its best.pt, else its last.pt), or a checkpoint."""
    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE ...")]
    """Image files, folders, or -."""
    top: int = 5
    """Classes to print for each picture."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print a JSON line for each picture."""
    batch_size: int = 32
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        require(bool(self.pictures), "no picture is given")
        in_range("batch_size", self.batch_size, 1)
        in_range("top", self.top, 1)


@dataclass
class Reader:
    """A reader of pictures for the network. It counts the pictures that could not be read."""

    preparation: Preparation
    unreadable: int = 0
    total: int = 0

    def read(self, paths: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each picture's name and pixels, 3,224,224 float32, normalised. Report and skip unreadable pictures."""
        for path in paths:
            self.total += 1
            try:
                pixels = read_standard_input() if str(path) == "-" else read_file(path).pixels
                yield str(path), self.preparation.tensor(self.preparation.crop(pixels))
            except (DataError, OSError) as error:
                print(printable(f"error: {path}: {error}"), file=sys.stderr)
                self.unreadable += 1


def main(options: Options) -> None:
    device = find_device(options.device)
    model, state = checkpoint.load_model(find_checkpoint(options.checkpoint), device)
    reader = Reader(Preparation.of(state))
    pictures = reader.read(expand(options.pictures))
    while batch := list(islice(pictures, options.batch_size)):
        names, images = zip(*batch, strict=True)
        for name, best in zip(names, answer(model, torch.stack(images).to(device), options.top), strict=True):
            show(name, best, state["classes"], options.as_json)
    if reader.unreadable:
        raise DataError(f"{reader.unreadable} of {reader.total} pictures could not be read")
    if not reader.total:
        raise DataError(f"no pictures in {', '.join(map(str, options.pictures))}: a folder's are {' '.join(SUFFIXES)}")


def expand(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files in the order given, and the image files of folders sorted by name. At the end, print to standard
    error what was left out of the folders, by kind."""
    left_out: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            yield from (path / name for name in sorted(pictures_below(path, "", left_out)))
        else:
            yield path
    if left_out:
        print(printable(f"left out: {counted(left_out)}"), file=sys.stderr)


def read_standard_input() -> np.ndarray:
    """Read a picture from standard input. Raises DataError, also beyond MAX_FILE_BYTES, as the input may be endless."""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"it has more than the {MAX_FILE_BYTES} bytes allowed")
    return read_picture(data, ".jpg").pixels


@torch.inference_mode()
def answer(model: AlexNet, images: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Return each image's likeliest classes with their probabilities. ``images`` N,3,224,224, normalised."""
    best = model(images).softmax(dim=1).topk(min(count, model.num_classes))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def show(name: str, best: list[tuple[int, float]], classes: list[list[str]], as_json: bool) -> None:
    if as_json:
        answers: list[dict[str, Any]] = [
            {"wnid": classes[i][0], "name": classes[i][1], "probability": round(p, 6)} for i, p in best
        ]
        print(json.dumps({"picture": name, "answers": answers}))
        return
    print(printable(name))
    for i, probability in best:
        print(f"  {100 * probability:6.2f} %  {printable(classes[i][1])}")


if __name__ == "__main__":
    run_command(main, Options, __doc__, errors=(AlexNetError, DataError))
