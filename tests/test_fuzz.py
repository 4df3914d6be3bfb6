"""Tests that each of ten thousand damaged files is read correctly or refused with one line that says where, in bounded
time and memory. The slow tests check ten times as many other cases."""

import faulthandler
import io
import json
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet import AlexNetError
from pipelines import Augment, DataError, Manifest, load_manifest
from pipelines.augment import lighting_matrix, load_mean_image
from pipelines.images.picture import read_picture
from pipelines.sharding.members import make_member
from pipelines.sharding.sources.tars import members
from pipelines.sharding.verify import _problem
from pipelines.shards.index import list_samples
from pipelines.shards.manifest import ImageFormat
from pipelines.shards.records import Record, Records
from pipelines.turbo.decode import read_member
from pipelines.turbo.native import Worker, has_native, renders_natively
from pipelines.turbo.randomness import Draws
from pipelines.turbo.renderer import Renderer
from pipelines.untrusted import COMMANDS
from tests.conftest import command, shard
from tests.damage import Edit, changed, damaged, edits
from tests.sequences import Decoding

CPU_SECONDS = 100  # for one case, as a guard against hangs; most cases take a millisecond
MEMORY = 1 << 30  # bytes that the cases may add; the files have 100 KB
CROP = Augment(size=48, normalise="mean")
DRAWS = Draws(np.array([False]), np.array([[0.3, 0.7, 0.0, 0.0]]), np.zeros((1, 3)), None)
CHANCE = DRAWS.at(0)
QUICK_AND_SLOW = [pytest.param(2500, 0), pytest.param(25_000, 1, marks=pytest.mark.slow)]


@contextmanager
def bounded() -> Iterator[None]:
    """Raise MemoryError beyond MEMORY and AssertionError beyond CPU_SECONDS. Neither counts as a refusal."""

    def too_long(*_: Any) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"a case took more than {CPU_SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    before = signal.signal(signal.SIGVTALRM, too_long)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def fuzz(cases: st.SearchStrategy, check: Callable[[Any], None], count: int, number: int) -> None:
    """Run ``check`` on ``count`` cases, the same ones for the same ``number``."""
    ran = 0

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def run(case: Any) -> None:
        nonlocal ran
        ran += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        check(case)

    with bounded():
        run()
    assert ran >= count


