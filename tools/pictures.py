"""Writing a run's pictures."""

from pathlib import Path

from matplotlib.figure import Figure


def save(pictures: dict[str, Figure], folder: Path) -> None:
    """``folder``/NAME.png each, at the resolution of print for a figure of a hand's breadth. Prints their names."""
    folder.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=200, bbox_inches="tight")
        print(path)
