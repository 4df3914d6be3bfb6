"""Small shards in a bucket on loopback, for the tests of pipelines/remote/."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.bucket import KEYS, Fault, Proxy, environment, s3_server, upload
from pipelines import Augment
from tests.conftest import shard

SMALL = Augment(size=56, normalise="none")
URL = "s3://bucket/imagenet"


@pytest.fixture(scope="session")
def small_shards(numbered_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 101 small train and 101 val images, each the only one of its class, ten and more of a split."""
    return shard(numbered_images, tmp_path_factory.mktemp("small") / "shards", size=64, shard_mb=0.03)


@pytest.fixture(scope="session")
def server(small_shards: Path) -> Iterator[str]:
    """Yield the address of an S3 server whose bucket holds these shards at ``URL``."""
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(address).items():
            patch.setenv(name, value)
        upload(small_shards, URL)
        yield address


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield a proxy before the server, which is used in its place."""
    with Proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        yield proxy


def gb(folder: Path, shards: float) -> float:
    """Return the size of a cache, in GB, for so many of the folder's largest shard."""
    return shards * largest(folder) / 1e9


def largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.glob("*.tar"))


def labels(loader) -> list[int]:
    return [int(label) for batch in loader for label in batch.labels[: batch.valid]]


def fetched(proxy: Proxy) -> list[str]:
    """Return the names of the shards that were requested, one for each request."""
    return [path.rpartition("/")[2] for method, path in proxy.requests if method == "GET" and path.endswith(".tar")]


def at_first(fault: str, times: int = 1) -> Fault:
    """Return a fault of the first requests of each shard."""
    seen: Counter[str] = Counter()

    def of(_: str, path: str) -> str:
        seen[path] += 1
        return fault if path.endswith(".tar") and seen[path] <= times else ""

    return of


def assert_one_line(message: str, *words: str) -> None:
    """Check that an error is one line with these words and without credentials."""
    assert "\n" not in message, message
    for word in words:
        assert word in message, message
    for secret in KEYS.values():
        assert secret not in message or secret == KEYS["AWS_REGION"], message
