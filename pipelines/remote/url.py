"""URLs in place of folders: which ones are read, and how they are shown."""

import re
from pathlib import Path

from pipelines.errors import DataError
from pipelines.untrusted import printable

SCHEMES = ("s3", "gs", "az", "https", "http", "file")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/+(.*))?", re.DOTALL)


def remote_url(folder: str | Path) -> str | None:
    """Return the URL without a slash at its end, or None for a folder of this machine.

    A ``Path`` made of a URL has lost one of two slashes; it is put back. Raises DataError for a URL that is not read.
    """
    found = URL.fullmatch(str(folder))
    if not found:
        return None
    scheme, rest = found[1].lower(), (found[2] or "").strip("/")
    host = rest.partition("/")[0]
    if "@" in host or "?" in rest or "#" in rest:
        raise DataError(
            f"the URL {scheme}://... holds a name, a password, a query or a fragment, which would get into logs: give "
            "credentials by environment variables, see docs/remote.md"
        )
    if scheme not in SCHEMES or not rest or printable(rest) != rest:
        kinds = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"{printable(f'{scheme}://{rest}')[:200]} is no URL of a known kind: these are read: {kinds}")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def location(folder: str | Path) -> str:
    """Return the folder or URL as text."""
    return remote_url(folder) or str(folder)


def absolute(folder: str | Path) -> str:
    """Return the URL, or the path from the root."""
    return remote_url(folder) or str(Path(folder).resolve())
