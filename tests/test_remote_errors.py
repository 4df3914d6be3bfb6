"""What goes wrong between a bucket and its reader: retried, then one line; nothing wrong is ever served."""

import http.server
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness.bucket import KEYS, Proxy, upload
from pipelines import DataError, open_loader
from pipelines.remote import store
from pipelines.remote.store import Store
from pipelines.shards.manifest import load_manifest
from tests.bucket import SMALL, URL, assert_one_line, at_first, fetched, gb, labels
from tests.conftest import command, mounted, wait_until


@pytest.mark.parametrize("fault", ["cut", "503", "silent", "wrong"])
def test_a_fault_that_passes_is_not_noticed(
    small_shards: Path, proxy: Proxy, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that each shard is asked for twice; if a busy machine answers within 0.4 s, where silence ends so soon."""
    if fault == "silent":
        monkeypatch.setattr(store, "STALL_SECONDS", 0.4)
    proxy.fault = at_first(fault)
    train = open_loader(URL, "train", 8, SMALL, cache=tmp_path)
    assert labels(train) == labels(open_loader(small_shards, "train", 8, SMALL))
    twice = 2 * len(train.manifest.split("train").shards)
    assert len(fetched(proxy)) == twice or (fault == "silent" and len(fetched(proxy)) > twice)
    for path in tmp_path.glob("*/*.tar"):
        assert path.read_bytes() == (small_shards / path.name).read_bytes()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cut", ("the connection fails after 5.5 s of trying", "check the network")),
        ("503", ("the server answers 503 after 5.5 s of trying", "check the network")),
        ("silent", ("gives no answer after 5.5 s of trying", "check the network")),
        ("wrong", ("is not the shard of the manifest, by its sha256", "restore it")),
        ("403", ("refuses these credentials (403)", "AWS_ACCESS_KEY_ID")),
        ("404", ("is not there", "restore it")),
    ],
)
def test_a_fault_in_mid_epoch_ends_it_with_one_line(
    small_shards: Path, proxy: Proxy, tmp_path: Path, fault: str, words: tuple[str, ...]
) -> None:
    """All batches before are those of an epoch without the fault, and so is the rest once the fault is gone."""
    how = {"cache": tmp_path, "cache_gb": gb(small_shards, 3), "threads": 2}
    right = labels(open_loader(URL, "train", 4, SMALL, **how))
    for path in tmp_path.glob("*/*.tar"):
        path.unlink(missing_ok=True)
    bad = "train-000004.tar"
    proxy.fault = lambda _, path: fault if path.endswith(bad) else ""
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError) as error:
        patch.setattr(store, "RETRY_SECONDS", 5.5)  # long enough for the other shards on a busy machine
        patch.setattr(store, "STALL_SECONDS", 2.0)
        train = open_loader(URL, "train", 4, SMALL, **how)
        for batch in train:
            seen += batch.labels.tolist()
    assert_one_line(str(error.value), f"{URL}/{bad}", *words)
    assert seen == right[: len(seen)]
    assert not list(tmp_path.glob(f"*/{bad}"))
    state = train.state_dict()
    proxy.fault = lambda *_: ""
    rest = open_loader(URL, "train", 4, SMALL, **how)
    rest.load_state_dict(state)
    assert seen + labels(rest) == right


def test_an_object_that_is_replaced_is_never_served(small_shards: Path, server: str, tmp_path: Path) -> None:
    url = "s3://bucket/replaced"
    upload(small_shards, url)
    train = open_loader(url, "train", 4, SMALL, cache=tmp_path, cache_gb=gb(small_shards, 3))
    batches = iter(train)
    next(batches)
    shards = [path.name for path in sorted(small_shards.glob("train-*.tar"))]
    for name in shards:
        Store(url).write(name, (small_shards / name).read_bytes()[::-1])
    with pytest.raises(DataError, match="by its sha256: it was replaced or damaged") as error:
        list(batches)
    assert_one_line(str(error.value), url)


def test_damage_in_the_cache_is_named_and_mended(small_shards: Path, server: str, tmp_path: Path) -> None:
    from pipelines.sharding.verify import verify

    train = open_loader(URL, "train", 4, SMALL, cache=tmp_path)
    labels(train)
    shard = train.manifest.folder / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000] + b"?" + whole[1001:])
    with pytest.raises(DataError, match="by its checksum") as error:
        labels(open_loader(URL, "train", 4, SMALL, cache=tmp_path))
    assert_one_line(str(error.value), URL, "--verify", "mends the cache")
    verify(Path(URL), 1, tmp_path)
    assert shard.read_bytes() == whole


def test_credentials(server: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.fault = lambda *_: "403"
    with pytest.raises(DataError) as error:
        load_manifest(URL, cache=tmp_path)
    assert_one_line(str(error.value), URL, "refuses these credentials (403)", "AWS_ACCESS_KEY_ID")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setattr(store, "RETRY_SECONDS", 1.5)  # until it stops looking for those of a machine of AWS
    monkeypatch.setattr(store, "STALL_SECONDS", 0.4)
    with pytest.raises(DataError) as error:
        load_manifest(URL, cache=tmp_path)
    assert_one_line(str(error.value), URL, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/imagenet", ("ftp://host/imagenet is no URL of a known kind", "s3://")),
        ("s3://", ("no URL of a known kind",)),
        ("https://someone:secret@host/imagenet", ("a name, a password", "environment variables")),
        ("https://host/imagenet?sig=secret", ("a query", "environment variables")),
        ("s3://bucket/nothing", ("no shards at s3://bucket/nothing", "manifest.json", "shard_imagenet.py")),
        ("s3://nobucket/imagenet", ("no such bucket",)),
    ],
)
def test_a_bad_url_is_one_line(server: str, tmp_path: Path, url: str, words: tuple[str, ...]) -> None:
    for folder in (url, Path(url)):
        with pytest.raises(DataError) as error:
            open_loader(folder, cache=tmp_path)
        assert_one_line(str(error.value), *words)
        assert "secret" not in str(error.value)


def test_a_bad_cache_is_one_line_before_a_shard_is_fetched(small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for cache, shards, words in (
        (tmp_path / "file", 4, ("cache folder", "cannot be written: File exists", "--cache")),
        (tmp_path / "small", 1.9, ("less than two of the shards", "--cache-gb of 0.00")),
    ):
        with pytest.raises(DataError) as error:
            open_loader(URL, cache=cache, cache_gb=gb(small_shards, shards))
        assert_one_line(str(error.value), *words)
    for size in (0, -1, float("nan"), "many"):
        with pytest.raises(ValueError, match="cache_gb is"):
            open_loader(URL, cache=tmp_path, cache_gb=size)
    assert not fetched(proxy)


def test_a_cache_on_a_full_disk(small_shards: Path, server: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1) as disk:
        (disk / "other").write_bytes(bytes(900_000))
        with pytest.raises(DataError, match=r"has room for .* GB, not for --cache-gb") as error:
            open_loader(URL, cache=disk, cache_gb=gb(small_shards, 8))
        (disk / "other").unlink()
        train = open_loader(URL, "train", 4, SMALL, cache=disk, cache_gb=gb(small_shards, 8))
        (disk / "other").write_bytes(bytes(900_000))
        with pytest.raises(DataError, match=r"the disk of the cache .* is full") as error:
            labels(train)
    assert_one_line(str(error.value), "--cache-gb")


@pytest.mark.parametrize("local", ["8", None])  # None: srun and mpirun do not say
def test_machines_must_agree_on_the_size(
    small_shards: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: str | None
) -> None:
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setattr("pipelines.remote.manifest._bytes", lambda _: round(1e9 * gb(small_shards, 4)))
    with pytest.raises(DataError, match="give each the same --cache-gb"):
        open_loader(URL, "train", 4, SMALL, cache=tmp_path, rank=0, world_size=16)
    open_loader(URL, "train", 4, SMALL, cache=tmp_path, cache_gb=gb(small_shards, 4), rank=0, world_size=16)
    open_loader(URL, "val", 4, SMALL, cache=tmp_path, rank=0, world_size=16)


def test_a_forked_process_is_told_to_be_spawned(small_shards: Path, server: str, tmp_path: Path) -> None:
    """The threads of the library do not exist there: its first request would wait for ever."""
    loader = open_loader(URL, "train", 8, SMALL, cache=tmp_path)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            next(iter(loader))
        except DataError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert re.fullmatch(r".*cannot be read in a forked process.*by \"spawn\".*", said.read())
    os.waitpid(child, 0)


def test_a_program_does_not_wait_for_what_is_being_fetched() -> None:
    code = "import threading; from pipelines.remote.cache import _beside; _beside(threading.Event().wait); print('end')"
    done = command("-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


def test_a_closed_loader_fetches_nothing_more(small_shards: Path, proxy: Proxy, tmp_path: Path) -> None:
    """After Ctrl-C a thread would go on with each shard of its samples, and Python waits for it at the exit."""
    loader, others = open_loader(URL, "train", 32, SMALL, cache=tmp_path, threads=1), set(threading.enumerate())

    def close_at_a_shard(_: str, path: str) -> str:
        if path.endswith(".tar"):
            loader.close()
        return ""

    proxy.fault = close_at_a_shard
    with pytest.raises((DataError, CancelledError)):
        next(iter(loader))
    turbo = [thread for thread in threading.enumerate() if thread.name.startswith("turbo") and thread not in others]
    wait_until(lambda: not any(thread.is_alive() for thread in turbo), "turbo's threads end")
    assert len(fetched(proxy)) < len(list(small_shards.glob("train-*.tar")))


def test_a_shard_that_is_evicted_while_the_room_is_counted_is_no_error(
    small_shards: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train-000000.tar").symlink_to("evicted")
    next(iter(open_loader(URL, "train", 8, SMALL, cache=tmp_path)))


@pytest.fixture
def web(small_shards: Path) -> Iterator[str]:
    """Yield the address of a plain web server, which knows no ranges."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=small_shards.parent)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield "127.0.0.1:{}".format(*server.server_address[1:])
        server.shutdown()


def test_a_web_server_gives_shards(
    small_shards: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ranges too, where a connection is cut: what came before is read again."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Proxy(web, fault=at_first("cut")) as proxy:
        train = open_loader(f"http://{proxy.address}/shards", "train", 8, SMALL, cache=tmp_path)
        assert labels(train) == labels(open_loader(small_shards, "train", 8, SMALL))


@pytest.mark.parametrize(
    ("url", "kind"), [("gs://bucket/x", "GCSStore"), ("az://bucket/x", "AzureStore"), ("https://host/x", "HTTPStore")]
)
def test_other_clouds_are_opened_as_such(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the kind of store alone: no server is asked."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert type(Store(url)._store).__name__ == kind
