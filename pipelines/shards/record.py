"""A sample as it is stored, and the error of a sample that cannot be used."""

from pathlib import Path
from typing import NamedTuple

from pipelines.commands import command
from pipelines.errors import DataError
from pipelines.remote.url import remote_url
from pipelines.shards.checks import index_again


class SampleError(DataError):
    """An error in one sample: ``shard`` and ``key`` name it, ``reason`` says why it cannot be used."""

    def __init__(self, folder: str | Path, shard: str, key: str, reason: str, plain: bool = True) -> None:
        again = "--repair writes the shard again" if plain else index_again(folder)
        if remote_url(folder):
            again = "mends the cache"
        check = command("tools/shard_imagenet.py", "--verify", folder)
        super().__init__(
            f"{folder}/{shard}: sample {key} {reason}. {check} lists all such "
            f'samples, {again}, and on_error="skip" goes on without them'
        )
        self.shard, self.key, self.reason = shard, key, reason


class Record(NamedTuple):
    """A sample as it is stored."""

    folder: str | Path
    shard: str
    key: str
    data: memoryview
    label: int  # -1 if the shards have no labels
    plain: bool = True  # as in the manifest

    def error(self, reason: str) -> SampleError:
        return SampleError(self.folder, self.shard, self.key, reason, self.plain)
