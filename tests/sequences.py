"""Sequences of JPEGs for one decoder: whole, damaged, whole again, of mixed samplings and tables.

A reused decoder may keep state of the previous file. So each of its pixels is compared with libjpeg-turbo's decode of
the whole file, by simplejpeg, which makes a new decoder for each file.
"""

import io
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from pipelines import Augment, Manifest
from pipelines.crops import shrink_to
from pipelines.images.jpeg import inspect
from pipelines.sharding.hashed_tar import HashedTar
from pipelines.shards.manifest import ImageClass, ImageFormat, Statistics
from pipelines.turbo.native import Worker
from pipelines.turbo.randomness import draw
from pipelines.turbo.renderer import Renderer
from pipelines.turbo.restart_markers import with_restarts
from tests import jpegs
from tests.damage import damaged, random_edits

BATCH = 16
SHORTER = 64  # shorter side of the images that random and centre crops are taken from
FORMAT = ImageFormat("jpeg", "none", SHORTER, 90)
SIZES = ((80, 64), (64, 64), (33, 17), (136, 97), (64, 203))
AUGMENTS = (
    Augment(crop="random", size=48, normalise="none"),
    Augment(crop="center", size=64, normalise="none"),
    Augment(crop="resized", size=20, scale=(0.0001, 1), ratio=(0.1, 10), normalise="none"),
    Augment(crop="resized", size=60, scale=(0.05, 1), normalise="none"),
)
TABLE_SEGMENT = re.compile(b"\xff[\xc4\xdb]")


def corpus(rng: random.Random) -> list[bytes]:
    """Return JPEGs of each sampling with each kind of table and restart interval, and some written by encoders."""
    kinds = [
        jpegs.Kind(factors, *rng.choice(SIZES), interval, tables, rng.choice((5, 50, 90, 100)))
        for factors in (*jpegs.COMMON.values(), *jpegs.COMMON.values(), *jpegs.RARE.values(), *jpegs.INVALID.values())
        for tables in ("standard", "shuffled", "long")
        for interval in (0, rng.randint(1, 9))
    ]
    return [jpegs.generate(rng, kind) for kind in kinds] + [
        saved_at_random(rng, **options) for options in PILLOW for _ in "12"
    ]


PILLOW: tuple[dict[str, object], ...] = (
    *({"quality": 90, "subsampling": kind} for kind in (0, 1, 2)),
    {"quality": 3},
    {"quality": 100, "subsampling": 0},
    {"optimize": True},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 4},
)


