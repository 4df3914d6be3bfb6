"""Shards in a bucket, with a network's latency and rate in between: the libraries, and turbo through a small cache.

    npm install --prefix build/s3rver s3rver@3.7.1
    python -m benchmarks remote --data SHARDS --s3rver build/s3rver/node_modules/.bin/s3rver [--json FILE]

Objects come from an S3 server on loopback, through a proxy that delays each request by ``latency_ms`` and passes on
``rate_mb`` MB/s of each connection. The libraries fetch all shards, four at a time, and throw them away. turbo reads
from a cache of a tenth of the shards, and from the folder; a round is the second half of an epoch. Server and proxy
are processes of their own on the same cores, of the lowest priority.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.bucket import environment, s3_server, slow_network, upload
from benchmarks.harness.options import MeasureOptions
from benchmarks.harness.timing import Deadline, interleave, summarise
from pipelines import Augment, load_manifest, open_loader
from pipelines.loader import Loader
from pipelines.remote.store import Store
from pipelines.terminal import in_range

URL = "s3://bucket/shards"
AT_ONCE = 4  # objects
FOLDER, BUCKET = "turbo, the folder", "turbo, the bucket"


@dataclass(frozen=True)
class RemoteOptions(MeasureOptions):
    """Fetching by libraries, and turbo from a bucket beside turbo from a folder; batches stay on the CPU."""

    data: Path = Path("data/demo/shards")
    """A shard folder of a few dozen shards or more."""
    batch_size: int = 64
    threads: int = 1
    s3rver: Path | None = None
    """s3rver's program, the server to use; without it moto's, which is slower than turbo reads."""
    latency_ms: float = 50
    rate_mb: float = 200
    rounds: int = 5

    def __post_init__(self) -> None:
        in_range("rounds", self.rounds, 1)


def run_remote(options: RemoteOptions) -> Iterator[dict[str, Any]]:
    """Yield the settings and a row for each. Raises DataError if the server cannot be started."""
    about = {name: getattr(options, name) for name in ("batch_size", "threads", "latency_ms", "rate_mb", "rounds")}
    server = "s3rver" if options.s3rver else "moto"
    about = {"benchmark": "remote", "unit": "items/s", "data": str(options.data), "server": server} | about
    before = dict(os.environ)
    with (
        s3_server(s3rver=options.s3rver) as address,
        slow_network(address, options.latency_ms / 1e3, options.rate_mb * 1e6) as proxy,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,  # threads may still write
    ):
        try:
            os.environ.update(environment(address, signed=not options.s3rver))
            upload(options.data, URL)
            os.environ.update(environment(proxy, signed=not options.s3rver))
            yield from _measured(options, proxy, Path(folder), about)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _measured(options: RemoteOptions, address: str, folder: Path, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    manifest = load_manifest(options.data)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [shard.path for shard in shards]
    libraries: dict[str, Callable[[], int]] = {"obstore": partial(_all, partial(Store(URL).read, most=1 << 40), names)}
    if importlib.util.find_spec("s3fs"):
        libraries["s3fs"] = partial(_all, _s3fs(address), names)
    deadline, fetched = Deadline.after(options.minutes), dict[str, list[float]]()
    for fetched in interleave(libraries, options.rounds, deadline):  # noqa: B007  the last one counts
        pass
    megabytes = {name: [rate / 1e6 for rate in rates] for name, rates in fetched.items()}
    rows: list[dict[str, Any]] = [row | {"unit": "MB/s"} for row in summarise(megabytes, "obstore")]
    most = max(sum(shard.bytes for shard in shards) / 10, 2 * max(shard.bytes for shard in shards))
    augment = Augment(size=min(224, manifest.image.size), normalise="none")
    train = partial(open_loader, split="train", batch_size=options.batch_size, augment=augment, threads=options.threads)
    start = time.perf_counter()
    remote = train(URL, cache=folder, cache_gb=most / 1e9)
    with closing(remote), closing(train(options.data)) as local:
        next(iter(remote))
        about["first_batch_seconds"] = round(time.perf_counter() - start, 2)
        candidates = {FOLDER: _second_halves(local), BUCKET: _second_halves(remote)}
        for rates in interleave(candidates, options.rounds, deadline):
            yield about | {"window": remote.identity.window, "rows": rows + summarise(rates, FOLDER)}


def _all(read: Callable[[str], bytes], names: list[str]) -> int:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(map(len, pool.map(read, names)))


def _s3fs(address: str) -> Callable[[str], bytes]:
    import s3fs

    anonymous = "AWS_SKIP_SIGNATURE" in os.environ
    files = s3fs.S3FileSystem(anon=anonymous, endpoint_url=f"http://{address}", use_listings_cache=False)
    return lambda name: files.cat_file(f"{URL.removeprefix('s3://')}/{name}")


def _second_halves(loader: Loader) -> Callable[[], tuple[int, float]]:
    """Return a function that goes through an epoch, and returns images and seconds of its second half."""

    def epoch() -> tuple[int, float]:
        half, images, began = len(loader) // 2, 0, 0.0
        for number, batch in enumerate(loader):
            if number == half:
                began, images = time.perf_counter(), 0
            images += batch.valid
        return images - loader.plan.batch_size, time.perf_counter() - began

    return epoch
