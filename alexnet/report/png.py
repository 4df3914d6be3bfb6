"""The description inside a PNG file, where tools keep a sentence on what is worth noticing in a picture."""

from pathlib import Path

from PIL import Image


def description(path: Path, most: int = 1000) -> str:
    """Return the description of a PNG file, cut to ``most`` letters; empty if it has none that can be read."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get("Description", "")
    except (OSError, ValueError, SyntaxError):
        return ""
    return str(text)[:most]
