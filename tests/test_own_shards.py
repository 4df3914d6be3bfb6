"""Shards that webdataset wrote: indexed as they are, and read as webdataset's own reader reads them."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset
from PIL import Image

from pipelines import Augment, DataError, load_manifest, open_loader
from pipelines.images.picture import read_picture
from pipelines.images.resize import shorter
from pipelines.sharding import indexing, verify
from pipelines.sharding.foreign_tar import index_tar
from pipelines.sharding.indexing import index_folder, split_of
from pipelines.shards.foreign import read_index_line, split_name
from pipelines.shards.index import list_samples
from pipelines.shards.manifest import ImageFormat, Split
from pipelines.shards.records import Records, SampleError
from pipelines.turbo.decode import read_member
from tests.conftest import assert_refused, script

TOOL = "tools/shard_imagenet.py"
ANY = ImageFormat("any", "none", 64, 0)
WORDS = ["cat", "dog", "emu"]
PLAIN = Augment(crop="center", flip=False, normalise="none", size=64)
LONG = "folder of a long name/" * 6


def pixels_of(number: int, height: int = 80, width: int = 96) -> np.ndarray:
    """Return a smooth picture, H,W,3 uint8, brighter at the top and at the left."""
    down, across = np.mgrid[0:height, 0:width]
    colours = [200 - down, 180 - across, 20 + 10 * number + 0 * down]
    return np.stack(colours, axis=-1).clip(0, 255).astype(np.uint8)


def encoded(number: int, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # not whole: PAX writes a header of its own for it
            tar.addfile(info, io.BytesIO(content))
    return path


def write_samples(folder: Path, samples: list[dict], name: str = "train-%04d.tar", maxcount: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / name), maxcount=maxcount, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def described(number: int) -> dict:
    """Return a sample of webdataset, with a key that needs care."""
    key = [f"n01440764/img {number:03d}", f"{LONG}{number}", f"café/ü{number}", f"{number:06d}%20x"][number % 4]
    about = {"label": WORDS[number % 3], "tags": [number, {"deep": None}], "score": 0.5 * number}
    return {"__key__": key, "jpg": encoded(number), "json": about, "txt": f"naïve {number}", "seg.png": b"\0" * number}


class InProcess:
    """A WorkerPool without processes, which take seconds to start."""

    def __init__(self, workers: int) -> None:
        assert workers

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "WorkerPool", InProcess)
    monkeypatch.setattr(verify, "WorkerPool", InProcess)


def indexed(folder: Path, label: str | None = None, max_bad: float = 0.0, size: int = 64) -> Path:
    index_folder(folder, label=label, size=size, statistics_images=100, max_bad=max_bad, workers=1)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that webdataset wrote and ``--index`` indexed, with what it printed beside it."""
    folder = write_samples(tmp_path_factory.mktemp("own") / "with space", [described(i) for i in range(12)])
    write_samples(folder, [described(i) for i in range(12, 19)], "imagenet1k-Validation-%d.tar")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = script(TOOL, "--index", folder, "--size", 64, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {path.name for path in folder.iterdir()} - before.keys() == {
        "manifest.json",
        *(Path(name).stem + ".idx" for name in before),
    }
    (folder.parent / "printed").write_text(done.stdout)
    return folder


def test_every_sample_is_what_webdatasets_reader_gives(own: Path) -> None:
    manifest = load_manifest(own)
    assert (manifest.plain, manifest.labels, manifest.extras) == (False, "json:label", ("json", "seg.png", "txt"))
    assert [entry.name for entry in manifest.classes] == WORDS
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 12, "val": 7}
    for split in ("train", "val"):
        records, keys = Records(manifest, split), list_samples(manifest, split)[0]
        tars = [str(own / shard.path) for shard in manifest.split(split).shards]
        theirs = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        decoded = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8", only=["jpg", "txt"])
        number = -1
        for number, (raw, sample) in enumerate(zip(theirs, decoded, strict=True)):
            record, extras = records.read(number), records.extras(number)
            about = json.loads(raw["json"])
            assert raw["__key__"] == records.key(number) == record.key == keys[number]
            assert bytes(record.data) == raw["jpg"]
            assert record.label == WORDS.index(about["label"])
            assert extras == {"json": about, "txt": sample["txt"], "seg.png": raw["seg.png"]}
            assert (read_member(bytes(record.data), manifest.image) == sample["jpg"]).all()
        assert number + 1 == len(records)


