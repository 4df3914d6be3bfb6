"""Tests that each file made to do harm is refused with one clear line before it costs memory or time."""

import gzip
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageFile

from alexnet import AlexNetError, checkpoint, figures
from pipelines import DataError, load_manifest, open_loader, untrusted
from pipelines.augment import load_mean_image
from pipelines.images.jpeg import check_agreed, inspect
from pipelines.images.limits import check_jpeg
from pipelines.images.picture import read_picture
from pipelines.preprocess import Preparation
from pipelines.sharding.sources.devkit import read_devkit
from pipelines.sharding.sources.tars import members
from pipelines.sharding.verify import verify
from pipelines.shards.manifest import ImageFormat
from pipelines.shards.npy import npy_header
from pipelines.turbo.decode import read_member
from pipelines.untrusted import MAX_VALUES, parse_json, printable
from tests.conftest import PATIENCE, ROOT, assert_refused, command, script, shard, without_checksums
from tests.test_shard_imagenet import edit_manifest

STATISTICS = {
    "mean_rgb": [120.0, 115.0, 100.0],
    "std_rgb": [60.0, 59.0, 58.0],
    "eigenvalues": [3.0, 2.0, 1.0],
    "eigenvectors": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "mean_image": "mean.npy",
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "too deeply"),
        (b"[" * 40 + b"]" * 40, "more than 32 deep"),
        (b"9" * 1_000_000, "a number of 1000000 digits"),
        (b"NaN", "NaN is no number"),
        (b"-Infinity", "-Infinity is no number"),
        (b"1e999", "1e999 is no number"),
        (b"\xff\xfe[\0]\0", "codec"),
        (b"[1", "delimiter"),
    ],
)
def test_json_that_no_writer_of_ours_makes_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_of_too_many_values_takes_no_memory() -> None:
    """Check 120 MB of JSON that would become three gigabytes of empty objects."""
    text = b"[" + b"{}," * 40_000_000 + b"0]"
    with little_memory(300), pytest.raises(ValueError, match=f"more than {MAX_VALUES} values"):
        parse_json(text)


@pytest.mark.slow
def test_json_of_a_manifest_that_lists_every_image_of_imagenet_is_read() -> None:
    line = '{"split": "train", "source": "train/n01440764/n01440764_%d.JPEG", "action": "turned as EXIF says"}'
    text = "[" + ",".join(line % number for number in range(1_331_167)) + "]"
    assert len(parse_json(text.encode())) == 1_331_167


