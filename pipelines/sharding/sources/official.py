"""The archives as image-net.org gives them, read in place: a tar of a thousand tars, a flat tar, and the devkit.

Only headers are read to locate each image, once. Shards are then written from the archives by offset.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from pipelines.errors import DataError
from pipelines.images.walk import is_image, kind
from pipelines.sharding.sources.devkit import Devkit, read_devkit
from pipelines.sharding.sources.sample import Listing, Sample, key_of, sorted_classes, stem_of
from pipelines.sharding.sources.tars import Member, members, open_at_random

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LOOKED_FOR = f"{ARCHIVES['train']}, {ARCHIVES['val']} and {DEVKIT}"
MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}

Images = dict[str, list[Member]]  # by wnid


def found(folder: Path, splits: tuple[str, ...]) -> bool:
    return any((folder / archive).is_file() for archive in ARCHIVES.values())


def listing(folder: Path, splits: tuple[str, ...]) -> Listing:
    _check_presence(folder, splits)
    devkit = read_devkit(folder / DEVKIT)
    locate: dict[str, Callable[[Path, Devkit, Counter[str]], Images]] = {"train": _locate_train, "val": _locate_val}
    left_out: Counter[str] = Counter()
    located = {split: locate[split](folder / ARCHIVES[split], devkit, left_out) for split in splits}
    wnids = sorted_classes(located, folder)
    samples = {split: _samples(ARCHIVES[split], located[split], wnids) for split in splits}
    return Listing(wnids, {wnid: devkit.words[wnid] for wnid in wnids}, samples, left_out=left_out)


def check_md5(folder: Path, splits: tuple[str, ...]) -> None:
    """Compare the archives with the digests that image-net.org publishes. Raises DataError naming the wrong one."""
    _check_presence(folder, splits)
    for name in (*(ARCHIVES[split] for split in splits), DEVKIT):
        digest, path = hashlib.md5(usedforsecurity=False), folder / name
        with path.open("rb") as file, _bytes_bar(f"md5 {name}", path.stat().st_size) as bar:
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != MD5[name]:
            raise DataError(f"{path} has the md5 {digest.hexdigest()} instead of {MD5[name]}: download it again")


def _check_presence(folder: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        if split not in ARCHIVES:
            raise DataError(f"{folder} has no archive of {split}, only of train and val: leave it out with --splits")
        if not (folder / ARCHIVES[split]).is_file():
            raise DataError(f"no file {folder / ARCHIVES[split]}: put it there, or leave {split} out with --splits")
    if not (folder / DEVKIT).is_file():
        raise DataError(f"no file {folder / DEVKIT}, which has the classes and the labels of val: put it there")


def _bytes_bar(what: str, size: int) -> tqdm:
    return tqdm(total=size, unit="B", unit_scale=True, desc=what)


def _locate_train(path: Path, devkit: Devkit, left_out: Counter[str]) -> Images:
    images: Images = {}
    with open_at_random(path) as file, _bytes_bar(f"locate {path.name}", path.stat().st_size) as bar:
        for inner in members(file, str(path)):
            wnid = basename(inner.name).removesuffix(".tar")
            if not inner.name.endswith(".tar") or wnid not in devkit.words:
                raise DataError(
                    f"{path} holds {inner.name}, which is not a tar of a class in {DEVKIT}: download both again"
                )
            if wnid in images:
                raise DataError(f"{path} holds {inner.name} twice: download it again")
            images[wnid] = list(_images(members(file, f"{path}/{inner.name}", inner.offset, inner.size), left_out))
            bar.update(inner.offset + inner.size - bar.n)
        bar.update(bar.total - bar.n)
    return images


def _locate_val(path: Path, devkit: Devkit, left_out: Counter[str]) -> Images:
    found = []
    with open_at_random(path) as file, _bytes_bar(f"locate {path.name}", path.stat().st_size) as bar:
        for member in _images(members(file, str(path)), left_out):
            found.append(member)
            bar.update(member.offset + member.size - bar.n)
        bar.update(bar.total - bar.n)
    found.sort(key=lambda member: basename(member.name))
    if len(found) != len(devkit.val_wnids):
        raise DataError(
            f"{path} has {len(found)} images, but {path.parent / DEVKIT} has the labels of {len(devkit.val_wnids)}: "
            "download both again"
        )
    images: Images = {}
    for wnid, member in zip(devkit.val_wnids, found, strict=True):
        images.setdefault(wnid, []).append(member)
    return images


def basename(name: str) -> str:
    return name.rpartition("/")[2]


def _images(found: Iterator[Member], left_out: Counter[str]) -> Iterator[Member]:
    """Yield the images among these members, and count the others."""
    for member in found:
        if is_image(basename(member.name)):
            yield member
        else:
            left_out[kind(basename(member.name))] += 1


def _samples(archive: str, images: Images, wnids: list[str]) -> list[Sample]:
    label = {wnid: index for index, wnid in enumerate(wnids)}
    folders = {wnid: f"{archive}/{wnid}.tar" if archive == ARCHIVES["train"] else archive for wnid in wnids}
    samples = []
    while images:  # emptied on the way to save memory
        wnid, found = images.popitem()
        for name, offset, size in found:
            key, source = key_of(stem_of(basename(name))), f"{folders[wnid]}/{name}"
            samples.append(Sample(key, source, label[wnid], archive, offset=offset, size=size))
    if not samples:
        raise DataError(f"{archive} has no images: download it again")
    return samples
