"""Checkpoints: written whole or not at all, checked when read, and read without pickle's powers.

The checksum is the CRC-32 that the zip inside a .pt file holds of each record. torch.load does not look at it, ``load``
does.
"""

import errno
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from alexnet.errors import AlexNetError
from alexnet.files import replacing
from alexnet.model import AlexNet
from alexnet.structure import MAX_STRUCTURE_BYTES, check_pickle

LOG = logging.getLogger(__name__)
FORMAT = 2
# What commands a terminal, or turns the text around it, as in pipelines/untrusted.py.
COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NETWORK_FORMATS = (1, 2)  # whose networks are described alike; a run goes on from FORMAT alone


def save(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write ``state`` under a temporary name and rename it: a stop leaves the old file or the new one, whole.

    ``keep`` - 1 older ones stay as ``path`` with -1, -2, ... behind its stem. Raises AlexNetError when it cannot be
    written.
    """
    try:
        with replacing(path) as partial:
            with partial.open("wb") as file:  # by its name torch would write it with Python's lock held
                torch.save({"format": FORMAT} | state, file)
                file.flush()
                os.fsync(file.fileno())  # before the older ones move on
            _make_room(path, keep)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else f"see to {path.parent}"
        raise AlexNetError(
            f"cannot write {path} ({str(error).splitlines()[0]}): {advice}, then go on with --resume; "
            "what was written before stands"
        ) from error


def _make_room(path: Path, keep: int) -> None:
    """Link the newest as the first of the older ones, which move on by one. ``path`` itself stays where it is."""
    if not path.exists():  # ``newest`` has put it aside: those before it are all there is
        return
    older = older_than(path)
    kept = older[: max(keep - 2, 0)]
    for surplus in older[len(kept) :]:
        surplus.unlink()
    for number, file in reversed([*enumerate(kept, start=2)]):
        file.replace(_numbered(path, number))
    if keep == 1:
        return
    try:
        os.link(path, _numbered(path, 1))
    except OSError:  # a file system without links: for a moment there is no newest one, and ``newest`` takes this
        path.replace(_numbered(path, 1))


def older_than(path: Path) -> list[Path]:
    """Those that ``save`` kept, the newest first."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))
    found = {int(match[1]): file for file in path.parent.glob("*") if (match := pattern.fullmatch(file.name))}
    return [found[number] for number in sorted(found)]


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")


def newest(path: Path) -> Path:
    """Return where ``load_newest`` finds the newest whole checkpoint. Raises AlexNetError."""
    return load_newest(path)[0]


def load_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Load ``path``, or where it is missing or damaged the newest whole one before it, and return that one's path too.

    Says so, and renames the damaged ones. Raises AlexNetError where none is whole.
    """
    first_error: AlexNetError | None = None
    damaged = []
    for candidate in (path, *older_than(path)):
        try:
            state = load(candidate)
        except AlexNetError as error:
            first_error = first_error or error
            damaged += [candidate] if candidate.exists() else []
            continue
        if first_error:
            LOG.warning(f"{first_error}; going back to {candidate.name}")
        for file in damaged:
            file.replace(file.with_name(file.name + ".damaged"))
        return candidate, state
    assert first_error
    raise first_error


def load(path: Path) -> dict[str, Any]:
    """Return what ``save`` wrote, on the CPU. Raises AlexNetError where it is missing, damaged or something else.

    The file is opened once: what was checked is what is read, even if ``path`` is replaced meanwhile.
    """
    if not path.is_file():
        raise AlexNetError(f"no checkpoint {path}: train one with train.py --out {path.parent}")
    try:
        with path.open("rb") as file:
            _check(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # zipfile and the unpickler raise anything on damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AlexNetError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state, dict) or state.get("format") not in NETWORK_FORMATS:
        raise AlexNetError(f"{path} is no checkpoint of train.py")
    return state


def _check(file: BinaryIO) -> None:
    """Check sizes and checksums of the records, and the pickle. Raises ValueError, or what zipfile raises."""
    file_bytes = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        _check_records(records, file_bytes)
        if damaged := archive.testzip():
            raise ValueError(f"its record {damaged} is damaged")
        sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
        if sizes.get("data.pkl", 0) > MAX_STRUCTURE_BYTES:
            raise ValueError(f"what is not a tensor in it takes more than {MAX_STRUCTURE_BYTES >> 20} MB")
        folder = records[0].filename.partition("/")[0]
        check_pickle(archive.read(f"{folder}/data.pkl"), sizes, file_bytes)


def _check_records(records: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Raise ValueError unless the archive is one of torch's: nothing unpacks to more than it is, and torch finds the
    same records as zipfile does, as no name stands twice and nothing stands before the first."""
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > file_bytes:
        raise ValueError("its records are compressed, or larger than the file")
    names = {record.filename.lower() for record in records}
    folders = {record.filename.partition("/")[0] for record in records}
    if len(names) < len(records) or len(folders) != 1 or min(record.header_offset for record in records):
        raise ValueError("its records are not laid out as torch.save does")


def load_model(path: Path, device: torch.device) -> tuple[AlexNet, dict[str, Any]]:
    """The network of a checkpoint, channels-last on ``device`` and ready to evaluate, with the rest of the checkpoint.

    Raises AlexNetError.
    """
    state = load(path)
    try:
        _check_names(state["classes"])
        if len(state["model"]["classifier.6.bias"]) != len(state["classes"]):
            raise ValueError("its last layer has not as many outputs as it names classes")
        model = AlexNet(state["variant"], len(state["classes"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AlexNetError(f"{path} does not fit its own description: {str(error).splitlines()[0]}") from error
    return model.to(device, memory_format=torch.channels_last).eval(), state  # type: ignore[call-overload]


def _check_names(classes: Any) -> None:
    """Of pairs of wnid and name, which are printed. Raises ValueError."""
    pairs = isinstance(classes, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in classes)
    if not pairs or not all(isinstance(name, str) and not COMMANDS.search(name) for entry in classes for name in entry):
        raise ValueError("its classes are no pairs of wnid and name")


def check_format(state: dict[str, Any], path: Path) -> None:
    """Raises AlexNetError unless a run can go on from the checkpoint."""
    if state["format"] != FORMAT:
        raise AlexNetError(
            f"{path} is of format {state['format']}, and runs go on from format {FORMAT}: evaluate it as it is, and "
            "begin another run with another --out"
        )


def check_variant(state: dict[str, Any], path: Path, variant: str) -> None:
    """Raises AlexNetError unless the checkpoint is of that variant."""
    if state["variant"] != variant:
        raise AlexNetError(
            f"{path} holds a network of variant {state['variant']}, this run is of {variant}: "
            f"say --variant {state['variant']}, or begin another run with another --out"
        )


def check_classes(state: dict[str, Any], path: Path, wnids: list[str], data: Path) -> None:
    """Raises AlexNetError unless the checkpoint was trained on the classes of the data."""
    trained = [wnid for wnid, _ in state["classes"]]
    if len(trained) != len(wnids):
        raise AlexNetError(
            f"{path} knows {len(trained)} classes and {data} has {len(wnids)}: name the data it learned from"
        )
    for i, (here, there) in enumerate(zip(trained, wnids, strict=True)):
        if here != there:
            raise AlexNetError(f"{path} knows class {i} as {here}, and {data} has {there} there")