class little_memory:
    """A context in which the process may take only so many more megabytes."""

    def __init__(self, megabytes: int) -> None:
        self._bytes = megabytes << 20

    def __enter__(self) -> None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + self._bytes, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def one(path: str, samples: int = 1, length: int = 10240) -> dict:
    shard = {"path": path, "samples": samples, "bytes": length, "sha256": ""}
    return {"train": {"samples": samples, "shards": [shard]}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"splits": one(path)}, "is not a shard's name")
            for path in ("../a-000000.tar", "/a-000000.tar", "C:\\a-000000.tar", "a-000000.tar\n", "a-000000\0.tar")
        ),
        ({"splits": {"a/b": one("train-000000.tar")["train"]}}, "'a/b' is not a split's name"),
        ({"splits": {"train": {"samples": "5", "shards": []}}}, r"Expected `int`, got `str` - at .*\.samples"),
        ({"splits": one("train-000000.tar", 10**9)}, "cannot hold 1000000000 samples"),
        ({"classes": [{"wnid": "n1", "name": "\x1b]0;owned\x07"}]}, "has control characters"),
        ({"classes": [{"wnid": "n1", "name": "\ud800"}]}, "has control characters"),
        ({"classes": [{"wnid": "n1", "name": "x"}] * 100_001}, "100001 classes"),
        ({"image": {"encoding": "jpeg", "resize": "square", "size": 10**9, "quality": 90}}, "1000000000 pixels a side"),
        ({"statistics": STATISTICS | {"eigenvalues": [-1.0, 0.0, 0.0]}}, "cannot be those of a covariance"),
        ({"statistics": STATISTICS | {"mean_image": "../mean.npy"}}, r"called '\.\./mean\.npy' instead of 'mean\.npy'"),
        ({"statistics": STATISTICS | {"mean_rgb": [1e300, 0.0, 0.0]}}, "cannot be those of RGB pixels"),
        ({"repaired": [{"split": "train"}]}, "without their split or source"),
        ({"extra": 1}, "has the unknown field 'extra'"),
    ],
)
def test_a_manifest_that_leads_astray_is_refused(
    numbered_shards: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    copy = shutil.copytree(numbered_shards, tmp_path / "copy")
    edit_manifest(copy, **changes)
    with pytest.raises(DataError, match=rf"manifest\.json is damaged .*{words}"):
        load_manifest(copy)


def test_what_is_no_file_is_not_waited_for(numbered_shards: Path, trained: Path, tmp_path: Path) -> None:
    """Check a pipe that nothing writes to, and a standard input that never ends."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert_refused(script("tools/predict.py", trained / "best.pt", tmp_path / "pipe.jpg"), "it is no plain file")
    for split in ("train", "val"):
        (tmp_path / "in" / split / "a").mkdir(parents=True)
        os.mkfifo(tmp_path / "in" / split / "a" / "1.jpg")
    with pytest.raises(DataError, match="it is no plain file"):
        shard(tmp_path / "in", tmp_path / "out", max_bad=1)
    line = [sys.executable, ROOT / "tools/predict.py", trained / "best.pt", "-"]
    with Path("/dev/zero").open("rb") as endless:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, stdin=endless, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert_refused(done, "it has more than the 268435456 bytes allowed")


def test_an_index_as_long_as_the_disk_is_not_read(numbered_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(numbered_shards, tmp_path / "copy")
    os.truncate(copy / "val-000000.idx", 1 << 40)
    with pytest.raises(DataError, match=r"val-000000\.idx is longer than one of \d+ samples can be"):
        load_manifest(copy)


def test_a_member_as_large_as_the_disk_is_not_read(numbered_shards: Path, tmp_path: Path) -> None:
    """Check an index and a sparse tar that agree on an image of 64 GiB."""
    copy = shutil.copytree(numbered_shards, tmp_path / "copy")
    size, shard = 1 << 36, "train-000000.tar"
    length = -(-(size + 2048 + 1024) // 10240) * 10240
    (copy / "train-000000.idx").write_text(f"v1.2 1\njpg 512 {size} a.jpg cls {size + 1024} 3 a.cls\n")
    os.truncate(copy / shard, length)
    edit_manifest(
        copy, splits={"train": {"samples": 1, "shards": [{"path": shard, "samples": 1, "bytes": length, "sha256": ""}]}}
    )
    for backend in ("turbo", "dali"):
        with pytest.raises(DataError, match=r"train-000000\.(tar|idx)"):
            next(iter(open_loader(copy, "train", 1, backend=backend)))


def test_arrays_are_what_they_must_be_or_unread(numbered_shards: Path, tmp_path: Path) -> None:
    """Check NumPy headers that claim 400 GB, objects that would be unpickled, and NaN pixels."""
    raw = ImageFormat("raw", "square", 64, 0)
    for header in (npy_header((400_000, 1_000_000), np.uint8), npy_header((64, 64, 4), np.uint8), b"\x93NUMPY\1\0"):
        with little_memory(500), pytest.raises(DataError, match="not a whole array of 64,64,3 uint8"):
            read_member(header + bytes(64 * 64 * 3), raw)
    copy = shutil.copytree(numbered_shards, tmp_path / "copy")
    manifest, path = load_manifest(copy), copy / "mean.npy"
    whole = path.read_bytes()
    np.save(path, np.array([{}] * 3, object), allow_pickle=True)
    damages = {
        npy_header((100_000, 100_000, 3), np.float32) + whole[128:]: "is missing or damaged",
        path.read_bytes(): "is missing or damaged",
        whole[:-4] + struct.pack("<f", float("nan")): "values outside 0 to 255",
    }
    for data, words in damages.items():
        path.write_bytes(data)
        with little_memory(500), pytest.raises(DataError, match=words):
            load_mean_image(manifest)


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG", **options)
    return file.getvalue()


def of_size(data: bytes, height: int, width: int) -> bytes:
    place = next(data.index(frame) for frame in (b"\xff\xc0\0\x11", b"\xff\xc2\0\x11") if frame in data) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def with_restarts(data: bytes) -> bytes:
    place = data.index(b"\xff\xda")
    return data[:place] + b"\xff\xdd\0\4\0\1" + data[place:]


def of_scans(count: int) -> bytes:
    data = jpeg(progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    parts = [(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)), (b"zTXt", extra), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts if body or kind != b"zTXt")


def tiff(side: int, *more: tuple[int, int, int]) -> bytes:
    """Return a grey deflated TIFF of ``side`` x ``side`` pixels that inflates to 64 KB, with ``more`` tags."""
    data = zlib.compress(bytes(1 << 16))
    first = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    places = (273, 279) if any(tag == 278 for tag, _, _ in more) else (324, 325)
    start = 8 + 2 + 12 * (len(first) + len(more) + 2) + 4
    tags = [*first, *more, (places[0], 4, start), (places[1], 4, len(data))]
    entries = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + data


def avif() -> bytes:
    """Return an AVIF whose container claims 16,000 x 16,000 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "AVIF")
    data = file.getvalue()
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">LL", 16_000, 16_000) + data[place + 8 :]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: of_size(jpeg(), 65_500, 65_500), "4290250000 pixels are more than"),
        (lambda: with_restarts(of_size(jpeg(), 65_535, 65_535)), "4294836225 pixels are more than"),
        (lambda: of_scans(2000), "scans are more than the 100 allowed"),
        (lambda: png(2**31 - 1, 2**31 - 1), "pixels are more than"),
        (lambda: png(8, 8, b"a\0\0" + zlib.compress(bytes(300_000_000))), "too large"),
        (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;", "4294836225 pixels are more than"),
        (lambda: tiff(60_000, (278, 4, 60_000)), "3600000000 pixels are more than"),
        (lambda: tiff(64, (322, 4, 1 << 16), (323, 4, 1 << 14)), "tiles of 1073741824 pixels are more than"),
        (lambda: tiff(64, *[(322, 4, 1 << 16), (322, 4, 64), (323, 4, 1 << 14), (323, 4, 64)]), "tiles of 1073741824"),
        (lambda: tiff(64, *[(60_000, 4, 1)] * 1000), "its directory has 1000 entries or more"),
        (lambda: b"P6 60000 60000 255\n", "3600000000 pixels are more than"),
        (lambda: b"P3 9 9 255\n" + b"#\n" * 1_000_000, "it has more than the 1000 comments allowed"),
        (lambda: b"BM" + struct.pack("<4L2l2H6L", 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6), "3600000000 pixels"),
        (avif, "256000000 pixels are more than"),
    ],
    ids=[
        *("jpeg", "restarts", "scans", "png", "text", "gif"),
        *("tiff", "tile", "tiles", "entries", "ppm", "comments", "bmp", "avif"),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], words: str
) -> None:
    data = make()
    inspect(data)
    for owner, name in ((ImageFile.ImageFile, "load"), (simplejpeg, "decode_jpeg")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} decodes the bomb"))
    with little_memory(150), pytest.raises(DataError, match=words):
        read_picture(data, ".jpg")


