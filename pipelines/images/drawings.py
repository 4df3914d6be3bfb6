"""The drawings of the demo: ten classes that differ in shape and texture and share all palettes.

``CLASSES`` maps their wnids to functions; ``draw_image`` draws one, different for every state of the generator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array = npt.NDArray[np.floating]
Layers = list[tuple[Array, int]]  # masks of 0 to 1, bottom first, each with its tone, an index into a palette

# Each palette runs from dark to light, so that tones far apart also differ in a grey image.
PALETTES = [
    ["#1d3557", "#457b9d", "#e76f51", "#a8dadc", "#f1faee"],
    ["#264653", "#2a9d8f", "#e09f3e", "#e9c46a", "#fdf0d5"],
    ["#3d2b1f", "#8a5a44", "#b08968", "#ddb892", "#f5ebe0"],
    ["#1b4332", "#40916c", "#bc6c4a", "#95d5b2", "#fefae0"],
    ["#3c1642", "#9b2c5e", "#d1637f", "#f2b5a0", "#fff1e6"],
    ["#212529", "#5c677d", "#8d99ae", "#c9ccd5", "#f8f9fa"],
    ["#5a0f1c", "#c1352b", "#e07a3f", "#f4b860", "#fff3d6"],
    ["#2b2d64", "#5f5aa2", "#7f8fd0", "#b8c0f0", "#fdf4ff"],
]
GROUND, SHADE, MIDDLE, ACCENT, INK = range(5)


@dataclass(frozen=True)
class Patch:
    """A rectangle of pixels, with the coordinates u and v of the drawing at each pixel."""

    rng: np.random.Generator
    u: Array  # height,width
    v: Array  # height,width
    pixel: float  # one pixel's size in units of u and v

    def inside(self, distance: Array) -> Array:
        """Return a mask, 1 if ``distance`` is negative and else 0, with an edge one pixel soft."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def polar(self) -> tuple[Array, Array]:
        """Return radius and angle of each pixel."""
        return np.hypot(self.u, self.v), np.arctan2(self.v, self.u)


# Textures: they fill the image; u and v are about -1 to 1 across its short side.


def zebra_stripes(patch: Patch) -> Layers:
    bend = 0.25 * smooth_noise(patch.rng, patch.u.shape, 4)
    wave = np.sin(patch.rng.uniform(10, 20) * (patch.u + bend)) + 0.3 * smooth_noise(patch.rng, patch.u.shape, 6)
    return [(patch.inside(0.07 * wave), INK)]


def polka_dots(patch: Patch) -> Layers:
    period = patch.rng.uniform(0.28, 0.55)
    row = np.round(patch.v / period)
    across = (patch.u / period + 0.5 * (row % 2) + 0.5) % 1 - 0.5
    radius = np.hypot(across, patch.v / period - row) * period
    return [(patch.inside(radius - period * patch.rng.uniform(0.26, 0.42)), INK)]


def brick_wall(patch: Patch) -> Layers:
    high = patch.rng.uniform(0.2, 0.36)
    wide = high * patch.rng.uniform(2, 2.6)
    row = np.floor(patch.v / high)
    column = np.floor(patch.u / wide + 0.5 * (row % 2))
    across = np.abs((patch.u / wide + 0.5 * (row % 2)) % 1 - 0.5) * wide
    down = np.abs((patch.v / high) % 1 - 0.5) * high
    mortar = patch.rng.uniform(0.08, 0.13) * high
    brick = patch.inside(np.maximum(across - wide / 2, down - high / 2) + mortar)
    burnt = patch.rng.random((16, 16), dtype=np.float32)[row.astype(int) % 16, column.astype(int) % 16]
    return [(brick, INK), (brick * burnt, ACCENT)]


def tree_rings(patch: Patch) -> Layers:
    radius, _ = patch.polar()
    radius = radius + 0.12 * smooth_noise(patch.rng, patch.u.shape, 4)
    wave = np.sin(radius * patch.rng.uniform(18, 34) + 2 * np.sin(3 * radius))
    return [(patch.inside(0.05 * (wave + 0.1)), INK), (patch.inside(radius - 0.06), ACCENT)]


def chessboard(patch: Patch) -> Layers:
    period = patch.rng.uniform(0.5, 0.9)
    wave = np.sin(2 * np.pi * patch.u / period) * np.sin(2 * np.pi * patch.v / period)
    return [(patch.inside(0.16 * period * wave), INK)]


