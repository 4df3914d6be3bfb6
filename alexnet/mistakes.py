"""The wrong predictions of a run: mistakes.csv lists the most certain ones, and pictures/thumbnails.png shows them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from alexnet.errors import AlexNetError
from alexnet.files import read_limited, replacing
from alexnet.metrics import Predictions
from alexnet.tables import original, write_csv

MOST = 144  # mistakes in the list
COLUMNS, SIDE = 12, 96  # of the thumbnails, which stand in the list's order


class Mistake(NamedTuple):
    """A wrong prediction: the image's key, its class and the predicted one by wnid, and the probability of that."""

    key: str
    true: str
    predicted: str
    probability: float


def most_certain(predictions: Predictions, count: int = MOST) -> list[int]:
    """Return the numbers of the images predicted wrongly, the highest probability first."""
    wrong = np.flatnonzero(~predictions.right)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:count].tolist()


def write_mistakes(folder: Path, mistakes: Sequence[Mistake], views: Sequence[np.ndarray]) -> None:
    """Write both files into a run folder. ``views`` are the images, each size,size,3 uint8."""
    rows = max(1, -(-len(views) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE))
    for i, view in enumerate(views):
        small = Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    with replacing(pictures / "thumbnails.png") as partial:
        sheet.save(partial, "PNG")
    write_csv(folder / "mistakes.csv", [Mistake._fields, *((*one[:3], round(one.probability, 6)) for one in mistakes)])


def read_mistakes(folder: Path) -> list[Mistake]:
    """Return the list of a run folder; an empty one if there is no file. Raises AlexNetError if it is damaged."""
    path = folder / "mistakes.csv"
    if not path.is_file():
        return []
    try:
        rows = csv.DictReader(read_limited(path).decode().splitlines())
        return [
            Mistake(original(row["key"]), original(row["true"]), original(row["predicted"]), float(row["probability"]))
            for row in list(rows)[:MOST]
        ]
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise AlexNetError(f"{path} is damaged ({error}): draw it again, or remove it") from error