def test_what_was_found_is_said(own: Path) -> None:
    said = (own.parent / "printed").read_text()
    for line in (
        "labels: json:label, which every sample has",
        "train: 12 images in 3 shards, train-0000.tar to train-0002.tar",
        "val: 7 images in 2 shards",
        "3 classes; extras: json, seg.png, txt",
    ):
        assert line in said


def test_turbo_loads_and_shuffles_them(own: Path) -> None:
    manifest = load_manifest(own)
    loader = open_loader(own, "val", 4, PLAIN, backend="turbo", threads=2)
    batches = list(loader)
    labels = np.concatenate([batch.labels[: batch.valid] for batch in batches])
    images = np.concatenate([batch.images[: batch.valid].permute(0, 2, 3, 1) for batch in batches])
    records = Records(manifest, "val")
    for number in range(7):
        record = records.read(number)
        assert labels[number] == record.label
        whole = shorter(read_member(bytes(record.data), manifest.image), 64)
        left = (whole.shape[1] - 64 + 1) // 2
        assert (images[number] == whole[:, left : left + 64]).all()
    trained = open_loader(own, "train", 12, Augment(crop="resized", size=64), backend="turbo", threads=2, seed=3)
    (batch,) = trained
    assert sorted(batch.labels.tolist()) == sorted(Records(manifest, "train").read(i).label for i in range(12))


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_have_the_keys_and_members_of_their_samples(own: Path, split: str) -> None:
    loader = open_loader(own, split, 4, PLAIN, backend="turbo", threads=2, keys=True, extras=("json", "txt"))
    seen = []
    for batch in loader:
        assert list(batch.extras) == ["json", "txt"] and len(batch.keys) == len(batch.extras["txt"]) == 4
        for row in range(batch.valid):
            about, text = (batch.extras[name][row] for name in ("json", "txt"))
            number = int(text.removeprefix("naïve "))
            assert batch.keys[row] == described(number)["__key__"]
            assert about == json.loads(json.dumps(described(number)["json"]))
            assert loader.classes[batch.labels[row]] == about["label"]
            seen.append(number)
        assert batch.keys[batch.valid :] == [""] * (4 - batch.valid)
        assert batch.extras["txt"][batch.valid :] == [None] * (4 - batch.valid)
    assert sorted(seen) == [*range(12)] if split == "train" else [*range(12, 19)]


def test_a_sample_whose_member_cannot_be_read_is_skipped_with_its_row(tmp_path: Path, in_process: None) -> None:
    samples = [{"__key__": str(i), "jpg": encoded(i), "json": {"label": 0}, "txt": f"{i}"} for i in range(8)]
    samples[2]["txt"] = b"\xff"
    folder = write_samples(tmp_path / "own", samples)
    write_samples(folder, samples, "val-%d.tar")
    indexed(folder)
    with pytest.raises(SampleError, match=r"sample 2 has a \.txt that cannot be read"):
        list(open_loader(folder, "val", 4, PLAIN, extras=("txt",)))
    loader = open_loader(folder, "val", 4, PLAIN, extras=("txt",), keys=True, on_error="skip")
    batches = list(loader)
    assert [(batch.valid, batch.keys) for batch in batches] == [(3, ["0", "1", "3", ""]), (4, ["4", "5", "6", "7"])]
    assert [batch.extras["txt"] for batch in batches] == [["0", "1", "3", None], ["4", "5", "6", "7"]]
    (batch,) = open_loader(folder, "train", 8, PLAIN, extras=("txt",), keys=True, on_error="skip")
    assert batch.extras["txt"] == batch.keys and "2" not in batch.keys and "" not in batch.keys
    assert len(list(open_loader(folder, "train", 8, PLAIN))) == 1, "who does not ask for it does not read it"


def test_members_that_are_not_there_and_dali_are_refused_by_name(own: Path) -> None:
    for extras in (("cls",), "json"):
        with pytest.raises(ValueError, match=r"it must be a tuple of members that .* has: 'json', 'seg\.png', 'txt'"):
            open_loader(own, "train", 4, extras=extras)
    with pytest.raises(DataError, match="was written by another program, which DALI's graph does not read"):
        open_loader(own, "train", 4, PLAIN, backend="dali")


