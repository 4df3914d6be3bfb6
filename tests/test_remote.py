"""Shards in a bucket: the batches of a folder, a cache that keeps its bound, and an order that fits into it."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.harness.bucket import Proxy
from pipelines import DataError, open_loader
from pipelines.gpu import opening
from pipelines.remote.cache import ShardCache, _size, alone
from pipelines.shards.manifest import load_manifest
from pipelines.turbo.native import has_native
from pipelines.turbo.randomness import windowed_order
from tests.bucket import SMALL, URL, fetched, gb, labels, largest
from tests.conftest import ROOT


def test_a_bucket_gives_the_batches_of_the_folder(small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    """The whole dataset fits: the full permutation, bit for bit, and from the second epoch on nothing is fetched."""
    loaders = [open_loader(small_shards, "train", 8, SMALL), open_loader(URL, "train", 8, SMALL, cache=str(tmp_path))]
    for epoch in range(3):
        for here, there in zip(*loaders, strict=True):
            assert torch.equal(here.images, there.images)
            assert torch.equal(here.labels, there.labels)
        if not epoch:
            assert sorted(fetched(proxy)) == [path.name for path in sorted(small_shards.glob("train-*.tar"))]
            proxy.requests.clear()
    assert not proxy.requests
    assert URL in repr(loaders[1])
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*/train-*")}
    assert kept == {path.name: path.read_bytes() for path in small_shards.glob("train-*")}


def test_gpu_reads_from_a_cache_that_holds_all(small_shards: Path, server: str, tmp_path: Path) -> None:
    """The emulated kernels give turbo's pixels, and the shards stay open."""
    if opening.missing_part() or not has_native():
        pytest.skip("needs the compiled parts, of this version")
    how: dict[str, Any] = {"batch_size": 8, "augment": SMALL, "cache": tmp_path}
    for memory in ({}, {"resident": True}):
        loaders = [open_loader(small_shards, **how | {"cache": None}), open_loader(URL, backend="gpu", **how | memory)]
        for _ in range(2):
            assert all(torch.equal(a.images, b.images) for a, b in zip(*loaders, strict=True))
    small = {"backend": "gpu", "cache_gb": gb(small_shards, 4)}
    with pytest.raises(DataError, match=r"gpu does not read s3://bucket/imagenet: .* do not fit into the cache"):
        open_loader(URL, **how | small)
    manifest = open_loader(URL, **how | small | {"backend": "turbo"}).manifest
    assert "do not fit" in opening.why_not(manifest, torch.device("cuda"))


