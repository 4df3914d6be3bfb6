"""The bytes of the shard member that a source image becomes, by ``--resize`` and ``--encoding``."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

from pipelines.errors import DataError
from pipelines.images.jpeg import DAMAGED, Jpeg, inspect, without_cuts
from pipelines.images.limits import check_shape
from pipelines.images.picture import misnamed, read_picture
from pipelines.images.resize import shorter, square
from pipelines.sharding.sources import Sample
from pipelines.shards.manifest import ImageFormat
from pipelines.turbo.decode import check_data
from pipelines.turbo.restart_markers import with_restarts

USUAL_BYTES_A_PIXEL = 0.34  # a photograph at quality 90
SAMPLES_LOOKED_AT = 256  # to estimate the mean size of files that will be copied


@dataclass(frozen=True)
class Member:
    """A shard member: its bytes, and its pixels before encoding (H,W,3 uint8) if requested or decoded anyway."""

    data: bytes
    repairs: tuple[str, ...]
    pixels: np.ndarray | None


def make_member(data: bytes, suffix: str, image: ImageFormat, *, max_pixels: int, want_pixels: bool) -> Member:
    """Turn a source image into its shard member. Raises DataError with the reason if the image cannot be used."""
    if image.resize == "none":
        return _copy_jpeg(data, suffix, image, max_pixels=max_pixels, want_pixels=want_pixels)
    picture = read_picture(data, suffix, max_pixels)
    height, width = picture.pixels.shape[:2]
    _check_shape(height, width, image, max_pixels)
    resized = (square if image.resize == "square" else shorter)(picture.pixels, image.size)
    encoded = encode_raw(resized) if image.encoding == "raw" else _encode(resized, image)
    return Member(encoded, picture.repairs, resized)


def _copy_jpeg(data: bytes, suffix: str, image: ImageFormat, *, max_pixels: int, want_pixels: bool) -> Member:
    """Copy a healthy upright baseline JPEG, colour or grey, or add restart markers to it; re-encode any other."""
    jpeg = inspect(data)
    if jpeg.obstacles:
        return _reencode(data, jpeg, suffix, image, max_pixels=max_pixels)
    _check_shape(jpeg.height, jpeg.width, image, max_pixels)
    repairs = (*misnamed("JPEG", suffix), *dict.fromkeys(why for _, _, why in jpeg.cuts))
    plain = without_cuts(data, jpeg)
    try:
        if image.restarts:
            plain = with_restarts(plain)
        else:
            check_data(plain)
    except ValueError as error:
        found = _reencode(data, jpeg, suffix, image, max_pixels=max_pixels)
        listed = any(why.startswith(DAMAGED) for why in found.repairs)
        return found if listed else replace(found, repairs=(*found.repairs, f"{DAMAGED}{error}"))
    pixels = read_picture(data, suffix, max_pixels, jpeg).pixels if want_pixels else None
    return Member(plain, repairs, pixels)


def _reencode(data: bytes, jpeg: Jpeg, suffix: str, image: ImageFormat, *, max_pixels: int) -> Member:
    picture = read_picture(data, suffix, max_pixels, jpeg)
    height, width = picture.pixels.shape[:2]
    _check_shape(height, width, image, max_pixels)
    if picture.format == "JPEG":
        found = (*jpeg.obstacles, *(why for _, _, why in jpeg.cuts))
    else:
        found = () if misnamed(picture.format, suffix) else (f"{picture.format} to JPEG",)
    repairs = tuple(dict.fromkeys((*picture.repairs, *found)))
    return Member(_encode(picture.pixels, image), repairs, picture.pixels)


def _check_shape(height: int, width: int, image: ImageFormat, max_pixels: int) -> None:
    try:
        check_shape(height, width, image, max_pixels)
    except ValueError as error:
        raise DataError(str(error)) from None


def _encode(pixels: np.ndarray, image: ImageFormat) -> bytes:
    jpeg = encode_jpeg(pixels, image.quality)
    return with_restarts(jpeg) if image.restarts else jpeg


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode H,W,3 uint8 as a baseline 4:2:0 JPEG without comments, EXIF or colour profile."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420", fastdct=False)


def encode_raw(pixels: np.ndarray) -> bytes:
    """Encode H,W,3 uint8 in numpy's format 1.0, which DALI reads too."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, pixels, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def expected_bytes(
    image: ImageFormat, samples: Sequence[Sample], sizes: Callable[[Sequence[Sample]], list[int]]
) -> float:
    """Estimate the bytes of a member. For files that are copied, return the mean of an evenly spread subset."""
    if image.encoding == "raw":
        return 3.0 * image.size**2 + 128
    if image.resize != "none":
        return USUAL_BYTES_A_PIXEL * image.size**2 * (1.0 if image.resize == "square" else 1.35)
    some = samples[:: -(-len(samples) // SAMPLES_LOOKED_AT)]
    return sum(sizes(some)) / len(some)