def test_the_pages_of_a_tiff_are_not_all_counted() -> None:
    """Check 1,500 empty directories, and one that is followed by itself."""
    data = tiff(64, (278, 4, 64))
    end = 8 + 2 + 12 * 9
    pages = b"".join(struct.pack("<HL", 0, len(data) + 6 * (number + 1)) for number in range(1500))
    chained = data[:end] + struct.pack("<L", len(data)) + data[end + 4 :] + pages
    assert read_picture(chained, ".tif").repairs == ("1 of 1000 or more pages kept",)
    circle = data[:end] + struct.pack("<L", 8) + data[end + 4 :]
    assert read_picture(circle, ".tif").repairs == ()


@pytest.mark.parametrize("backend", ["turbo", "dali"])
@pytest.mark.parametrize(
    ("height", "width", "words"),
    [(65_500, 65_500, "pixels are more than"), (16, 65_500, "too elongated"), (65_500, 16, "too elongated")],
)
def test_a_loader_refuses_a_member_that_claims_too_much(
    tmp_path: Path, backend, height: int, width: int, words: str
) -> None:
    """Check shards made with --resize none, in which an image may have any size."""
    source = tmp_path / "in"
    for split in ("train", "val"):
        (source / split / "a").mkdir(parents=True)
        (source / split / "a" / "1.jpg").write_bytes(jpeg())
    shard(source, tmp_path / "out", resize="none")
    tar = without_checksums(tmp_path / "out") / "val-000000.tar"
    tar.write_bytes(of_size(tar.read_bytes(), height, width))
    with pytest.raises(DataError, match=rf"val-000000\.tar.*1 cannot be .*{words}"):
        list(open_loader(tmp_path / "out", "val", 1, backend=backend))
    with pytest.raises(DataError, match=r"val-000000\.tar"):
        verify(tmp_path / "out", 1)


