"""Limits on an untrusted image, checked before memory and time are spent on it."""

from pipelines.images.jpeg_header import BASELINE, EXTENDED, Header
from pipelines.shards.manifest import ImageFormat

MAX_PIXELS = 150_000_000  # the largest image of ImageNet has 26 million
PILLOW_MAX_PIXELS = 178_956_970  # Pillow's own limit
JPEG_MAX_SIDE = 65_500  # libjpeg's own limit
MAX_SCANS = 100  # of a JPEG; files from cameras and the web have about ten
MAX_COMMENTS = 1000  # in the text of a PPM file, where Pillow takes a time quadratic in their number
SCAN = b"\xff\xda"
# Scans are not counted up to this number of bytes times pixels: 20 bytes make one, which took 0.6 ns a pixel, so 3 s at
# most.
QUICK_WORK = 100_000_000_000


def check_shape(height: int, width: int, image: ImageFormat, max_pixels: int = PILLOW_MAX_PIXELS) -> None:
    """Raise ValueError for too many pixels, as stored or after the shorter side is resized to ``image.size``."""
    if height * width > max_pixels:
        raise ValueError(f"its {height * width} pixels are more than the {max_pixels} allowed")
    if max(height, width) > most_elongated(image, max_pixels) * min(height, width):
        raise ValueError(f"its {width} x {height} pixels are too elongated for a shorter side of {image.size}")


def most_elongated(image: ImageFormat, max_pixels: int = PILLOW_MAX_PIXELS) -> float:
    """Return the largest ratio of longer to shorter side; infinite for ``square``, which crops before it resizes."""
    if image.resize == "square":
        return float("inf")
    return min(JPEG_MAX_SIDE / image.size, max_pixels / image.size**2)


def check_jpeg(data: bytes, header: Header, shape: tuple[int, int], image: ImageFormat) -> None:
    """Check ``shape`` (height, width) and that a large JPEG has at most ``MAX_SCANS`` scans. Raises ValueError."""
    check_shape(*shape, image)
    if len(data) * shape[0] * shape[1] > QUICK_WORK:
        check_scans(data, header)


def check_scans(data: bytes, header: Header) -> None:
    """Raise ValueError if a JPEG has too many scans: each takes a few bytes, and as long to decode as a whole image."""
    if (
        header.frame in (BASELINE, EXTENDED)
        and 0 < header.scan < len(data)
        and data[header.scan] == len(header.components)
    ):
        return  # all components in one scan: decoders stop after it
    scans = data.count(SCAN, header.scan)
    if scans > MAX_SCANS:
        raise ValueError(f"its {scans} scans are more than the {MAX_SCANS} allowed")


def check_ppm(data: bytes) -> None:
    """Raise ValueError if a PPM, PGM or PBM file whose pixels are text has too many comments."""
    if data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > MAX_COMMENTS:
        raise ValueError(f"it has more than the {MAX_COMMENTS} comments allowed")
