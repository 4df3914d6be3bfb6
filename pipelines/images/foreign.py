"""Files that are taken for pictures and cannot be read, named for what they are, with what to do."""

import re

from pipelines.images.png import SIGNATURE
from pipelines.images.tiff import raw_of_a_camera

WEB_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|svg)", re.IGNORECASE)
RAW = "develop it, e.g. with darktable-cli"
MAGICK = "convert it, e.g. with magick"
HEIC = ("HEIC", "convert it, e.g. with heif-convert")

# How a file begins, what it is, and what to do about it.
FOREIGN = (
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", "convert it, e.g. with djxl"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", "convert it, e.g. with opj_decompress"),
    (rb"8BPS", "a Photoshop file (PSD)", MAGICK),
    (rb"%PDF", "a PDF", "convert its pages, e.g. with pdftoppm"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", "convert it, e.g. with gs"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon (ICO)", MAGICK),
    (rb"gimp xcf", "a GIMP file (XCF)", MAGICK),
    (rb"v/1\x01", "OpenEXR", MAGICK),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance picture (HDR)", MAGICK),
    (rb"qoif|SIMPLE  =|farbfeld", "a picture in a rare format (QOI, FITS, farbfeld)", MAGICK),
    (rb"P7\s", "a picture in the format PAM", MAGICK),
    (rb"(?s).{128}DICM", "a DICOM file", "convert it, e.g. with dcmj2pnm"),
    (rb"IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM", "a raw file of a camera", RAW),
    (rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|(?s:.{257}ustar)", "an archive", "unpack it"),
    (rb"(?s)RIFF....AVI |\x1aE\xdf\xa3|(?s:....moov)", "a video", "extract its frames, e.g. with ffmpeg"),
)
# How a file begins whose format is read.
READ = {
    b"\xff\xd8\xff": "JPEG",
    SIGNATURE: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
}
POINTER = b"version https://git-lfs.github.com/spec/"


def raw_file(data: bytes) -> str:
    """Return the refusal of a camera's raw file that decoders would take for a TIFF, or ""."""
    found = raw_of_a_camera(data)
    return f"it is {found}, which is not read here: {RAW}" if found else ""


def what_it_is(data: bytes) -> str:
    """Return what a file is that no decoder takes, in words for the user, and what to do where that is known."""
    if data.startswith(POINTER):
        return "it is a git-lfs pointer, not the picture: run git lfs pull"
    if WEB_PAGE.match(data[:1000]):
        if b"<svg" in data[:4000].lower():
            return "it is SVG, which is not read here: convert it, e.g. with rsvg-convert"
        return "it is a web page or XML, not an image: download it again"
    for begin, name in READ.items():
        if data.startswith(begin):
            return f"it cannot be decoded: its {name} header is damaged or cut off"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "it is a TIFF that is damaged, or of a kind that is not read here: convert it to PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "it cannot be decoded: its WEBP header is damaged or cut off"
    found = _media(data) or next(((name, do) for begin, name, do in FOREIGN if re.match(begin, data[:300])), None)
    return f"it is {found[0]}, which is not read here: {found[1]}" if found else "it is not an image"


def _media(data: bytes) -> tuple[str, str] | None:
    """Return what a file of the ISO base media format (ISO/IEC 14496-12, 4.3) is, by the brands it lists."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), 1000)
    brands = {data[place : place + 4] for place in (8, *range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF, damaged or of a kind", "convert it, e.g. with avifdec"
    if b"crx " in brands:
        return "a raw file of a camera (CR3)", RAW
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return HEIC
    return "a video", "extract its frames, e.g. with ffmpeg"
