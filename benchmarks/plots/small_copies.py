"""Write small copies of a run's pictures for the docs.

python -m benchmarks.plots.small_copies runs/demo/pictures/neighbours.png runs/demo/pictures/answers.png docs
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from pipelines.files import replacing
from pipelines.terminal import in_range, require, run_command


@dataclass(frozen=True)
class Options:
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """PNG files and, last, the folder for their copies, as WebP."""
    width: int = 1000
    """Largest width in pixels."""
    quality: int = 90
    """Quality of the WebP files, from 1 to 100."""

    def __post_init__(self) -> None:
        require(len(self.pictures) >= 2 and self.pictures[-1].is_dir(), "name pictures, and last a folder")
        in_range("width", self.width, 1)
        in_range("quality", self.quality, 1, 100)


def main(options: Options) -> None:
    *sources, folder = options.pictures
    for source in sources:
        image = Image.open(source).convert("RGB")
        image.thumbnail((options.width, 10 * options.width), Image.Resampling.LANCZOS)
        copy = folder / f"{source.stem}.webp"
        with replacing(copy) as partial:
            image.save(partial, "WEBP", quality=options.quality, method=6)
        print(f"{copy}: {copy.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