def test_half_of_a_small_cache_is_for_what_comes_next(small_shards: Path, tmp_path: Path) -> None:
    found = [
        load_manifest(URL, cache=tmp_path, cache_gb=gb(small_shards, shards)).window("train")
        for shards in (2, 3, 4, 5, 6)
    ]
    assert found == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_the_order_of_a_small_cache_needs_each_shard_once(window: int) -> None:
    counts = [100, 90, 100, 1, 100, 80, 100]
    order = windowed_order(3, 5, counts, window)
    assert sorted(order) == [*range(sum(counts))]
    of_shard = np.repeat(np.arange(len(counts)), counts)[order]
    first, last = ([np.flatnonzero(of_shard == s)[end] for s in range(len(counts))] for end in (0, -1))
    at_once = [sum(a <= place <= b for a, b in zip(first, last, strict=True)) for place in range(len(order))]
    assert max(at_once) <= window
    assert not np.array_equal(order, windowed_order(3, 6, counts, window))
    assert not np.array_equal(order, windowed_order(4, 5, counts, window))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_share_an_epoch_of_a_small_cache(small_shards: Path, server: str, tmp_path: Path, ranks: int) -> None:
    """Check that ranks have one order, train samples once at most, and in evaluation each image once."""
    how = {"cache": tmp_path, "cache_gb": gb(small_shards, 4), "world_size": ranks}
    train = [open_loader(URL, "train", 2, SMALL, rank=rank, **how) for rank in range(ranks)]
    steps = zip(*train, strict=True)
    seen = [int(label) for step in steps for batch in step for label in batch.labels]
    alone = open_loader(URL, "train", 1, SMALL, rank=0, **how | {"world_size": 1})
    assert alone.identity.window == 2
    assert seen == labels(alone)[: len(seen)]
    assert len(set(seen)) == len(seen) == 101 // (2 * ranks) * 2 * ranks
    val = [open_loader(URL, "val", 2, SMALL, rank=rank, **how) for rank in range(ranks)]
    assert sorted(label for loader in val for label in labels(loader)) == [*range(101)]


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_resumes_in_the_middle_of_an_epoch(
    small_shards: Path, server: str, tmp_path: Path, ranks: int, cold: bool
) -> None:
    """The samples that no rank had follow, bit for bit, on another number of ranks too, whatever the cache holds."""
    how = {"cache": tmp_path / "first", "cache_gb": gb(small_shards, 4), "seed": 7}
    whole = open_loader(URL, "train", 6, SMALL, **how)
    labels(whole)
    batches = [(batch.images.clone(), batch.labels.clone()) for batch in whole]
    half = open_loader(URL, "train", 6, SMALL, **how)
    labels(half)
    for _ in zip(range(7), half, strict=False):
        pass
    state = half.state_dict()
    half.close()
    how |= {"cache": tmp_path / ("second" if cold else "first"), "world_size": ranks}
    rest = [open_loader(URL, "train", 6 // ranks, SMALL, rank=rank, **how) for rank in range(ranks)]
    for loader in rest:
        loader.load_state_dict(json.loads(json.dumps(state)))
    got = [
        [torch.cat(parts) for parts in zip(*((b.images, b.labels) for b in step), strict=True)]
        for step in zip(*rest, strict=True)
    ]
    assert len(got) == len(batches) - 7
    for (images, found), (wanted_images, wanted) in zip(got, batches[7:], strict=True):
        assert torch.equal(found, wanted)
        assert torch.equal(images, wanted_images)


def test_another_cache_size_is_refused_at_a_resume(small_shards: Path, server: str, tmp_path: Path) -> None:
    state = open_loader(URL, "train", 8, SMALL, cache=tmp_path, cache_gb=gb(small_shards, 4)).state_dict()
    other = open_loader(URL, "train", 8, SMALL, cache=tmp_path, cache_gb=gb(small_shards, 6))
    with pytest.raises(
        DataError, match="shards that the order mixes at a time, which --cache-gb decides, was 2, now 3"
    ):
        other.load_state_dict(state)
    fits = open_loader(URL, "train", 8, SMALL, cache=tmp_path, cache_gb=1)
    with pytest.raises(DataError, match="was 2, now None"):
        fits.load_state_dict(state)


def test_the_default_size_is_chosen_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a run would change with what is free on the disk at its resume."""
    first = load_manifest(URL, cache=tmp_path)
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: disk._replace(free=2 * disk.free))
    assert load_manifest(URL, cache=tmp_path).cache.most == first.cache.most


def test_the_cache_keeps_its_bound(
    small_shards: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks read three epochs and evaluate. Each time one has made room, the cache is looked at."""
    sizes, reserve = [], ShardCache._reserve

    def watched(self: ShardCache, *arguments) -> bool:
        made = reserve(self, *arguments)
        sizes.append(sum(map(_size, self._counted())))
        return made

    monkeypatch.setattr(ShardCache, "_reserve", watched)
    how = {"cache": tmp_path, "cache_gb": gb(small_shards, 6), "world_size": 3}
    loaders = [open_loader(URL, "train", 3, SMALL, rank=rank, threads=1, **how) for rank in range(3)]
    for _ in range(3):
        assert sum(1 for _ in zip(*loaders, strict=True)) == 11
        val = [open_loader(URL, "val", 5, SMALL, rank=rank, threads=1, **how) for rank in range(3)]
        assert sorted(label for loader in val for label in labels(loader)) == [*range(101)]
    assert len(sizes) > 60  # nothing was measured otherwise
    in_flight = 4 + 3  # of the batches that are being made: those of train, and one of val for each rank
    assert max(sizes) <= (6 + in_flight) * largest(small_shards)


def test_each_evaluation_fetches_ahead(small_shards: Path, server: str, tmp_path: Path) -> None:
    val = open_loader(URL, "val", 5, SMALL, cache=tmp_path, cache_gb=gb(small_shards, 3))
    for epoch in range(3):
        assert sorted(labels(val)) == [*range(101)]
        assert val._source._ahead._planned == epoch


def test_loaders_share_a_cache(small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    """Several readers at a time fetch each shard once, and all read the same."""
    found: list[list[int]] = []
    loaders = [open_loader(URL, "train", 5, SMALL, threads=2, cache=tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=lambda loader=loader: found.append(labels(loader))) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(each == found[0] for each in found)
    assert sorted(fetched(proxy)) == [path.name for path in sorted(small_shards.glob("train-*.tar"))]


def test_what_a_killed_process_left_is_not_taken_for_whole(small_shards: Path, server: str, tmp_path: Path) -> None:
    folder = load_manifest(URL, cache=tmp_path, cache_gb=1).folder
    names = [path.name for path in sorted(small_shards.glob("train-*.tar"))]
    (folder / f"{names[0]}.part").write_bytes(b"half a shard")
    (folder / names[1]).write_bytes(b"the file system lost the rest")
    (folder / f"{names[2].removesuffix('tar')}idx.part").write_bytes(b"half")
    assert sorted(labels(open_loader(URL, "train", 1, SMALL, cache=tmp_path, cache_gb=1))) == [*range(101)]
    for name in names:
        assert (folder / name).read_bytes() == (small_shards / name).read_bytes()


def test_a_folder_on_a_network_is_read_through_a_cache(small_shards: Path, tmp_path: Path) -> None:
    how = {"cache": tmp_path, "cache_gb": gb(small_shards, 4)}
    through = open_loader(small_shards, "train", 8, SMALL, **how)
    assert through.identity.window == 2
    assert len(set(labels(through))) == 96
    assert list(tmp_path.glob("*/train-*.tar"))


def test_a_forked_process_keeps_no_lock_of_its_parent(small_shards: Path, tmp_path: Path) -> None:
    """Workers that were forked while a thread held the cache's lock stopped all others who wanted it."""
    manifest = load_manifest(small_shards, cache=tmp_path, cache_gb=gb(small_shards, 4))
    shard = manifest.split("train").shards[0]
    file = manifest.open_shard(shard, lambda: False)
    with alone(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
        child.start()
    manifest.close_shard(shard, file)
    for path in (tmp_path / "lock", manifest.folder / shard.path):
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.kill()
    child.join()


READER = """
import os, sys
from pathlib import Path
import pipelines.turbo.batches
from pipelines import Augment, open_loader

url, cache, size = sys.argv[1:]
for _ in sys.stdin:
    if not (pid := os.fork()):  # of a process without threads, which has imported torch
        loader = open_loader(url, "train", 4, Augment(size=56), cache=Path(cache), cache_gb=float(size), threads=2)
        while True:
            for batch in loader:
                pass
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_twenty_kills_leave_a_cache_that_is_right(small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    """Kill a reader when it has made a random number of requests. What has a shard's name in the cache is that shard,
    the cache keeps its bound, and the next reader gets the right samples."""
    random, left, pid = np.random.default_rng(0), [0], [0]

    def fault(*_: str) -> str:
        left[0] -= 1
        if not left[0]:
            os.kill(pid[0], signal.SIGKILL)
        return ""

    proxy.fault, size = fault, gb(small_shards, 4)
    line = [sys.executable, "-c", READER, URL, tmp_path, size]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*map(str, line)], env=environment, **pipes) as process:
        for _ in range(20):
            left[0] = int(random.integers(4, 60))
            print(file=process.stdin, flush=True)
            pid[0] = int(process.stdout.readline())
            assert process.stdout.readline() == "ended\n"
            kept = [path for path in tmp_path.glob("*/*.tar*") if path.suffix in (".tar", ".part")]
            assert sum(path.stat().st_size for path in kept) <= (4 + 4) * largest(small_shards)
            for path in tmp_path.glob("*/*.tar"):
                assert path.read_bytes() == (small_shards / path.name).read_bytes()
        process.stdin.close()
    how = {"cache": tmp_path, "cache_gb": size}
    right = labels(open_loader(URL, "train", 4, SMALL, **how | {"cache": tmp_path / "new"}))
    assert labels(open_loader(URL, "train", 4, SMALL, **how)) == right


def test_the_benchmark_measures_folder_and_bucket(small_shards: Path) -> None:
    from benchmarks.remote import RemoteOptions, run_remote

    options = RemoteOptions(data=small_shards, batch_size=8, latency_ms=0, rate_mb=0, rounds=1)
    (result,) = run_remote(options)
    rates = {row["name"]: row["median"] for row in result["rows"]}
    assert {"obstore", "turbo, the folder", "turbo, the bucket"} <= rates.keys()
    assert min(rates.values()) > 0
    assert result["window"] == 1  # a cache of two of some twenty shards