def test_statistics_are_those_of_the_train_pixels(own: Path) -> None:
    manifest = load_manifest(own)
    records = Records(manifest, "train")
    pixels = np.concatenate([read_member(bytes(records.read(i).data), ANY).reshape(-1, 3) for i in range(12)])
    assert manifest.statistics.mean_rgb == pytest.approx(pixels.mean(axis=0))
    assert manifest.statistics.std_rgb == pytest.approx(pixels.std(axis=0))
    assert manifest.statistics.images == 12


def test_verify_names_what_changed(own: Path, tmp_path: Path, in_process: None) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    verify.verify(folder, 1)
    tar = folder / "train-0001.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b'"label"') + 11] ^= 1  # a letter of a label
    tar.write_bytes(data)
    index = folder / "train-0000.idx"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(DataError, match=r"2 of 5 shards are wrong: restore them, or index.*--index") as refused:
        verify.verify(folder, 1)
    assert "train-0001.tar: its sha256 differs" in str(refused.value)
    assert "train-0000.tar: its index does not describe it" in str(refused.value)


@pytest.mark.parametrize(
    ("labels", "asked", "place", "expected"),
    [
        ([{"cls": i} for i in (0, 11, 7)], None, "cls", [0, 11, 7]),  # of one and two digits
        ([{"cls": "007\n"}, {"cls": "3"}], None, "cls", [7, 3]),
        ([{"json": {"cls": 2}}, {"json": {"cls": 0}}], None, "json:cls", [2, 0]),
        ([{"cls": 1, "json": {"label": "b"}}, {"json": {"label": "a"}}], None, "json:label", [1, 0]),
        ([{"json": {"a": {"b": "z"}}}, {"json": {"a": {"b": "y"}}}], "json:a.b", "json:a.b", [1, 0]),
        ([{"cls": 1, "json": {"label": 0}}, {"cls": 0, "json": {"label": 5}}], "json:label", "json:label", [0, 5]),
        ([{"txt": "one"}, {"txt": "two"}], None, "none", [-1, -1]),
        ([{"json": {"label": [1, 2]}}, {"json": {"label": [3]}}], None, "none", [-1, -1]),  # several labels: extras
        ([{"cls": 1}, {"cls": 0}], "none", "none", [-1, -1]),
    ],
)
def test_labels(
    labels: list[dict], asked: str | None, place: str, expected: list[int], tmp_path: Path, in_process: None
) -> None:
    samples = [{"__key__": f"k{i}", "jpg": encoded(i)} | label for i, label in enumerate(labels)]
    folder = indexed(write_samples(tmp_path / "own", samples), asked)
    manifest = load_manifest(folder)
    assert manifest.labels == place
    assert len(manifest.classes) == (0 if place == "none" else max(expected) + 1)
    records = Records(manifest, "train")
    assert [records.read(i).label for i in range(len(labels))] == expected
    assert ("cls" in manifest.extras) == (place != "cls" and any("cls" in label for label in labels))
    (batch,) = open_loader(folder, "train", len(labels), PLAIN, training=False)
    assert batch.labels.tolist() == expected


def test_class_names_come_from_a_file(tmp_path: Path, in_process: None) -> None:
    folder = write_samples(tmp_path / "own", [{"__key__": f"k{i}", "jpg": encoded(i), "cls": i} for i in range(2)])
    (folder / "classes.txt").write_text("crane\nmaillot\ncrane\n")  # ImageNet has two classes called crane
    assert [entry.name for entry in load_manifest(indexed(folder)).classes] == ["crane", "maillot", "crane"]
    (folder / "classes.txt").write_text("crane\n")
    with pytest.raises(DataError, match=r"cls goes up to 1, and .*classes\.txt has 1 lines"):
        indexed(folder)


