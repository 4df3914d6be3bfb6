"""Pixels of any of Pillow's modes as RGB, 8 bits a channel, and turned as EXIF says."""

import numpy as np
from PIL import Image

from pipelines.errors import DataError
from pipelines.images.tiff import BITS, PHOTOMETRIC

WHITE_IS_ZERO = 0


def depth_repair(image: Image.Image) -> list[str]:
    """Return a repair that says so if the file, opened and not loaded yet, has 16 bits a channel, else nothing."""
    how = next((tile.args for tile in getattr(image, "tile", [])), None)
    layout, most = (how, 0) if isinstance(how, str) else (*(how or ("",)), 0)[:2]
    deep = ";16" in str(layout) or (image.format == "PPM" and most > 255)  # a PPM says what white is
    return ["16 bits scaled to 8"] if deep else []


def to_rgb(image: Image.Image, repairs: list[str]) -> Image.Image:
    """Return a decoded image as RGB. Append what changes how it looks to ``repairs``. Raises DataError for pixels of
    which no value is defined as white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray(_scaled(image, repairs)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"its pixels are of mode {image.mode}, in which no value is defined as white")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), repairs)
    if image.mode not in ("RGB", "L", "1", "P"):
        repairs.append(f"{image.mode} to RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, repairs: list[str]) -> np.ndarray:
    """Return grey pixels of 9 to 16 bits as H,W uint8, with white as 255."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITS, (16,)))
    repairs.append(f"{bits} bits scaled to 8")
    white = (1 << bits) - 1
    values = np.minimum(np.asarray(image).astype(np.uint32), white)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _on_white(image: Image.Image, repairs: list[str]) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    repairs.append("transparency laid on white")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return H,W,3 pixels as a person sees them, by the orientation of EXIF, 1 (or 0, unknown) to 8."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)  # the others follow from this: 5, then as 2 to 4 for 6, 8 and 7
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    if orientation in (2, 3):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