def refusal(use: Callable[[], Any]) -> str | None:
    """Return the one line with which ``use`` is refused, or None. Any other exception is a failure."""
    try:
        use()
    except (DataError, AlexNetError) as error:
        said = str(error)
        assert len(said) > 10 and "\n" not in said and len(said) < 3000, said
        return said
    return None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return shards of four train and two val images: as square JPEGs, as raw pixels, and as original files."""
    source = tmp_path_factory.mktemp("fuzz") / "images"
    rng = np.random.default_rng(0)
    for number in range(6):
        path = source / ("train" if number < 4 else "val") / f"c{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((80 + number, 64)).save(path)
    made = {}
    for name, options in {"square": {}, "raw": {"encoding": "raw"}, "none": {"resize": "none"}}.items():
        made[name] = shard(source, source.parent / name, size=64, **options)
    return made


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder in memory, if the system has one, because each case writes a file."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def folder(folders: dict[str, Path], quick: Path) -> Path:
    return shutil.copytree(folders["square"], quick / "shards")


def read_all(manifest: Manifest, split: str) -> dict[int, Record]:
    """Return the samples that can be decoded. Check that each other sample is refused with its shard named."""
    records, views = Records(manifest, split), Renderer(manifest, CROP)
    worker = Worker(records, manifest, CROP, 1) if renders_natively(manifest, CROP) else None
    found: dict[int, Record] = {}
    for number in range(len(records)):
        said = refusal(lambda number=number: found.update({number: read_one(records, views, worker, number)}))
        assert said is None or f"{split}-000000" in said, said
        if said:
            found.pop(number, None)
    return found


def read_one(records: Records, views: Renderer, worker: Worker | None, number: int) -> Record:
    """Read a sample in Python. Check that the compiled part gives the same pixels and label, if it decodes it."""
    out, natively = np.empty((2, 1, 48, 48, 3), np.uint8)
    (rendered,) = views.render_natively(worker, [number], DRAWS, natively) if worker else (None,)
    record = records.read(number)
    views.render(record, CHANCE, out)
    if rendered is not None and rendered["done"]:
        assert rendered["label"] == record.label
        np.testing.assert_array_equal(natively, out)
    return record


def use_manifest(folder: Path) -> None:
    """Use a manifest in every way that it is used, and check that all values that were accepted are valid."""
    manifest = load_manifest(folder)
    assert manifest.image.size <= 4096 and len(manifest.label_width * "9") <= 6
    for split in manifest.splits.values():
        for one in split.shards:
            assert (folder / one.path).resolve().parent == folder.resolve() and one.samples >= 1
    numbers = [*np.ravel(lighting_matrix(manifest.statistics)), *np.ravel(CROP.mean_and_std(manifest.statistics))]
    assert np.isfinite(numbers).all() and len(numbers) == 15
    assert not any(COMMANDS.search(entry.wnid + entry.name) for entry in manifest.classes)
    assert all(entry["split"] + entry["source"] for entry in manifest.repaired)
    if manifest.statistics.mean_image:
        refusal(lambda: load_mean_image(manifest))
    for name in manifest.splits:
        for record in read_all(manifest, name).values():
            assert 0 <= record.label < len(manifest.classes)


@pytest.mark.parametrize(("count", "number"), QUICK_AND_SLOW)
def test_a_manifest_is_used_as_it_is_meant_or_refused(folder: Path, count: int, number: int) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()

    def check(case: tuple[list[Edit], list[Edit]]) -> None:
        structure, text = case
        document = json.loads(whole)
        for edit in structure:
            changed(document, edit)
        path.write_bytes(damaged(json.dumps(document).encode(), text))
        said = refusal(lambda: use_manifest(folder))
        assert said is None or str(folder) in said, said

    structures = st.tuples(edits(), st.just([])) | st.tuples(st.just([]), edits()) | st.tuples(edits(), edits())
    fuzz(structures, check, count, number)


@pytest.mark.parametrize(("count", "number"), QUICK_AND_SLOW)
def test_an_index_leads_to_the_samples_of_its_shard_or_is_refused(folder: Path, count: int, number: int) -> None:
    path = folder / "train-000000.idx"
    true = {record.key: record for record in read_all(load_manifest(folder), "train").values()}
    whole = path.read_bytes()

    def check(case: list[Edit]) -> None:
        path.write_bytes(damaged(whole, case))
        manifest: list[Manifest] = []
        if refusal(lambda: manifest.append(load_manifest(folder))):
            return
        found = read_all(manifest[0], "train").values()
        assert len({record.key for record in found}) == len(found), "no sample stands for another"
        for record in found:
            assert (record.label, record.data) == (true[record.key].label, true[record.key].data)
        listed: list[Any] = []
        if not refusal(lambda: listed.append(list_samples(manifest[0], "train"))):
            assert listed[0][0] == list(true)

    fuzz(edits(), check, count, number)


@pytest.mark.parametrize(("count", "number"), QUICK_AND_SLOW)
@pytest.mark.parametrize("kind", ["square", "raw", "none"])
def test_what_is_damaged_in_a_tar_is_named_and_the_rest_is_read(
    folders: dict[str, Path], quick: Path, kind: str, count: int, number: int
) -> None:
    folder = shutil.copytree(folders[kind], quick / "shards")
    manifest = load_manifest(folder)
    first, path = manifest.split("train").shards[0], folder / "train-000000.tar"
    true, whole = read_all(manifest, "train"), path.read_bytes()
    lines = path.with_suffix(".idx").read_text().splitlines()[1:]
    spans = [(int(line.split()[1]) - 512, int(line.split()[5]) + manifest.label_width) for line in lines]

    def check(case: list[Edit]) -> None:
        now = damaged(whole, case)
        path.write_bytes(now)
        found = read_all(manifest, "train")  # the manifest was loaded before, so lengths are not checked
        for row, (start, stop) in enumerate(spans):
            if now[start:stop] == whole[start:stop]:
                assert (found[row].label, found[row].data) == (true[row].label, true[row].data)
        with path.open("rb") as file:
            said = refusal(lambda: [check_member(one, len(now)) for one in members(file, str(path))])
        assert said is None or str(path) in said, said
        problem = _problem(first, manifest)
        assert (problem is None) == (now == whole), "what differs by a bit has another sha256"
        assert problem is None or "\n" not in problem, problem

    headers = [
        start + offset for span in spans for start in (span[0], span[1] // 512 * 512 - 512) for offset in range(160)
    ]
    in_headers = edits(("flip", "binary", "move"), 3, headers)
    fuzz(edits() | in_headers, check, count // 3, number)


def check_member(member: Any, size: int) -> None:
    assert member.offset >= 0 and member.size >= 0 and member.offset + member.size <= size
    assert not member.name.startswith("/") and ".." not in member.name.split("/")


def saved(form: str, size: tuple[int, int] = (80, 64), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(noise).resize(size).convert(mode).save(file, form, **options)
    return file.getvalue()


PICTURES = [
    *(saved("JPEG", subsampling=kind) for kind in (0, 1, 2)),
    saved("JPEG", progressive=True),
    saved("JPEG", mode="L"),
    saved("JPEG", mode="CMYK"),
    saved("JPEG", restart_marker_blocks=3),
    saved("JPEG", size=(400, 350), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    saved("PNG"),
    saved("PNG", mode="P"),
    saved("GIF", mode="P"),
    saved("BMP"),
    saved("WEBP"),
    saved("TIFF", compression="tiff_lzw"),
    saved("TIFF", mode="I;16"),
    saved("PPM"),
    saved("AVIF"),
]


@pytest.mark.parametrize(("count", "number"), QUICK_AND_SLOW)
def test_an_image_is_decoded_whole_or_refused(folders: dict[str, Path], count: int, number: int) -> None:
    manifest = load_manifest(folders["none"])
    views = {name: Renderer(load_manifest(folders[name]), CROP) for name in ("none", "square")}
    fixed = Renderer(manifest, replace(CROP, crop="center"))

    def check(case: tuple[int, list[Edit]]) -> None:
        data = damaged(PICTURES[case[0]], case[1])
        refusal(lambda: check_pixels(read_picture(data, ".jpg", 1_000_000).pixels))
        for image in (manifest.image, ImageFormat("raw", "square", 64, 0)):
            refusal(
                lambda image=image: check_pixels(
                    read_member(make_member(data, ".jpg", image, max_pixels=1_000_000, want_pixels=False).data, image)
                )
            )
        record = Record(manifest.folder, "train-000000.tar", "key", memoryview(data), label=0)
        for one in (*views.values(), fixed):
            out = np.empty((1, 48, 48, 3), np.uint8)
            said = refusal(lambda one=one, out=out: one.render(record, CHANCE._replace(flip=True), out))
            assert said is None or "train-000000.tar: sample key cannot be decoded: " in said, said

    fuzz(st.tuples(st.integers(0, len(PICTURES) - 1), edits()), check, count, number)


def check_pixels(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and 0 < pixels.size <= 3_000_000


@pytest.mark.skipif(not has_native(), reason="needs pipelines/turbo/native.c built")
@pytest.mark.parametrize(("count", "number"), [(10_000, 0), pytest.param(100_000, 1, marks=pytest.mark.slow)])
def test_a_decoder_keeps_nothing_of_the_files_before(count: int, number: int) -> None:
    """Check one reused decoder. ``make fuzz`` runs the same under sanitizers, for any number of minutes."""
    decoding = Decoding(number)
    with bounded():
        decoding.run(count)
    for outcome in ("whole, decoded", "table lost, refused", "scan damaged, shown", "restart markers written"):
        assert decoding.counts[outcome] >= count // 200, decoding.counts


# DALI's decoder runs in a process of its own, because the tests look for crashes of that process. It takes batches of
# 32 on two threads, because it crashes only if a batch is parsed in parts.
DALI = """
import random, re, sys
import numpy as np
from nvidia.dali import Pipeline, fn
from pipelines.dali.graph import Graph
from pipelines.factory import Augment, Plan, load_manifest
from tests.conftest import command, shard
from tests.damage import damaged, random_edits
from tests.test_fuzz import PICTURES, OTHER_PRECISION

