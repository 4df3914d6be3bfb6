"""Samples of tars that another program wrote, webdataset for example: any members, any names, any tar format.

Their index is DALI's too: four fields for each member, extension, offset, size and name. The image comes first, then
the other members in the tar's order. Extensions and names are percent-encoded, so that no space is in them. A member's
extension is what follows the first dot of its base name, in small letters, as webdataset has it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote

from pipelines.shards.manifest import Manifest, Shard
from pipelines.shards.record import Record, SampleError
from pipelines.untrusted import COMMANDS, MAX_FILE_BYTES, parse_json

BLOCK = 512  # of a tar file
NAME, SIZE, TYPE, PREFIX = slice(0, 100), slice(124, 136), slice(156, 157), slice(345, 500)  # of a tar header
PLAIN = "".join(map(chr, range(33, 127))).replace("%", "")  # characters that are not percent-encoded
MAX_LABEL_DIGITS = 9
MAX_JSON_BYTES = 1 << 24  # of a sample's JSON
JSON, TEXT = ("json", "jsn"), ("txt", "text")  # the last part of extensions, as webdataset's decoder has them


class ReadSpan(Protocol):
    """A reader of the bytes from ``start`` to ``end`` of a shard. It raises ``error(reason)``, or another DataError."""

    def __call__(self, start: int, end: int, error: Callable[[str], SampleError]) -> bytes: ...


class ForeignMember(NamedTuple):
    """A member of a sample: its extension, and its bytes, ``size`` from ``offset`` on."""

    extension: str
    offset: int
    size: int
    name: str


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the extension of a member, or None for a name without one of them, which is in no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else None


def index_line(members: list[ForeignMember]) -> str:
    """Return the line of the index that lists a sample's members, the image first, without the line end."""
    return " ".join(f"{_quoted(m.extension)} {m.offset} {m.size} {_quoted(m.name)}" for m in members)


def read_index_line(line: bytes, shard_bytes: int) -> tuple[str, list[ForeignMember]]:
    """Return the key and the members of the sample in a line of the index, the image first.

    Raises ValueError if they have different keys, or cannot lie in a shard of ``shard_bytes``.
    """
    fields = line.decode("ascii").split(" ")
    if len(fields) % 4:
        raise ValueError("a damaged line in the index")
    each = zip(*[iter(fields)] * 4, strict=True)
    members = [ForeignMember(_unquoted(e), int(start), int(size), _unquoted(name)) for e, start, size, name in each]
    key = (split_name(members[0].name) or ("", ""))[0]
    for extension, offset, size, name in members:
        inside = offset >= BLOCK and 0 <= size <= MAX_FILE_BYTES and offset + size <= shard_bytes
        leads_out = name.startswith("/") or ".." in name.split("/")
        if not inside or leads_out or split_name(name) != (key, extension):
            raise ValueError("a damaged line in the index")
    return key, members


def key_of(line: bytes) -> str:
    """Return the key of the sample in a line of the index; an empty one if the line is damaged."""
    fields = line.decode("ascii", "replace").split(" ", 4)
    return (split_name(unquote(fields[3])) or ("", ""))[0] if len(fields) > 3 else ""


def check_header(block: bytes, member: ForeignMember) -> None:
    """Raise ValueError unless ``block`` is the tar header of that regular file.

    GNU tar and PAX write names that are long or not ASCII elsewhere, and parts of them into the header: of those only
    the size is compared.
    """
    name, prefix, size = (block[part].partition(b"\0")[0] for part in (NAME, PREFIX, SIZE))
    stored = prefix + b"/" + name if prefix else name
    elsewhere = len(member.name) > 100 or not member.name.isascii()
    digits = size.strip()
    same = digits.isdigit() and int(digits, 8) == member.size and (elsewhere or stored == member.name.encode())
    if not same or block[TYPE] not in (b"0", b"\0"):
        raise ValueError(f"is not where the index says, or has another size: {member.name}")