def test_a_turbo_thread_is_not_kept_busy_by_a_thousand_scans() -> None:
    def check(data: bytes) -> None:
        check_jpeg(data, check_agreed(data), (8000, 8000), ImageFormat("jpeg", "none", 256, 90))

    with pytest.raises(ValueError, match="scans are more than the 100 allowed"):
        check(of_scans(2000))
    check(jpeg(progressive=True))
    check(jpeg() + b"\xff\xda" * 1000)  # markers after the end of the image


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "content",
    [
        tar_header("x", b"\x80" + bytes(5) + b"\x10" + bytes(5), b"L") + bytes(2048),
        tar_header("x", b"\xff" * 12, b"x") + bytes(2048),
        tar_header("x", b"\xff" * 11 + b"\0") + bytes(2048),
        tar_header("x", b"%011o\0" % 10, b"L") * 3000 + bytes(2048),
        tar_header("../x", b"%011o\0" % 0) + bytes(2048),
        tar_header("/x", b"%011o\0" % 0) + bytes(2048),
        tar_header("x", b"%011o\0" % 0, b"2") + bytes(2048),
        tar_header("x", b"%011o\0" % 0, b"3") + bytes(2048),
    ],
    ids=["64 GiB name", "negative pax", "negative", "names of names", "parent", "absolute", "link", "device"],
)
def test_tars_that_lead_astray_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with path.open("rb") as file, little_memory(200), pytest.raises(DataError, match=r"a\.tar (is|holds) "):
        list(members(file, str(path)))


def test_a_devkit_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devkit.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(tar_header("data/meta.mat", b"%011o\0" % (1 << 30)))
        for _ in range(40):
            file.write(bytes(10_000_000))
    with little_memory(1500), pytest.raises(DataError, match="bytes unpacked"):
        read_devkit(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment": "none of ours"}, "augment is 'none of ours'"),
        ({"augment": ["paper"]}, "augment is a list"),
        ({"image_size": 10**9}, "image_size is 1000000000"),
        ({"image_size": "256"}, "image_size is '256'"),
        ({"statistics": {}}, "statistics are damaged: statistics: Object missing required field `mean_rgb`"),
        ({"statistics": STATISTICS | {"mean_rgb": [float("nan"), 0.0, 0.0]}}, "cannot be those of RGB pixels"),
        ({"statistics": STATISTICS | {"std_rgb": [0.0, 0.0, 0.0]}, "augment": "crop_flip"}, "standard deviation"),
        ({"mean_image": None}, "lacks the mean image"),
        ({"mean_image": torch.zeros(10, 10, 3)}, "not a tensor of 256,256,3"),
        ({"mean_image": torch.full((256, 256, 3), float("nan"))}, "values outside 0 to 255"),
    ],
)
def test_what_a_checkpoint_says_of_its_input_is_checked(changes: dict, words: str) -> None:
    whole = {"augment": "paper", "image_size": 256, "statistics": STATISTICS, "mean_image": torch.zeros(256, 256, 3)}
    assert Preparation.of(whole).mean.shape == (224, 224, 3)
    with pytest.raises(DataError, match=words):
        Preparation.of(whole | changes)


