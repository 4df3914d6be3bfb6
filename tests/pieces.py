"""Crops of JPEGs with restart markers, whole and damaged, by the emulated kernels and by libjpeg-turbo.

Each file is decoded by itself, from memory of exactly its length, so that a sanitizer sees each access beyond it.
"""

import random
from collections import Counter

import numpy as np
import torch

from pipelines.gpu.decoder import PieceDecoder
from pipelines.gpu.layout import JpegLayout, read_layout
from pipelines.turbo.native import is_whole
from pipelines.turbo.restart_markers import with_restarts
from tests import jpegs
from tests.damage import damaged, random_edits
from tests.sequences import decode, saved_at_random

CPU = torch.device("cpu")
SAMPLINGS = ("grey", "4:4:4", "4:2:2", "4:2:0")
OF_A_FILE = 8  # crops drawn of each file: making it takes longer than decoding it
QUALITIES = (3, 10, 50, 75, 90, 95, 100)


def make_jpeg(rng: random.Random, sampling: str) -> bytes:
    """Return a JPEG with restart markers: random coefficients with any tables, or a picture as sharding writes it."""
    if rng.random() < 0.3:
        return with_restarts(
            saved_at_random(rng, quality=rng.choice(QUALITIES), subsampling=max(0, SAMPLINGS.index(sampling) - 1))
        )
    width, height = rng.choice(((64, 64), (80, 64), (33, 17), (rng.randint(1, 100), rng.randint(1, 100))))
    tables = rng.choice(("standard", "shuffled", "long"))
    kind = jpegs.Kind(jpegs.COMMON[sampling], width, height, rng.randint(1, 9), tables, rng.choice(QUALITIES))
    kind.most_dc = rng.choice((100, 1000))
    return jpegs.generate(rng, kind)


def damage(rng: random.Random, jpeg: bytes, begin: int) -> bytes:
    """Return the JPEG with a few edits behind byte ``begin``: bits, cuts, copies, restart markers; or anywhere."""
    head, scan = jpeg[:begin], jpeg[begin:]
    match rng.randrange(5):
        case 0:
            return damaged(jpeg, random_edits(rng)) or b"0"
        case 1:
            return head + damaged(scan, random_edits(rng))
        case 2:
            markers = [place for place in range(len(scan) - 1) if scan[place] == 0xFF and scan[place + 1]]
            place = rng.choice(markers)
            marker = rng.choice((b"", b"\xff", b"\xff\0", bytes([0xFF, 0xD0 + rng.randrange(10)])))
            return head + scan[:place] + marker + scan[place + 2 :]
        case _:
            edited = bytearray(scan)
            for _ in range(rng.choice((1, 1, 3))):
                edited[rng.randrange(len(edited))] ^= 1 << rng.randrange(8)
            return head + bytes(edited)


class Rows:
    """A decoder of crops of one size, of files that share a header, one file at a time."""

    def __init__(self, layout: JpegLayout, size: int) -> None:
        self.layout, self.size = layout, size
        self._decoder = PieceDecoder(layout, CPU, rows=1, size=size, dtype=torch.uint8, mean_image=None, scale=None)

    def decode(self, jpeg: bytes, top: int, left: int, flip: bool = False) -> tuple[np.ndarray, int]:
        """Decode a file's crop. Return size,size,3 uint8 and the status."""
        images, status = self._decoder(
            torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy()),
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([len(jpeg)], dtype=torch.int32),
            torch.tensor([[top, left, self.size, self.size]], dtype=torch.int32),
            torch.tensor([[top, left, flip]]),
            torch.zeros(1, 3),
            None,
            None,
        )
        return images[0].numpy(), int(status[0])


class Pieces:
    """Crops of files that are whole, then damaged. ``counts`` has the outcomes."""

    def __init__(self, seed: int) -> None:
        self.rng, self.counts = random.Random(seed), Counter[str]()

    def run(self, inputs: int, damages: bool = True) -> None:
        """Decode so many inputs. Raises AssertionError with the JPEG for the first pixel that differs from libjpeg's.

        Whole files must be decoded; damaged ones may be, with libjpeg's pixels in the crop, or have a status.
        """
        for number in range(inputs):
            if number % OF_A_FILE == 0:
                jpeg, rows = self._new_file()
            damages_it = damages and self.rng.random() < 0.8
            changed = damage(self.rng, jpeg, len(rows.layout.header)) if damages_it else jpeg
            self.counts[f"{'damaged' if damages_it else 'whole'}, {self._outcome(rows, changed)}"] += 1

    def _new_file(self) -> tuple[bytes, Rows]:
        jpeg = make_jpeg(self.rng, self.rng.choice(SAMPLINGS))
        layout = read_layout(jpeg)
        shortest = min(layout.height, layout.width)
        return jpeg, Rows(layout, shortest if self.rng.random() < 0.3 else self.rng.randint(1, shortest))

    def _outcome(self, rows: Rows, jpeg: bytes) -> str:
        size, layout = rows.size, rows.layout
        top, left = self.rng.randint(0, layout.height - size), self.rng.randint(0, layout.width - size)
        flip = self.rng.random() < 0.5
        found, status = rows.decode(jpeg, top, left, flip)
        if status:
            whole = is_whole(jpeg) and jpeg.startswith(layout.header)
            assert not found.any() and not whole, f"status {status}: {jpeg.hex()}"
            return f"status {status}"
        expected = decode(jpeg, 1)[top : top + size, left : left + size]
        expected = expected[:, ::-1] if flip else expected
        assert np.array_equal(found, expected), f"{size} at {top}, {left}, {flip}: {jpeg.hex()}"
        return "shown"