def saved_at_random(rng: random.Random, **options: object) -> bytes:
    """Return a picture of a random size, saved by Pillow."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (8, 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(rng.choice(SIZES)).save(file, "JPEG", **options)
    return file.getvalue()


def table_damaged(rng: random.Random, jpeg: bytes) -> bytes:
    """Return the JPEG with one table missing: renumbered, or its segment turned into another one or cut out."""
    segments = [found.start() for found in TABLE_SEGMENT.finditer(jpeg[:2000])]
    if not segments:
        return jpeg
    data, start = bytearray(jpeg), rng.choice(segments)
    length = int.from_bytes(data[start + 2 : start + 4])
    match rng.randrange(4):
        case 0:
            data[start + 4] ^= 1 << rng.randrange(5)  # its number, or AC instead of DC
        case 1:
            data[start + 1] = rng.choice((0xE5, 0xFE))  # APP5 or a comment
        case 2:
            del data[start : start + 2 + length]
        case 3:
            tables = max(1, (length - 2) // 65)
            data[start + 4 + 65 * rng.randrange(tables)] ^= 1 << rng.randrange(3)
    return bytes(data)


@dataclass
class Records:
    """Samples of a tar in memory, located as ``pipelines.shards.records.Records`` locates them."""

    samples: Sequence[bytes]
    file: int

    def __post_init__(self) -> None:
        tar, lines, ends = io.BytesIO(), b"", [0]
        writer = HashedTar(tar)
        for number, sample in enumerate(self.samples):
            start, label_start = writer.add(str(number), "jpg", sample, b"%d" % (number % 10))
            lines += f"jpg {start} {len(sample)} {number}.jpg cls {label_start} 1 {number}.cls\n".encode()
            ends.append(len(lines))
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, tar.getvalue(), 0)
        self._lines, self._ends = np.frombuffer(lines, np.uint8), ends

    def locate(self, number: int) -> tuple[int, int, int]:
        start, end = self._ends[number : number + 2]
        return self.file, self._lines.ctypes.data + start, end - start - 1


class Decoding:
    """One worker for each crop; each worker decodes one input after another.

    ``counts`` has the outcomes: "scan damaged, shown" counts inputs that the worker decoded although libjpeg-turbo
    warns about them, "left to Python" whole inputs that the worker did not decode.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.counts = random.Random(seed), Counter[str]()
        self._corpus = corpus(self.rng)
        self._file = os.memfd_create("samples")
        classes = tuple(ImageClass(f"n{number}", "") for number in range(10))
        zeros = (0.0, 0.0, 0.0)
        statistics = Statistics(zeros, zeros, zeros, eigenvectors=(zeros,) * 3, mean_image=None)
        self._manifest = Manifest(Path(), 0, FORMAT, classes, splits={}, statistics=statistics)
        self._renderers = [Renderer(self._manifest, augment) for augment in AUGMENTS]
        self._workers: list[Worker] = [Worker(None, self._manifest, augment, BATCH) for augment in AUGMENTS]  # type: ignore[arg-type]
        self._batches = 0

    def run(self, inputs: int) -> None:
        """Decode so many inputs. Raises AssertionError for the first pixel or label that differs from the file's."""
        for _ in range(-(-inputs // BATCH)):
            self._run_batch(*zip(*(self._input() for _ in range(BATCH)), strict=True))

    def _input(self) -> tuple[str, bytes]:
        """Return the kind of damage done to a JPEG, and the JPEG."""
        jpeg = self.rng.choice(self._corpus)
        kind = self.rng.choices(("whole", "edited", "table lost", "scan damaged"), (0.4, 0.25, 0.15, 0.2))[0]
        if kind == "edited":
            jpeg = damaged(jpeg, random_edits(self.rng)) or b"0"
        elif kind == "table lost":
            jpeg = table_damaged(self.rng, jpeg)
        elif kind == "scan damaged":
            place = self.rng.randrange(jpeg.rindex(b"\xff\xda") + 12, len(jpeg) - 2)
            jpeg = jpeg[:place] + bytes([jpeg[place] ^ 1 << self.rng.randrange(8)]) + jpeg[place + 1 :]
        return kind, jpeg

    def _run_batch(self, kinds: tuple[str, ...], inputs: tuple[bytes, ...]) -> None:
        number = self.rng.randrange(len(AUGMENTS))
        augment, renderer, worker = AUGMENTS[number], self._renderers[number], self._workers[number]
        draws = draw(self._batches, 0, augment, first=0, count=BATCH)
        self._batches += 1
        worker._records = Records(inputs, self._file)  # type: ignore[assignment]
        out = np.zeros((BATCH, augment.size, augment.size, 3), np.uint8)
        samples = worker.render(range(BATCH), draws.crop_draws, draws.flips, out)
        parts = dict(worker.parts(samples))
        for row, (kind, jpeg) in enumerate(zip(kinds, inputs, strict=True)):
            if not samples["done"][row]:
                self.counts[f"{kind}, {'left to Python' if is_whole(jpeg) else 'refused'}"] += 1
                continue
            assert samples["label"][row] == row % 10
            height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
            box, _ = renderer._choose(height, width, draws.at(row)) or (None, None)
            assert box
            shrink = shrink_to(box, augment.size)
            top, left, box_height, box_width = (number // shrink for number in box)
            expected = decode(jpeg, shrink)[top : top + box_height, left : left + box_width]
            expected = expected[:, ::-1] if draws.flips[row] else expected
            found = parts.get(row, out[row])[..., :3]
            assert np.array_equal(found, expected), f"batch {self._batches - 1}, row {row}: {jpeg.hex()}"
            self.counts[f"{kind}, {'decoded' if is_whole(jpeg) else 'shown'}"] += 1
        self._check_restarts(self.rng.choice(inputs))

    def _check_restarts(self, jpeg: bytes) -> None:
        """Check that restart markers, which the sharding tool adds to plain files, change no pixel, or are refused."""
        if inspect(jpeg).obstacles:
            return
        try:
            marked = with_restarts(jpeg)
        except ValueError:
            self.counts["restart markers refused"] += 1
            return
        assert is_whole(marked), jpeg.hex()
        assert np.array_equal(decode(marked, 1), decode(jpeg, 1)), jpeg.hex()
        self.counts["restart markers written"] += 1


def decode(jpeg: bytes, shrink: int) -> np.ndarray:
    """Decode a file at 1 / ``shrink`` of its size, as far as libjpeg-turbo can. Return H,W,3 uint8."""
    height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
    least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    try:
        return simplejpeg.decode_jpeg(jpeg, strict=False, fastdct=False, fastupsample=False, **least)
    except ValueError:  # too damaged for simplejpeg: Pillow returns the rows before the damage
        with patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", True), Image.open(io.BytesIO(jpeg)) as image:
            image.draft("RGB", (width // shrink, height // shrink))
            return np.asarray(image.convert("RGB"))


def is_whole(jpeg: bytes) -> bool:
    """Return true if libjpeg-turbo decodes the file without a warning."""
    try:
        simplejpeg.decode_jpeg(jpeg, "RGBX")
    except (ValueError, KeyError):
        return False
    return True