def label_extension(labels: str) -> str | None:
    """Return the extension of the member that holds the label, by ``Manifest.labels``; None if there are no labels."""
    return None if labels == "none" else labels.partition(":")[0]


def label_of(labels: str, content: bytes) -> int | str:
    """Return the label in its member: a number, or the name of a class. Raises ValueError with the reason."""
    if labels == "cls":
        digits = content.strip()
        if not digits.isdigit() or len(digits) > MAX_LABEL_DIGITS:
            raise ValueError(f"has a label that is no number: {content[:40].decode(errors='replace')!r}")
        return int(digits)
    value = _field(content, labels.partition(":")[2])
    if isinstance(value, str) and value and not COMMANDS.search(value):
        return value
    if type(value) is int and 0 <= value < 10**MAX_LABEL_DIGITS:  # not bool
        return value
    raise ValueError(f"has a label that is neither a number from 0 on nor a name: {str(value)[:40]!r}")


def _field(content: bytes, path: str) -> Any:
    value = _json(content)
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"has no field {path} in its JSON")
        value = value[name]
    return value


def extra_of(extension: str, content: bytes) -> Any:
    """Return what a member holds: JSON parsed, text as str, anything else as bytes. Raises ValueError."""
    kind = extension.rpartition(".")[2]
    try:
        return _json(content) if kind in JSON else content.decode() if kind in TEXT else content
    except ValueError as error:
        raise ValueError(f"has a .{extension} that cannot be read: {error}") from error


def _json(content: bytes) -> Any:
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"has JSON of {len(content)} bytes; {MAX_JSON_BYTES} are allowed")
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"has damaged JSON: {error}") from error


def _quoted(text: str) -> str:
    return quote(text, safe=PLAIN, errors="strict")


def _unquoted(text: str) -> str:
    return unquote(text, errors="strict")


def read_foreign(manifest: Manifest, shard: Shard, line: bytes, read: ReadSpan) -> Record:
    """Read and check the sample in this line of the index: its image and its label. Raises DataError."""
    key, members, error = _sample(manifest, shard, line)
    data, label = memoryview(_content(members[0], read, error)), -1
    if extension := label_extension(manifest.labels):
        member = next((member for member in members[1:] if member.extension == extension), None)
        if member is None:
            raise error(f"has no .{extension}, which holds its label")
        try:
            found = label_of(manifest.labels, _content(member, read, error))
        except ValueError as wrong:
            raise error(str(wrong)) from wrong
        label = manifest.class_numbers.get(str(found), -1)
        if label < 0:
            raise error(f"has a label that is none of the {len(manifest.classes)} classes: {str(found)[:40]!r}")
    return Record(manifest.location, shard.path, key, data, label, plain=False)


def read_extras(manifest: Manifest, shard: Shard, line: bytes, read: ReadSpan) -> dict[str, Any]:
    """Read the members in this line of the index that are extras, by extension. Raises DataError."""
    _, members, error = _sample(manifest, shard, line)
    wanted = [member for member in members[1:] if member.extension in manifest.extras]
    try:
        return {member.extension: extra_of(member.extension, _content(member, read, error)) for member in wanted}
    except ValueError as wrong:
        raise error(str(wrong)) from wrong


def _sample(
    manifest: Manifest, shard: Shard, line: bytes
) -> tuple[str, list[ForeignMember], Callable[[str], SampleError]]:
    error = partial(SampleError, manifest.location, shard.path, key_of(line) or "?", plain=False)
    try:
        return *read_index_line(line, shard.bytes), error
    except ValueError:
        raise error(f"has a damaged line in the index: {line[:80].decode('ascii', 'replace')}") from None


def _content(member: ForeignMember, read: ReadSpan, error: Callable[[str], SampleError]) -> bytes:
    span = read(member.offset - BLOCK, member.offset + member.size, error)
    try:
        check_header(span[:BLOCK], member)
    except ValueError as wrong:
        raise error(str(wrong)) from None
    return span[BLOCK:]