plan = Plan(samples=32, batch_size=32, rank=0, world_size=1, training=True)
graph = Graph(load_manifest(sys.argv[1]), "train", plan, Augment(size=48), gpu=False, seed=0)
rng, read, refused, pipeline = random.Random(int(sys.argv[3])), 0, 0, None
pictures = [np.frombuffer(data, np.uint8) for data in PICTURES[:7]]
for case in range(int(sys.argv[2])):
    if pipeline is None:
        pipeline = Pipeline(32, 2, None, seed=0, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            pipeline.set_outputs(graph.images(fn.external_source(name="encoded")))
        pipeline.build()
    batch = [rng.choice(pictures) for _ in range(32)]
    data = damaged(rng.choice(PICTURES[:7]), random_edits(rng)) or b"0"
    if OTHER_PRECISION.search(data):
        continue
    batch[rng.randrange(32)] = np.frombuffer(data, np.uint8)
    try:
        pipeline.feed_input("encoded", batch)
        images = pipeline.run()[0].as_tensor()
        assert images.shape() == [32, 48, 48, 3], images.shape()
        read += 1
    except RuntimeError:
        refused, pipeline = refused + 1, None
print(read, refused)
"""
OTHER_PRECISION = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..[^\x08]", re.DOTALL)


@pytest.mark.parametrize(("count", "number"), [(400, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_no_damaged_image_takes_the_process_with_it(folders: dict[str, Path], count: int, number: int) -> None:
    """Check that DALI returns the right shape or raises an exception. Without our check of the headers before DALI's,
    this process dies."""
    done = command("-c", DALI, folders["none"], count, number)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    read, refused = map(int, done.stdout.split())
    assert read > count // 20 and refused > count // 20


@pytest.mark.slow
@pytest.mark.xfail(
    raises=AssertionError,
    strict=False,
    reason="DALI 2.4's decoder: its own parallel part throws while its threads go on",
)
def test_no_precision_takes_the_process_with_it(folders: dict[str, Path]) -> None:
    """Check the one byte of a header that our own check skips: the bits per sample, which must be 8 or 12."""
    program = DALI.replace("damaged(rng.choice(PICTURES[:7]), random_edits(rng))", "OTHER").replace(
        "    if OTHER_PRECISION.search(data):\n        continue\n", ""
    )
    assert PICTURES[0].count(b"\xff\xc0\0\x11\x08") == 1
    other = PICTURES[0].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x18")
    done = command("-c", f"OTHER = {other!r}\n{program}", folders["none"], 100, 0)
    assert done.returncode == 0, done.returncode