def test_names_do_not_command_the_terminal(trained: Path, tmp_path: Path) -> None:
    assert printable("tench, Tinca tinca é 鱼\x1b[2J\u202e\udcff") == "tench, Tinca tinca é 鱼\\x1b[2J\\u202e\\udcff"
    assert checkpoint.COMMANDS == untrusted.COMMANDS, "alexnet/ and pipelines/ do not import each other"
    evil = tmp_path / "\x1b[31m.jpg"
    evil.write_bytes(b"not a picture")
    done = script("tools/predict.py", trained / "best.pt", evil)
    assert "\x1b" not in done.stderr and "\\x1b[31m.jpg: it is not an image" in done.stderr
    Image.new("RGB", (300, 300)).save(evil)
    done = script("tools/predict.py", trained / "best.pt", evil)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b[31m.jpg" in done.stdout


def test_a_file_whose_name_is_no_text_is_answered(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jpg")
    Image.new("RGB", (300, 300)).save(path)
    done = command("tools/predict.py", trained / "best.pt", path)
    assert done.returncode == 0 and "\\udcff.jpg" in done.stdout, done.stderr


def test_a_class_named_like_a_formula_is_drawn(tmp_path: Path) -> None:
    figure = figures.confusion_matrix(np.ones((2, 2), int), [r"US$ \frac", r"$\nothing{$"])
    figure.savefig(tmp_path / "x.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"US\$ \frac", r"\$\nothing{\$"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.json", {"top1": "best"}, "Expected `float`, got `str` - at `$.top1`"),
        ("metrics.json", {"confused": 5}, "Expected `array`, got `int` - at `$.confused`"),
        ("metrics.json", {"by_property": {"size": [{"group": "x"}]}}, "missing required field `images`"),
        ("metrics.json", [], "Expected `object`, got `array`"),
        ("metrics.json", {"confused": [["\ud800", "b", 1]]}, "metrics.json is damaged"),
        ("log.jsonl", {"kind": "step", "step": 1}, "line 1: Object missing required field"),
        (
            "log.jsonl",
            {"kind": "epoch", "epoch": 1, "top1": None, "top5": 0, "f1": 0},
            "line 1: Expected `float`, got `null` - at `$.top1`",
        ),
        ("classes.csv", "name,images\nx,many\n", "classes.csv is damaged"),
        ("pictures/filters.png", "no picture", "it is not an image"),
    ],
)
def test_a_run_folder_from_elsewhere_is_checked(run_folder: Path, name: str, content: object, words: str) -> None:
    path = run_folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert_refused(script("tools/report.py", run_folder), str(path), words)


def test_names_of_classes_are_escaped_in_a_report(run_folder: Path) -> None:
    evil = '"><script>alert(1)</script>'
    (run_folder / "metrics.json").write_text(json.dumps({"confused": [[evil, "b", 1]]}))
    (run_folder / "classes.csv").write_text('name,images,precision,recall,f1\n"<img src=x>",1,0,0,0\n')
    (run_folder / "config.json").unlink()
    (run_folder / "config.json").write_text(json.dumps({"settings": {evil: evil}}))
    assert script("tools/report.py", run_folder).returncode == 0
    text = (run_folder / "report.html").read_text()
    assert text.count("<script") == 1 and "alert(1)</script>" not in text, "the page's own script is the only one"
    assert "<img src=x" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize("classes", [5, [1], [["a"]], [["n1", "\x1b[2J"]] * 101, [["a", "b"]] * 10**6])
def test_classes_of_a_checkpoint_are_checked(trained: Path, tmp_path: Path, classes: object) -> None:
    state = torch.load(trained / "best.pt", weights_only=True) | {"classes": classes}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(AlexNetError, match=r"x\.pt"):
        checkpoint.load_model(tmp_path / "x.pt", torch.device("cpu"))


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(trained: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "x.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as records:
        records.writestr("x/data/0", bytes(1 << 26))
    with pytest.raises(AlexNetError, match="larger than the file"):
        checkpoint.load(bomb)
