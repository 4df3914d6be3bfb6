"""ILSVRC2012_devkit_t12.tar.gz: the classes' wnids and words, and the labels of val."""

import gzip
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import load_extra

META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
MAX_BYTES = 1 << 28  # unpacked


@dataclass(frozen=True)
class Devkit:
    words: dict[str, str]  # of each class by wnid
    val_wnids: list[str]  # of the val images in the order of their names


def read_devkit(path: Path) -> Devkit:
    """Read the devkit. Raises DataError if it is damaged, or if scipy is not installed."""
    contents = _read_members(path)
    wnids, words = read_synsets(contents[META], path)
    labels = []
    for number, line in enumerate(contents[TRUTH].decode("ascii", "replace").split(), 1):
        if not line.isdecimal() or int(line) not in wnids:
            raise DataError(f"{path}, {TRUTH}, line {number}: {line[:40]!r} is not a class id: download it again")
        labels.append(wnids[int(line)])
    return Devkit(words, labels)


def _read_members(path: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with gzip.open(path) as file:
            unpacked = file.read(MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes unpacked")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for member in tar:
                name = next((wanted for wanted in (META, TRUTH) if f"/{member.name}".endswith(f"/{wanted}")), None)
                if name and member.isreg():
                    contents[name] = tar.extractfile(member).read()  # type: ignore[union-attr]  # in memory
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not a tar.gz, or is damaged or truncated ({error}): download it again") from None
    for name in (META, TRUTH):
        if name not in contents:
            raise DataError(f"{path} does not hold {name}: download ILSVRC2012_devkit_t12.tar.gz again")
    return contents


def read_synsets(mat: bytes, path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """Return ILSVRC2012_ID -> wnid and wnid -> words of the synsets without children, which are the classes."""
    scipy_io = load_extra("scipy.io", "official", "reading ImageNet's devkit (meta.mat)")
    try:
        synsets = scipy_io.loadmat(io.BytesIO(mat), variable_names=["synsets"], chars_as_strings=True)[
            "synsets"
        ].ravel()
        leaves = [synset for synset in synsets if int(synset["num_children"].item()) == 0]
        wnids = {int(synset["ILSVRC2012_ID"].item()): str(synset["WNID"].item()) for synset in leaves}
        words = {str(synset["WNID"].item()): str(synset["words"].item()) for synset in leaves}
    except Exception as error:  # loadmat raises anything on damaged files
        raise DataError(f"{path}: {META} is damaged ({type(error).__name__}: {error}): download it again") from None
    if not wnids or len(words) != len(leaves) or len(wnids) != len(leaves):
        raise DataError(f"{path}: {META} lists {len(leaves)} classes with {len(words)} wnids: download it again")
    return wnids, words
