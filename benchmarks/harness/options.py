"""The options that benchmarks have in common."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """The device to measure, and the file to write."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    json: Path | None = None
    """Write the result here too."""
