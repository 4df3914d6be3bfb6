"""Figures written as PNG files."""

from pathlib import Path

from matplotlib.figure import Figure

from alexnet.files import replacing


def save_pictures(pictures: dict[str, Figure], folder: Path) -> None:
    """Write each figure as ``folder``/NAME.png, in a resolution fit for print, and print its path."""
    folder.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=200, bbox_inches="tight")
        print(path)
