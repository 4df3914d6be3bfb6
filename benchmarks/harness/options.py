"""The options that benchmarks have in common."""

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """The device to measure, and the file to write."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    json: Path | None = None
    """Write the result here too, after every round; in a folder, a file named by benchmark, card and torch."""
    minutes: float = math.inf
    """Stop after a whole round if the next would not fit into this time. The result says how many rounds ran."""