# Objects: they stand on a background; u and v are -1 to 1 across the object. Their first layer is their outline.


def starfish(patch: Patch) -> Layers:
    radius, angle = patch.polar()
    arm = 0.5 + 0.5 * np.cos(5 * angle + 0.25 * np.sin(4 * radius))
    body = patch.inside(0.6 * (radius - 0.3 - 0.66 * arm ** patch.rng.uniform(1.3, 2)))
    warts = patch.inside(0.08 * (0.2 - arm**12 * (0.5 + 0.5 * np.sin(38 * radius))))
    return [(body, INK), (warts * body, MIDDLE)]


def daisy(patch: Patch) -> Layers:
    radius, angle = patch.polar()
    petal = np.abs(np.cos(angle * int(patch.rng.integers(8, 14)) / 2))
    petals = patch.inside(0.4 * (radius - 0.2 - 0.78 * petal**0.6))
    return [(petals, INK), (petals * (0.6 - 0.6 * radius).clip(0, 1), ACCENT), (patch.inside(radius - 0.27), SHADE)]


def leaf(patch: Patch) -> Layers:
    side = np.abs(patch.v)
    width = patch.rng.uniform(0.42, 0.6) * (1 + 0.35 * patch.u) + 0.02 * np.sin(50 * patch.u)
    blade = 0.8 * (side - width * (1 - patch.u**2))
    stem = np.maximum(side - 0.03, np.abs(patch.u) - 1.08)
    veins = np.minimum(np.abs((7 * (patch.u - 0.8 * side)) % 1 - 0.5) / 7 - 0.012, side - 0.025)
    return [(patch.inside(np.minimum(blade, stem)), INK), (patch.inside(np.maximum(blade, veins)), SHADE)]


def lifebuoy(patch: Patch) -> Layers:
    radius, angle = patch.polar()
    ring = patch.inside(np.abs(radius - 0.72) - patch.rng.uniform(0.2, 0.27))
    return [(ring, INK), (ring * patch.inside(0.3 * radius * np.cos(4 * angle)), MIDDLE)]


def butterfly(patch: Patch) -> Layers:
    side = np.abs(patch.u)
    lean = patch.rng.uniform(0.3, 0.6)
    upper = np.hypot((side - 0.48) / 0.44, (patch.v + 0.28 + lean * (side - 0.48)) / 0.4) - 1
    lower = np.hypot((side - 0.36) / 0.36, (patch.v - 0.38 - 0.4 * (side - 0.36)) / 0.38) - 1
    feelers = np.maximum(np.abs(side - 0.6 * (patch.v + 0.55) ** 2 - 0.03) - 0.022, np.abs(patch.v + 0.75) - 0.25)
    body = 0.1 * (np.hypot(side / 0.08, patch.v / 0.6) - 1)
    wings = 0.35 * np.minimum(upper, lower)
    spots = np.minimum(np.hypot(side - 0.56, patch.v + 0.36), np.hypot(side - 0.4, patch.v - 0.42)) - 0.12
    outline = patch.inside(np.minimum(np.minimum(wings, body), feelers))
    panes = patch.inside(np.maximum(wings + 0.05, 0.13 - side))
    return [(outline, INK), (panes, MIDDLE), (panes * patch.inside(spots), INK)]


Draw = Callable[[Patch], Layers]
TEXTURES: list[Draw] = [zebra_stripes, polka_dots, brick_wall, tree_rings, chessboard]
OBJECTS: list[Draw] = [starfish, daisy, leaf, lifebuoy, butterfly]
CLASSES = {f"n9000000{label}": draw for label, draw in enumerate(TEXTURES + OBJECTS)}


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Array:
    """Return height,width of smooth noise, about -1 to 1, with ``cells`` random values a side, interpolated."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def patch_at(
    rng: np.random.Generator, shape: tuple[int, int], centre: tuple[float, float], radius: float, tilt: float = 0
) -> Patch:
    """Return a patch rotated at random about ``centre`` (x, y) and scaled by ``radius``, both in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    down, across = np.ogrid[: shape[0], : shape[1]]
    x = ((across - centre[0]) / radius).astype(np.float32)
    y = ((down - centre[1]) / radius).astype(np.float32)
    depth = 1 + tilt * x  # seen at a slant
    return Patch(rng, (cosine * x + sine * y) / depth, (cosine * y - sine * x) / depth, 1 / radius)


