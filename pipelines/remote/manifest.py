"""The manifest of shards at a URL, read through the cache; what it needs of the cache is checked first."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.remote.cache import ShardCache, alone
from pipelines.remote.store import MissingObject, Store
from pipelines.remote.url import remote_url
from pipelines.shards.manifest import MEAN_IMAGE, Manifest, Shard, read_manifest
from pipelines.shards.npy import read_npy
from pipelines.untrusted import MAX_FILE_BYTES

GB = 10**9
FETCHING = 8  # shards at a time, where all of a split are needed
MOST_AHEAD = 8  # shards that the order leaves room for beyond those it mixes: two for each thread that fetches
MOST_HELD = 160  # shards that a loader mixes and fetches ahead: each takes two of the files a process may open
NEAR = 0.01  # of 255: the mean image's own mean is that of the manifest, but for float32


@dataclass(frozen=True)
class RemoteManifest(Manifest):
    """A manifest whose shards are read through ``cache``; ``folder`` is where they are in it."""

    cache: ShardCache | None = None  # a dataclass must go on with defaults; there is always one

    @property
    def _cache(self) -> ShardCache:
        assert self.cache
        return self.cache

    @property
    def location(self) -> str:
        return self._cache.store.url

    @property
    def local(self) -> bool:
        return False

    @property
    def fits(self) -> bool:
        return sum(shard.bytes for split in self.splits.values() for shard in split.shards) <= self._cache.most

    def fetch(self, split: str) -> None:
        with ThreadPoolExecutor(FETCHING) as pool:
            for _ in pool.map(self._put, self.split(split).shards):
                pass

    def _put(self, shard: Shard) -> None:
        """Put a shard with its index into the cache."""
        file, index = self._cache.open(shard), (self.folder / shard.path).with_suffix(".idx")
        try:
            if not index.is_file():
                write_atomically(index, self._cache.index(shard))
        finally:
            self._cache.close(shard, file)

    def window(self, split: str) -> int | None:
        if self.fits:
            return None
        held = min(MOST_HELD, self._cache.most // max(shard.bytes for shard in self.split(split).shards))
        return max(1, held - min(max(1, held // 2), MOST_AHEAD))

    def open_shard(self, shard: Shard, stopped: Callable[[], bool]) -> int:
        return self._cache.open(shard, stopped)

    def retry(self) -> None:
        self._cache.failed.clear()

    def close_shard(self, shard: Shard, file: int) -> None:
        self._cache.close(shard, file)

    def index_text(self, shard: Shard) -> bytes:
        return self._cache.index(shard)

    @contextmanager
    def holding(self, shard: Shard) -> Iterator[Path]:
        file = self._cache.open_again(shard)
        try:
            self._put(shard)
            yield self.folder / shard.path
        finally:
            self._cache.close(shard, file)


def load_remote(folder: str | Path, cache: str | Path | None, cache_gb: float | None) -> RemoteManifest:
    """Fetch and check the manifest at a URL, or in a folder that is read through a cache. Raises DataError.

    ``cache_gb`` is the most that the shards in ``cache`` may take; if it is None, a tenth of what is free at the first
    time, which is then kept, because the order of an epoch depends on it.
    """
    url = remote_url(folder) or f"file://{Path(folder).resolve()}"
    root = Path(cache) if cache else default_root()
    _check_writable(root)
    most = _bytes(root) if cache_gb is None else round(cache_gb * GB)
    store = Store(url)
    try:
        content = store.read("manifest.json", MAX_FILE_BYTES)
    except MissingObject as error:
        if "no such bucket" in str(error):
            raise
        made = command("tools/shard_imagenet.py", "SOURCE", url)
        raise DataError(f"no shards at {url}: there is no manifest.json: check the URL, or make them: {made}") from None
    name = re.sub(r"[^A-Za-z0-9._-]", "_", url.rpartition("/")[2]).lstrip(".")
    place = root / f"{name[:80]}-{hashlib.sha256(content).hexdigest()[:16]}"
    with _writing(root):
        place.mkdir(exist_ok=True)
        write_atomically(place / "manifest.json", content)
    plain = read_manifest(place, url)
    _check_room(root, most, plain)
    if plain.statistics.mean_image:
        _fetch_mean(store, plain)
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return RemoteManifest(**fields, cache=ShardCache(store, root, place, most))


def default_root() -> Path:
    """Return the folder of the cache if none is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "alexnet-pipelines")


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"the cache folder {root} cannot be written: {error.strerror}: give another --cache") from error


def _check_writable(root: Path) -> None:
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        os.close(os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o666))


def _bytes(root: Path) -> int:
    """Return the size of the cache that was chosen at its first use; choose it, if this is the first."""
    path = root / "size.json"
    with _writing(root), alone(root):
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_bytes())["bytes"])
        chosen = shutil.disk_usage(root).free // 10
        write_atomically(path, json.dumps({"bytes": chosen}).encode())
    return chosen


def _check_room(root: Path, most: int, manifest: Manifest) -> None:
    """Raise DataError if two shards do not fit into the cache, or the cache not on its disk."""
    shards = [shard.bytes for split in manifest.splits.values() for shard in split.shards]
    least = min(2 * max(shards), sum(shards))
    if most < least:
        raise DataError(
            f"a cache of {most / GB:g} GB holds less than two of the shards, of up to {max(shards) / GB:.3g} GB each: "
            f"give --cache-gb of {_up(least)} or more"
        )
    used = 0
    for path in root.glob("*/*.tar"):
        with suppress(FileNotFoundError):  # evicted meanwhile
            used += path.stat().st_blocks * 512
    room = shutil.disk_usage(root).free + used
    if room < min(most, sum(shards)):
        raise DataError(
            f"the disk of the cache {root} has room for {room / GB:.3g} GB, not for --cache-gb {most / GB:g}: free "
            "some space, choose another --cache, or give a smaller --cache-gb"
        )


def _up(size: int) -> str:
    return f"{-(-size // 10**6) / 1000:g}"  # GB, to the next MB


def _fetch_mean(store: Store, manifest: Manifest) -> None:
    """Put the mean image into the cache. Raises DataError unless it agrees with the manifest's mean."""
    side = manifest.image.size
    content = store.read(MEAN_IMAGE, MAX_FILE_BYTES)
    try:
        found = read_npy(content, (side, side, 3), np.float32).mean(axis=(0, 1), dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{store.url}/{MEAN_IMAGE} is damaged: {error}: restore it") from None
    if not np.abs(found - manifest.statistics.mean_rgb).max() < NEAR * 255:
        raise DataError(f"{store.url}/{MEAN_IMAGE} is of other images than manifest.json: restore it")
    with _writing(manifest.folder.parent):
        write_atomically(manifest.folder / MEAN_IMAGE, content)