def test_a_label_that_some_samples_lack_is_refused_if_asked_for(tmp_path: Path, in_process: None) -> None:
    samples = [{"__key__": f"k{i}", "jpg": encoded(i), "json": {"n": i} if i else {}} for i in range(3)]
    folder = write_samples(tmp_path / "own", samples)
    with pytest.raises(DataError, match=r"train-0000\.tar: k0: has no field n in its JSON"):
        indexed(folder, "json:n")
    manifest = load_manifest(indexed(folder, "json:n", max_bad=0.5))  # left out of the index, and listed
    assert manifest.splits["train"].samples == 2
    assert [entry["source"] for entry in manifest.quarantined] == ["train-0000.tar: k0"]
    assert [Records(manifest, "train").key(i) for i in range(2)] == ["k1", "k2"]
    verify.verify(folder, 1)
    mixed = [{"__key__": f"k{i}", "jpg": encoded(i), "json": {"n": [1, "x"][i]}} for i in range(2)]
    with pytest.raises(DataError, match=r"json:n is a number in some samples and a text in others, as 1 and 'x'"):
        indexed(write_samples(tmp_path / "mixed", mixed), "json:n")


def pictures() -> dict[str, bytes]:
    """Return images that turbo does not decode by itself, by member name: each is shown upright and in colour."""
    turned = Image.Exif()
    turned[0x0112] = 6
    cmyk = io.BytesIO()
    Image.fromarray(pixels_of(4)).convert("CMYK").save(cmyk, "JPEG")
    alpha = io.BytesIO()
    Image.fromarray(np.dstack([pixels_of(5), pixels_of(1)[..., 0]])).save(alpha, "PNG")
    return {
        "turned.jpg": encoded(0, exif=turned),
        "progressive.JPG": encoded(1, progressive=True),
        "webp.webp": encoded(2, "WEBP", lossless=True),
        "png.png": encoded(3, "PNG"),
        "cmyk.jpeg": cmyk.getvalue(),
        "alpha.png": alpha.getvalue(),
        "trailing.jpg": encoded(6) + b"more",
        "odd.jpg": simplejpeg.encode_jpeg(pixels_of(7, 64, 64), 90, "RGB", "420").replace(b"\1\x22\0", b"\1\x14\0", 1),
        "plain.jpg": encoded(8),
    }


