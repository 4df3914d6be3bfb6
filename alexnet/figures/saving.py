"""Figures written as PNG files."""

from pathlib import Path

from matplotlib.figure import Figure

from alexnet.files import replacing

MOST_LETTERS = 1000  # of a description


def save_pictures(pictures: dict[str, Figure], folder: Path) -> None:
    """Write each figure as ``folder``/NAME.png, in a resolution fit for print, and print its path.

    The figure's label, a sentence on what is worth noticing, becomes the PNG's description, which the report shows.
    """
    folder.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        with replacing(path) as partial:
            described = {"Description": str(figure.get_label())[:MOST_LETTERS]}
            figure.savefig(partial, format="png", dpi=200, bbox_inches="tight", metadata=described)
        print(path)
