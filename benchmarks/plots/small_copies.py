"""Write small copies of a run's pictures for the docs.

python -m benchmarks.plots.small_copies runs/demo/pictures/neighbours.png runs/demo/pictures/answers.png docs
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from pipelines.files import replacing
from pipelines.terminal import require, run_command


@dataclass(frozen=True)
class Options:
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """PNG files and, last, the folder for their copies."""
    width: int = 1000
    """Largest width in pixels."""
    colours: int = 256
    """Colours of the palette, which takes a quarter of the bytes."""

    def __post_init__(self) -> None:
        require(len(self.pictures) >= 2 and self.pictures[-1].is_dir(), "name pictures, and last a folder")
        require(self.width >= 1 and 2 <= self.colours <= 256, "--width starts at 1, --colours goes from 2 to 256")


def main(options: Options) -> None:
    *sources, folder = options.pictures
    for source in sources:
        image = Image.open(source).convert("RGB")
        image.thumbnail((options.width, 10 * options.width))
        copy = folder / source.name
        with replacing(copy) as partial:
            image.quantize(options.colours, dither=Image.Dither.NONE).save(partial, "PNG", optimize=True)
        print(f"{copy}: {copy.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
