"""Small datasets, made once a session, and helpers that run commands as a user would."""

import gc
import io
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from pipelines.sharding import runners
from pipelines.sharding.writer import ShardTask, write_shard
from pipelines.turbo.native import has_native
from tools import make_demo, shard_imagenet

pytest_plugins = ["tests.bucket"]  # its fixtures

ROOT = Path(__file__).parents[1]
NUMBERED_IMAGES = 101
PATIENCE = 1800.0  # seconds until a test that hangs fails; no test that works takes as long on the busiest machine
QUICK = ("--batch-size", "50", "--epochs", "2", "--learning-rate", "0.005", "--log-steps", "1")
SMALLEST = ("--batch-size", "4", *QUICK[2:])  # for few_shards: as many steps


def pytest_collection_finish() -> None:
    """Exclude what imports made from garbage collection, which ``collect_garbage`` then does in milliseconds."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries report at the exit what was not freed


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Free each test's loaders and networks at once: kept in circles of references, they grew to 8 GB."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def demo_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo, smaller: 400 train and 203 val images."""
    out = tmp_path_factory.mktemp("demo") / "images"
    make_demo.make_demo(out, train=400, val=203)
    return out


@pytest.fixture(scope="session")
def demo_shards(demo_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(demo_images, tmp_path_factory.mktemp("demo") / "shards", shard_mb=2)


@pytest.fixture(scope="session")
def numbered_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which each image is the only one of its class, so that its label identifies it."""
    folder = tmp_path_factory.mktemp("numbered") / "images"
    for number in range(NUMBERED_IMAGES):
        for split in ("train", "val"):
            path = folder / split / f"c{number:03d}" / f"{split}_{number}.png"
            path.parent.mkdir(parents=True)
            Image.linear_gradient("L").rotate(number).resize((48, 40)).save(path)
    return folder


@pytest.fixture(scope="session")
def numbered_shards(numbered_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(numbered_images, tmp_path_factory.mktemp("numbered") / "shards", shard_mb=0.5)


@pytest.fixture(scope="session")
def few_shards(numbered_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of the first eight of the numbered images, for runs whose own cost does not matter."""
    folder = tmp_path_factory.mktemp("few")
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        for path in sorted((numbered_images / split).iterdir())[:8]:
            (folder / "images" / split / path.name).symlink_to(path)
    return shard(folder / "images", folder / "shards")


@pytest.fixture(scope="session")
def uninterrupted(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs of two small steps, in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = command("train.py", "--data", few_shards, "--out", out, *SMALLEST)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def trained(numbered_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs of two steps."""
    out = tmp_path_factory.mktemp("runs") / "two"
    done = command("train.py", "--data", numbered_shards, "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def seen(trained: Path, numbered_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of that run with links to its files, its metrics and its pictures."""
    folder = linked(trained, tmp_path_factory.mktemp("runs") / "seen")
    for tool in ("evaluate", "visualize"):
        more = ("--searched", 70) if tool == "visualize" else ()
        done = script(f"tools/{tool}.py", folder / "best.pt", "--data", numbered_shards, *more)
        assert done.returncode == 0, done.stderr
        (folder / f"{tool}.txt").write_text(done.stdout)
    return folder


def linked(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "env.json", "log.jsonl", "best.pt"):
        (folder / name).symlink_to(run / name)
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """Return a folder with links to that run's files, in which tools may write beside its checkpoint."""
    return linked(trained, tmp_path / "run")


@contextmanager
def mounted(disk: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of that size, yield its folder, and unmount it."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder of a file system of three megabytes."""
    with mounted(tmp_path / "disk", 3) as disk:
        yield disk


def shard(source: Path, out: Path, **options) -> Path:
    """Shard a folder, in this process unless ``workers`` are given, because each worker imports torch, in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if "workers" not in options:
            patch.setattr(runners, "write_on_this_machine", write_here)
        if not has_native():
            options = {"no_restarts": not options.get("restarts")} | options
        shard_imagenet.main(shard_imagenet.Options(source, out, **options))
    return out


def write_here(tasks: Sequence[ShardTask], _: int, progress: runners.ShardingProgress) -> None:
    for task in tasks:
        write_shard(task, lambda _, bad: progress.quarantine(bad) if bad else None)


def without_checksums(folder: Path) -> Path:
    """Turn the shards into those of a version that wrote no checksums. Return their folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("checksums")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` and wait for it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that happens in another process or thread. Fail with ``what`` is wrong if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def script(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a script like ``command``, but in this process, because a new import of torch takes seconds.

    Shards are written in this process too, as by ``shard``.
    """
    line = [str(ROOT / str(arguments[0])), *map(str, arguments[1:])]
    out, errors = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", line)
        patch.setattr(runners, "write_on_this_machine", write_here)
        patch.chdir(cwd)
        try:
            runpy.run_path(line[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return subprocess.CompletedProcess(line, code, out.getvalue(), errors.getvalue())


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """Check that the command ended with ``code`` and one message with these words, and without a traceback."""
    assert done.returncode == code, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr, done.stderr
    message = done.stderr.replace("\n", " ")
    for word in words:
        assert word in message, done.stderr