def as_mask(mask: Array) -> Image.Image:
    return Image.fromarray((mask * 255).astype(np.uint8))


def add_texture(image: Image.Image, draw: Draw, tones: list[str], rng: np.random.Generator) -> None:
    """Fill the image with a texture."""
    width, height = image.size
    centre = (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7))
    patch = patch_at(rng, (height, width), centre, min(width, height) / 2, tilt=rng.uniform(-0.2, 0.2))
    for mask, tone in draw(patch):
        image.paste(tones[tone], mask=as_mask(mask))


def add_object(image: Image.Image, draw: Draw, tones: list[str], rng: np.random.Generator) -> None:
    """Put an object and its shadow somewhere around the middle, lit from one side."""
    width, height = image.size
    radius = min(width, height) * rng.uniform(0.3, 0.5)
    centre = (width * rng.uniform(0.38, 0.62), height * rng.uniform(0.38, 0.62))
    side = int(2.2 * radius)
    corner = (int(centre[0] - side / 2), int(centre[1] - side / 2))
    patch = patch_at(rng, (side, side), (side / 2, side / 2), radius)
    layers = draw(patch)
    outline = as_mask(layers[0][0] * 0.5).filter(ImageFilter.BoxBlur(radius * 0.05))
    image.paste("black", (corner[0] + side // 25, corner[1] + side // 20), outline)
    for mask, tone in layers:
        image.paste(tones[tone], corner, as_mask(mask))
    image.paste("black", corner, as_mask(layers[0][0] * (0.3 * patch.u).clip(0, 1)))
    image.paste("white", corner, as_mask(layers[0][0] * (-0.3 * patch.u).clip(0, 1)))


def add_clutter(image: Image.Image, tones: list[str], rng: np.random.Generator) -> None:
    """Draw pebbles and twigs, which are independent of the class."""
    pen = ImageDraw.Draw(image)
    short = min(image.size)
    for _ in range(rng.integers(0, 12)):
        x, y = rng.uniform(0, image.size)
        wide, high = rng.uniform(0.02, 0.08, 2) * short
        tone = tones[rng.choice([SHADE, MIDDLE, ACCENT])]
        if rng.random() < 0.7:
            pen.ellipse((x - wide, y - high, x + wide, y + high), fill=tone)
        else:
            turn = rng.choice([-3, 3])
            pen.line((x - turn * wide, y - 3 * high, x + turn * wide, y + 3 * high), fill=tone, width=short // 60)


def expose(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply uneven and tinted light, haze, and a sensor's noise."""
    shape = (image.height, image.width)
    slope_x, slope_y = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope_x * np.linspace(-1, 1, shape[1]) + slope_y * np.linspace(-1, 1, shape[0])[:, None]
    light = light.astype(np.float32) + 0.12 * smooth_noise(rng, shape, 4) + 0.06 * smooth_noise(rng, shape, 60)
    tint = rng.uniform(0.6, 1) * rng.uniform(0.75, 1.15, 3).astype(np.float32)
    grain = rng.uniform(2, 9) * rng.standard_normal(shape, dtype=np.float32) + rng.uniform(0, 45)
    bands = [np.asarray(band) * light * gain + grain for band, gain in zip(image.split(), tint, strict=True)]
    return Image.merge("RGB", [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in bands])


def draw_image(draw: Draw, rng: np.random.Generator) -> Image.Image:
    """Return an RGB image of the class, of a photograph's size."""
    short = rng.choice([375, 333, 300, 200, 500], p=[0.6, 0.15, 0.1, 0.1, 0.05])
    long = int(short * rng.choice([4 / 3, 3 / 2, 1.2, 1]))
    size = (long, int(short)) if rng.random() < 0.7 else (int(short), long)
    tones = PALETTES[rng.integers(len(PALETTES))][:: rng.choice([-1, 1])]
    image = Image.new("RGB", size, tones[GROUND])
    for tone in (SHADE, MIDDLE):
        image.paste(tones[tone], mask=as_mask((rng.uniform(0, 0.8) * smooth_noise(rng, size[::-1], 5)).clip(0, 1)))
    if draw in TEXTURES:
        add_texture(image, draw, tones, rng)
    else:
        add_clutter(image, tones, rng)
        add_object(image, draw, tones, rng)
    return expose(image, rng)
