"""What becomes of one source image: the bytes of its shard member, by ``--resize`` and ``--encoding``."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

from pipelines.errors import DataError
from pipelines.images.jpeg import Jpeg, inspect, without_cuts
from pipelines.images.limits import check_shape
from pipelines.images.picture import misnamed, read_picture
from pipelines.images.resize import shorter, square
from pipelines.sharding.sources import Sample
from pipelines.shards.manifest import ImageFormat
from pipelines.turbo.decode import check_data
from pipelines.turbo.restart_markers import with_restarts

USUAL_BYTES_A_PIXEL = 0.34  # a photograph at quality 90
SAMPLES_LOOKED_AT = 256  # to tell how large files are that will be copied


@dataclass(frozen=True)
class Member:
    """``data`` for the shard; ``pixels`` H,W,3 uint8 before encoding, where they were asked for or are there anyway."""

    data: bytes
    repairs: tuple[str, ...]
    pixels: np.ndarray | None


def make_member(data: bytes, suffix: str, image: ImageFormat, max_pixels: int, want_pixels: bool) -> Member:
    """Raises DataError with the reason where the image cannot be used."""
    if image.resize == "none":
        return _as_it_is(data, suffix, image, max_pixels, want_pixels)
    picture = read_picture(data, suffix, max_pixels)
    height, width = picture.pixels.shape[:2]
    _check_shape(height, width, image, max_pixels)
    resized = (square if image.resize == "square" else shorter)(picture.pixels, image.size)
    encoded = encode_raw(resized) if image.encoding == "raw" else _encoded(resized, image)
    return Member(encoded, picture.repairs, resized)


def _as_it_is(data: bytes, suffix: str, image: ImageFormat, max_pixels: int, want_pixels: bool) -> Member:
    """Copy a healthy upright baseline JPEG, colour or grey, or give it restart markers; write any other anew."""
    jpeg = inspect(data)
    if jpeg.obstacles:
        return _written_anew(data, suffix, image, max_pixels, jpeg)
    _check_shape(jpeg.height, jpeg.width, image, max_pixels)
    repairs = (*misnamed("JPEG", suffix), *dict.fromkeys(why for _, _, why in jpeg.cuts))
    plain = without_cuts(data, jpeg)
    try:
        if image.restarts:
            plain = with_restarts(plain)
        else:
            check_data(plain)
    except ValueError as error:
        damaged = replace(jpeg, obstacles=(f"damaged, written anew: {error}",))
        return _written_anew(data, suffix, image, max_pixels, damaged)
    pixels = read_picture(data, suffix, max_pixels).pixels if want_pixels else None
    return Member(plain, repairs, pixels)


def _written_anew(data: bytes, suffix: str, image: ImageFormat, max_pixels: int, jpeg: Jpeg) -> Member:
    picture = read_picture(data, suffix, max_pixels)
    height, width = picture.pixels.shape[:2]
    _check_shape(height, width, image, max_pixels)
    if picture.format == "JPEG":
        found = (*jpeg.obstacles, *(why for _, _, why in jpeg.cuts))
    else:
        found = () if misnamed(picture.format, suffix) else (f"{picture.format} to JPEG",)
    repairs = tuple(dict.fromkeys((*picture.repairs, *found)))
    return Member(_encoded(picture.pixels, image), repairs, picture.pixels)


def _check_shape(height: int, width: int, image: ImageFormat, max_pixels: int) -> None:
    try:
        check_shape(height, width, image, max_pixels)
    except ValueError as error:
        raise DataError(str(error)) from None


def _encoded(pixels: np.ndarray, image: ImageFormat) -> bytes:
    jpeg = encode_jpeg(pixels, image.quality)
    return with_restarts(jpeg) if image.restarts else jpeg


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """A baseline 4:2:0 JPEG of H,W,3 uint8, without comments, EXIF or colour profile."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420", fastdct=False)


def encode_raw(pixels: np.ndarray) -> bytes:
    """H,W,3 uint8 as numpy's format 1.0, which DALI reads too."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, pixels, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def expected_bytes(
    image: ImageFormat, samples: Sequence[Sample], sizes: Callable[[Sequence[Sample]], list[int]]
) -> float:
    """About how large a member will be; for files that are copied the mean of some of them, evenly spread."""
    if image.encoding == "raw":
        return 3.0 * image.size**2 + 128
    if image.resize != "none":
        return USUAL_BYTES_A_PIXEL * image.size**2 * (1.0 if image.resize == "square" else 1.35)
    some = samples[:: -(-len(samples) // SAMPLES_LOOKED_AT)]
    return sum(sizes(some)) / len(some)
