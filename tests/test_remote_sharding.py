"""Sharding into a bucket: the objects are the files of a folder, however often the run was stopped."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.bucket import Proxy
from pipelines import DataError
from pipelines.remote.store import Store
from tests.bucket import assert_one_line
from tests.conftest import ROOT, assert_refused, command, script, shard

OPTIONS = {"size": 64, "shard_mb": 0.03}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read(name, 1 << 30) for name in store.list()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_objects_are_the_files_of_a_folder(
    numbered_images: Path, small_shards: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    url = "s3://bucket/sharded"
    shard(numbered_images, Path(url), **OPTIONS)
    assert contents(url) == files(small_shards)
    assert not list((tmp_path / "cache").rglob("*.tar"))  # nothing stays here
    shard(numbered_images, Path(url), **OPTIONS)
    assert f"{url} is finished already: 101 train images" in capsys.readouterr().out
    done = script("tools/shard_imagenet.py", "--verify", url, "--workers", 1)
    assert f"{url}: 202 images in 22 shards, all as the manifest says" in done.stdout, done.stderr
    Store(url).write("train-000002.tar", files(small_shards)["train-000002.tar"][::-1])
    assert_refused(
        script("tools/shard_imagenet.py", "--verify", url, "--workers", 1),
        f"{url}/train-000002.tar is not the shard of the manifest",
        "1 of 22 shards are wrong",
    )
    with pytest.raises(DataError, match="finished shards of another plan") as error:
        shard(numbered_images, Path(url), seed=1, **OPTIONS)
    assert_one_line(str(error.value), url)
    Store(url).delete(["val-000001.tar"])
    with pytest.raises(DataError, match=r"val-000001.tar is missing or has another size"):
        shard(numbered_images, Path(url), **OPTIONS)


def test_other_things_are_left_alone(numbered_images: Path, server: str) -> None:
    url = "s3://bucket/letters"
    Store(url).write("letter.txt", b"dear reader")
    with pytest.raises(DataError, match="holds other things: choose an empty place"):
        shard(numbered_images, Path(url), **OPTIONS)
    assert contents(url) == {"letter.txt": b"dear reader"}
    for more in ({"repair": True}, {"cluster": "tcp://host:1"}):
        with pytest.raises(ValueError, match="goes with a folder only"):
            shard(numbered_images, Path(url), **OPTIONS, **more)


class Stopped(Exception):
    """A run that ends here."""


def test_a_run_that_stops_at_any_write_is_resumed(
    numbered_images: Path, small_shards: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop it after each few writes to the bucket, in the middle of a shard too. Shards that are there stay."""
    url, write, left, tars = "s3://bucket/resumed", Store.write, [0], []

    def some(self: Store, name: str, content):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        tars.extend([name] if name.endswith(".tar") else [])
        return write(self, name, content)

    monkeypatch.setattr(Store, "write", some)
    for runs in range(1, 40):
        left[0] = 7 if runs % 2 else 13
        try:
            shard(numbered_images, Path(url), **OPTIONS)
        except Stopped:
            assert "manifest.json" not in Store(url).list()
            continue
        break
    assert runs > 8  # it was stopped often
    assert contents(url) == files(small_shards)
    assert len(tars) <= 22 + runs  # at most one shard was written twice for each stop


def test_an_unfinished_run_of_another_plan_is_refused(
    numbered_images: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, write = "s3://bucket/unfinished", Store.write

    def stop(self: Store, name: str, content):
        if name.endswith(".idx"):
            raise Stopped
        return write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Store, "write", stop)
        shard(numbered_images, Path(url), **OPTIONS)
    with pytest.raises(DataError, match="is unfinished with another plan"):
        shard(numbered_images, Path(url), seed=3, **OPTIONS)


@pytest.mark.slow
def test_twelve_kills_change_no_byte(numbered_images: Path, small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    """Kill the command when the bucket has got so many requests, a random number more each time."""
    url, seed = "s3://bucket/killed", random.Random(0)
    line = [ROOT / "tools/shard_imagenet.py", numbered_images, url, "--size", 64, "--shard-mb", 0.03, "--workers", 2]
    killed, after = 0, [0]
    processes: list[subprocess.Popen] = []

    def fault(*_: str) -> str:
        after[0] -= 1
        if not after[0]:
            processes[-1].kill()
        return ""

    proxy.fault = fault
    for _ in range(40):
        after[0] = seed.randrange(1, 40) if killed < 12 else -1
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen([sys.executable, *map(str, line)], env=environment, stderr=subprocess.PIPE))
        _, said = processes[-1].communicate()
        if not processes[-1].returncode:
            break
        assert processes[-1].returncode == -9, said.decode()
        killed += 1
    assert killed >= 6  # the others would have come after the end
    assert contents(url) == files(small_shards)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    done = command(*line)
    assert "is finished already" in done.stdout, done.stderr