@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_images_of_every_kind_are_shown_as_pillow_shows_them(crop: str, tmp_path: Path, in_process: None) -> None:
    images = pictures()
    folder = tmp_path / "own"
    folder.mkdir()
    write_tar(folder / "a.tar", images)
    manifest = load_manifest(indexed(folder))
    whole = Augment(crop=crop, flip=False, normalise="none", size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    (batch,) = open_loader(folder, "train", len(images), whole, training=False)
    records = Records(manifest, "train")
    for number, (name, data) in enumerate(images.items()):
        expected = read_picture(data, "").pixels
        assert (read_member(bytes(records.read(number).data), manifest.image) == expected).all(), name
        resized = shorter(expected, 64)
        top, left = ((side - 64 + 1) // 2 for side in resized.shape[:2])
        shown = batch.images[number].permute(1, 2, 0).numpy()
        assert (shown == resized[top : top + 64, left : left + 64]).all(), name  # evaluation: a center crop
    trained = open_loader(folder, "train", len(images), whole, training=True)
    (random,) = trained
    assert random.images.shape == (len(images), 3, 64, 64)


def test_large_pictures_are_shrunk_before_they_are_resized(tmp_path: Path, in_process: None) -> None:
    """Check that a PNG of single-pixel stripes becomes grey, as a JPEG of it does, instead of keeping stripes."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    folder = tmp_path / "own"
    folder.mkdir()
    write_tar(folder / "a.tar", {"a.png": buffer.getvalue(), "b.png": buffer.getvalue()})
    augment = Augment(crop="resized", flip=False, normalise="none", size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    (batch,) = open_loader(indexed(folder), "train", 2, augment)
    assert ((batch.images > 120) & (batch.images < 135)).all()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(kind: int, tmp_path: Path, in_process: None) -> None:
    names = ["./dotted/a", "n01440764/b", f"{'deep/' * 25}c", "x" * 90]
    names += [] if kind == tarfile.USTAR_FORMAT else ["long" * 60, "ünder/été"]
    folder = tmp_path / "own"
    folder.mkdir()
    members = {f"{name}.{e}": d for i, name in enumerate(names) for e, d in (("jpg", encoded(i)), ("cls", b"%d" % i))}
    write_tar(folder / "any name at all.tar", members | {"README": b"no sample", "__about__/x.json": b"{}"}, kind)
    records = Records(load_manifest(indexed(folder)), "train")
    assert [records.key(i) for i in range(len(records))] == names
    assert [records.read(i).label for i in range(len(records))] == list(range(len(names)))


def test_members_that_are_left_out_are_named(tmp_path: Path, in_process: None, capsys) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    write_tar(folder / "a.tar", {"README": b"", "a.jpg": encoded(1), "b/.hid.jpg": b"", "c.": b"", "a2": b""})
    indexed(folder)
    assert "4 members are in no sample and were left out: a.tar: README, a.tar: b/.hid.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.c/d.seg.png", ("a/b.c/d", "seg.png")),
        ("d.JPEG", ("d", "jpeg")),
        ("README", None),
        (".hidden", None),
        ("a.", None),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected
    base, extensions = webdataset.tariterators.base_plus_ext(name)
    assert ((base, extensions.lower()) if base and extensions else None) == expected


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("000000.tar", "train"),
        ("imagenet1k-train-0000.tar", "train"),
        ("Validation_3.tar", "val"),
        ("valid-0.tar", "val"),
        ("my.val.000.tar", "val"),
        ("TEST00.tar", "test"),
        ("interval-0.tar", "train"),
        ("contest-1.tar", "train"),
    ],
)
def test_splits_come_from_names(name: str, split: str) -> None:
    assert split_of(name) == split


def linked(kind: bytes, name: str = "b.jpg") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info.tobuf()


def tar_bytes(tmp_path: Path, **members: bytes) -> bytes:
    return write_tar(tmp_path / "made", {k.replace("_", "."): v for k, v in members.items()}).read_bytes()


END = bytes(1024)
HOSTILE = {
    "a symbolic link": (lambda whole: linked(tarfile.SYMTYPE) + END, r"bad\.tar holds 'b\.jpg', which is not a plain"),
    "a hard link": (lambda whole: linked(tarfile.LNKTYPE) + END, r"bad\.tar holds 'b\.jpg', which is not a plain"),
    "out of the tar": (lambda whole: linked(tarfile.REGTYPE, "../b.jpg") + END, r"bad\.tar holds '\.\./b\.jpg'"),
    "absolute": (lambda whole: linked(tarfile.REGTYPE, "/b.jpg") + END, r"bad\.tar holds '/b\.jpg'"),
    "cut": (lambda whole: whole[: len(whole) // 3], r"bad\.tar is not a tar, or is damaged or truncated"),
    "a damaged header": (lambda whole: whole.replace(b"ustar", b"rusts"), r"bad\.tar is not a tar, or is damaged"),
    "no further header": (
        lambda whole: whole[: whole.rindex(b"././@PaxH")] + b"x" * 2048,
        r"bad\.tar is damaged: there",
    ),
    "compressed inside": (gzip.compress, r"bad\.tar is not a tar"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tars_are_refused_by_name(case: str, tmp_path: Path, in_process: None) -> None:
    change, message = HOSTILE[case]
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "bad.tar").write_bytes(change(tar_bytes(tmp_path, a_jpg=encoded(1), a_cls=b"1")))
    with pytest.raises(DataError, match=message):
        indexed(folder)
    assert [path.name for path in folder.iterdir()] == ["bad.tar"]


def test_samples_that_webdataset_would_tear_apart_are_refused(tmp_path: Path) -> None:
    apart = write_tar(tmp_path / "a.tar", {"a.jpg": encoded(1), "b.jpg": encoded(2), "a.cls": b"1"})
    with pytest.raises(DataError, match=r"a\.tar holds 'a\.cls' apart from the other members of its sample"):
        index_tar(apart, ANY, ("cls",), required=False)
    twice = write_tar(tmp_path / "b.tar", {"a.jpg": encoded(1), "a.JPG": encoded(1)})
    with pytest.raises(DataError, match=r"b\.tar holds 'a\.jpg' twice"):
        index_tar(twice, ANY, ("cls",), required=False)


def test_unusable_samples_are_quarantined_with_the_reason(tmp_path: Path) -> None:
    damaged = bytearray(encoded(3))
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    members = {"good.jpg": encoded(1), "cut.jpg": encoded(2)[:500], "half.jpg": bytes(damaged), "frame.001.jpg": b"x"}
    members |= {"text.txt": b"no image", "web.png": b"<!doctype html>", "\udcff.jpg": encoded(4)}
    found = index_tar(write_tar(tmp_path / "a.tar", members), ANY, ("none",), required=True)
    assert found.shard.samples == 1
    reasons = {entry["source"]: entry["reason"] for entry in found.quarantined}
    assert set(reasons) == {f"a.tar: {key}" for key in ("cut", "half", "frame", "text", "web", "\udcff")}
    assert reasons["a.tar: \udcff"] == "has a name that is not UTF-8"
    assert "only .001.jpg; the extension is what follows the first dot" in reasons["a.tar: frame"]
    assert "web page" in reasons["a.tar: web"]


def test_folders_without_tars_say_what_to_do(tmp_path: Path, demo_shards: Path) -> None:
    assert_refused(script(TOOL, "--index", tmp_path), "holds no .tar")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.tar").touch()
    assert_refused(script(TOOL, "--index", tmp_path), "those in train must be moved or linked into one folder")
    (tmp_path / "0.tar.gz").touch()
    assert_refused(script(TOOL, "--index", tmp_path), "0.tar.gz is compressed", "unpack")
    assert_refused(script(TOOL, "--index", demo_shards), "was made by tools/shard_imagenet.py", "--verify")
    (tmp_path / "0.tar.gz").rename(tmp_path / "0.tar")
    (tmp_path / "manifest.json").write_text('{"version": 3}')
    assert_refused(script(TOOL, "--index", tmp_path), "manifest.json is damaged", "move this file away first")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".work").mkdir()
    assert_refused(script(TOOL, "--index", tmp_path), "is unfinished")
    assert_refused(script(TOOL, "--index", tmp_path, "--label", "jpg"), "cls, json:FIELD or none", code=2)
    assert_refused(script(TOOL, tmp_path, tmp_path / "out", "--label", "cls"), "--label goes with --index", code=2)
    (tmp_path / ".work").rmdir()
    with pytest.raises(DataError, match="--index"):
        open_loader(tmp_path)


def test_damage_after_indexing_is_an_error_of_one_sample(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    tar, index = folder / "train-0000.tar", folder / "train-0000.idx"
    whole, lines = tar.read_bytes(), index.read_text().splitlines(keepends=True)
    fields = lines[1].split()  # jpg, json, seg.png and txt of the first sample
    at = {fields[i]: int(fields[i + 1]) for i in range(0, len(fields), 4)}

    def changed(place: int, content: bytes) -> Records:
        tar.write_bytes(whole[:place] + content + whole[place + len(content) :])
        return Records(load_manifest(folder), "train")

    assert changed(at["txt"], b"\xff").read(0).label == 0
    with pytest.raises(SampleError, match=r"sample n01440764/img 000 has a \.txt that cannot be read.*--index"):
        changed(at["txt"], b"\xff").extras(0)
    with pytest.raises(SampleError, match=r"img 000 has damaged JSON"):
        changed(at["json"], b"!").read(0)
    with pytest.raises(SampleError, match=r"img 000 has a label that is none of the 3 classes"):
        changed(at["json"], b'{"label": "cow"').read(0)
    with pytest.raises(SampleError, match=r"img 000 is not where the index says"):
        changed(at["jpg"] - 512, b"m").read(0)
    tar.write_bytes(whole)
    swapped = lines[1].replace(str(at["json"]), lines[2].split()[5])  # the label of the next sample
    index.write_text("".join([lines[0], swapped, *lines[2:]]))
    for read in (Records(load_manifest(folder), "train").read, Records(load_manifest(folder), "train").extras):
        with pytest.raises(DataError, match=r"train-0000\.idx is not the one of the manifest.*--index"):
            read(0)
    with pytest.raises(DataError, match=r"train-0000\.idx is not the one of the manifest"):
        list_samples(load_manifest(folder), "train")


@pytest.mark.parametrize(
    "line",
    [
        b"jpg 512 10 a.jpg json 1024 5",
        b"jpg 0 10 a.jpg",
        b"jpg 512 -1 a.jpg",
        b"jpg 512 9999 a.jpg",
        b"jpg 512 10 a.jpg json 1024 5 b.json",
        b"jpg 512 10 a.jpg json 1024 5 a.txt",
        b"jpg 512 10 /etc/a.jpg",
        b"jpg 512 10 b/../../a.jpg",
        b"jpg 512 10 %ff.jpg",
        b"jpg 512 10 \xff.jpg",
        b"jpg x 10 a.jpg",
        b"",
    ],
)
def test_an_impossible_line_of_an_index_is_refused(line: bytes) -> None:
    assert read_index_line(b"jpg 512 10 b/a%20c.jpg json 1024 5 b/a%20c.json", 2048)[0] == "b/a c"
    with pytest.raises(ValueError, match=r".*"):
        read_index_line(line, 2048)


def test_manifests_of_sharding_say_nothing_of_labels_and_extras(demo_shards: Path, own: Path, tmp_path: Path) -> None:
    assert not {"labels", "extras"} & json.loads((demo_shards / "manifest.json").read_text()).keys()
    manifest = load_manifest(demo_shards)
    assert (manifest.plain, manifest.labels, manifest.extras) == (True, "cls", ())
    records = Records(manifest, "val")
    assert records.extras(0) == {}
    assert records.key(5) == records.read(5).key
    content = json.loads((own / "manifest.json").read_text())
    for key, value in (("labels", "cls:x"), ("labels", "none"), ("extras", ["\x1b[2J"])):
        (tmp_path / "manifest.json").write_text(json.dumps(content | {key: value}))
        with pytest.raises(DataError, match="is damaged"):
            load_manifest(tmp_path, check_shards=False)
    for name in ("../a.tar", ".a.tar", "a/b.tar", "a.idx", "a\n.tar"):
        content["splits"]["train"]["shards"][0]["path"] = name
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="is not a shard's name"):
            load_manifest(tmp_path, check_shards=False)


def test_an_index_of_another_tar_gives_errors_or_the_same_samples(own: Path, tmp_path: Path) -> None:
    """Check 400 indices with bytes changed, numbers altered or lines moved, and with the sha256 of the changed index in
    the manifest: they end in errors of one line, or in what the tar holds at that place under a name of that length."""
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    manifest = load_manifest(folder)
    whole = Records(manifest, "train")
    samples = {}
    for number in range(12):
        record = whole.read(number)
        samples[record.key] = (bytes(record.data), record.label, whole.extras(number))
    index, draws = folder / "train-0000.idx", np.random.default_rng(0)
    text, refused = index.read_bytes(), 0
    for case in range(400):
        index.write_bytes(changed := damaged(text, draws, case % 4))
        shards = manifest.splits["train"].shards
        pinned = replace(shards[0], index_sha256=hashlib.sha256(changed).hexdigest())
        splits = manifest.splits | {"train": Split(12, (pinned, *shards[1:]))}
        try:
            records = Records(replace(manifest, splits=splits), "train")
            for number in range(5):
                record = records.read(number)
                if record.key.isascii() and len(record.key) < 90:
                    assert (bytes(record.data), record.label, records.extras(number)) == samples[record.key]
        except DataError:
            refused += 1
    assert 200 < refused < 400


def damaged(text: bytes, draws: np.random.Generator, how: int) -> bytes:
    place = int(draws.integers(len(text)))
    if how == 0:
        return text[:place] + bytes([text[place] ^ 1 << int(draws.integers(8))]) + text[place + 1 :]
    if how == 1:
        return text[:place] + text[place + int(draws.integers(1, 20)) :]
    fields = text.split(b" ")
    first, second = draws.integers(2, len(fields) - 1, 2)
    if how == 2:
        fields[first], fields[second] = fields[second], fields[first]
    else:
        fields[first] = fields[second]
    return b" ".join(fields)


def test_training_without_labels_is_refused(own: Path, tmp_path: Path, in_process: None) -> None:
    folder = tmp_path / "no labels"
    shutil.copytree(own, folder)
    indexed(folder, "none", size=256)
    done = script("train.py", "--data", folder, "--out", tmp_path / "run", "--batch-size", 4)
    assert_refused(done, "no labels: ", "tools/shard_imagenet.py --index '", "--label json:FIELD")
