"""Objects below a URL: read, written and listed with obstore, retried, and with errors of one line.

obstore (https://developmentseed.org/obstore/) takes credentials and endpoints from the environment. Its own messages
hold request URLs and headers, so they are never shown: ``_cause`` recognises what they say.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RETRY_SECONDS = 60.0  # without any progress, until a request is given up
STALL_SECONDS = 15.0  # without a byte, until a connection is given up and another one made
CHUNK = 1 << 18  # bytes
ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (GOOGLE_SKIP_SIGNATURE=true for a public bucket)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (AZURE_SKIP_SIGNATURE=true for a public container)",
}
NO_CREDENTIALS = re.compile(r"169\.254\.|metadata\.google|Missing(Account|Credential|AccessKey|SecretAccessKey)")
_process = 0  # the one whose threads the library uses, once it has been used
STATUS = re.compile(r"status code: (\d{3})")


class Found(NamedTuple):
    """The size of an object in bytes, and the store's mark of its content, which changes with it."""

    size: int
    mark: str | None


class MissingObject(DataError):
    """An object or a bucket that is not there."""


@dataclass(frozen=True)
class Store:
    """The objects below ``url``, by name. All methods raise DataError that names the object."""

    url: str

    @property
    def _store(self) -> ObjectStore:
        """The library's store. Raises DataError in a forked process: the threads of the library do not exist there."""
        global _process
        _process = _process or os.getpid()
        if _process != os.getpid():
            raise DataError(
                f"{self.url} cannot be read in a forked process, as its parent has read from a URL: start processes"
                ' by "spawn" (multiprocessing_context="spawn" for a DataLoader)'
            )
        return self._opened

    @cached_property
    def _opened(self) -> ObjectStore:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise DataError(f"{self.url} needs obstore: pip install 'alexnet-pipelines[remote]' ({error})") from error
        slow = timedelta(seconds=STALL_SECONDS)
        retry: Any = {
            "max_retries": 20,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=min(5.0, RETRY_SECONDS / 4)),
                "base": 2,
            },
        }
        client: Any = {"connect_timeout": slow, "read_timeout": slow, "timeout": timedelta(hours=6), "allow_http": True}
        try:
            return from_url(self.url, client_options=client, retry_config=retry)
        except Exception as error:
            raise self._failed("", error) from None

    def find(self, name: str) -> Found | None:
        """Return an object's size and mark, or None if it is not there."""
        import obstore

        try:
            found = obstore.head(self._store, name)
        except FileNotFoundError:
            return None
        except DataError:
            raise
        except Exception as error:
            raise self._failed(name, error) from None
        return Found(found["size"], found["e_tag"])

    def list(self) -> dict[str, Found]:
        """Return all objects below the URL, by name."""
        import obstore

        try:
            pages = [*obstore.list(self._store)]
        except Exception as error:
            raise self._failed("", error) from None
        return {entry["path"]: Found(entry["size"], entry["e_tag"]) for page in pages for entry in page}

    def read(self, name: str, most: int) -> bytes:
        """Return a whole object. Raises MissingObject, and DataError if it has more than ``most`` bytes."""
        parts, size = [], 0
        for part in self.chunks(name):
            parts.append(part)
            size += len(part)
            if size > most:
                raise DataError(f"{self.url}/{name} has more than the {most} bytes allowed: it is damaged")
        return b"".join(parts)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object in pieces. A connection that ends too early is followed by one that begins at its end.

        Raises MissingObject, and DataError after RETRY_SECONDS without a byte. A caller must check what it got: an
        object that was replaced between two connections is made of both.
        """
        done, since = 0, time.monotonic()
        while True:
            try:
                for part in self._from(name, done):
                    done, since = done + len(part), time.monotonic()
                    yield part
                return
            except DataError:
                raise
            except Exception as error:
                missing = isinstance(error, FileNotFoundError)
                if missing or STATUS.search(str(error)) or time.monotonic() - since > RETRY_SECONDS:
                    raise self._failed(name, error) from None
                time.sleep(min(0.2, RETRY_SECONDS / 10))

    def _from(self, name: str, start: int) -> Iterator[bytes]:
        """Yield the rest of an object; all of it and less its beginning if the server knows no ranges."""
        import obstore

        skip = 0
        try:
            found = obstore.get(self._store, name, options={"range": {"offset": start}} if start else None)
        except Exception as error:
            if not start or "NotSupported" not in str(error):
                raise
            found, skip = obstore.get(self._store, name), start
        for chunk in found.stream(min_chunk_size=CHUNK):
            part = memoryview(chunk)[skip:]
            skip = max(0, skip - len(chunk))
            if len(part):
                yield bytes(part)

    def write(self, name: str, content: bytes | Path) -> Found:
        """Write an object, whole or not at all; return what is there then."""
        import obstore

        size = content.stat().st_size if isinstance(content, Path) else len(content)
        try:
            made = obstore.put(self._store, name, content)
        except Exception as error:
            raise self._failed(name, error, "written") from None
        return Found(size, made["e_tag"])

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in order; one that is not there is no error."""
        import obstore

        for name in names:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                pass
            except Exception as error:
                raise self._failed(name, error, "deleted") from None

    def _failed(self, name: str, error: Exception, what: str = "read") -> DataError:
        """Return the error to raise. It tells nothing of the library's text but what ``_cause`` recognises."""
        where = f"{self.url}/{name}" if name else self.url
        if isinstance(error, FileNotFoundError):
            if "NoSuchBucket" in str(error):
                return MissingObject(f"{self.url}: there is no such bucket: check its name and AWS_ENDPOINT_URL")
            return MissingObject(f"{where} is not there: restore it, or shard the dataset into the bucket again")
        return DataError(f"{where} cannot be {what}: {_cause(error, self.url.partition(':')[0])}")


def _cause(error: Exception, scheme: str) -> str:
    """Return why a request failed and what to do, from the library's exception."""
    text, kind = str(error), type(error).__name__
    status = STATUS.search(text)
    code = status[1] if status else ""
    names = ENVIRONMENT.get(scheme, "the server's")
    if NO_CREDENTIALS.search(text):  # the library then asks the addresses that only a cloud's machines have
        return f"no credentials were found: set {names}"
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or code in ("401", "403"):
        return f"the server refuses these credentials ({code or 'no access'}): check {names} and their rights"
    if code[:1] == "3":
        return f"the server answers {code}: it serves another region or address: set AWS_REGION or AWS_ENDPOINT_URL"
    tried = f"after {RETRY_SECONDS:g} s of trying: check the network and the endpoint, then run the same command again"
    if code:
        return f"the server answers {code} {tried}"
    if "timed out" in text or "TimedOut" in text or "imeout" in text:
        return f"the server gives no answer {tried}"
    if scheme == "file":
        return "it cannot be opened: check that it is mounted, and its rights"
    return f"the connection fails {tried}"
