"""Checkpoints: written whole or not at all, checked when read, and read without running pickled code.

The checksum is the CRC-32 of each record in the zip inside a .pt file. torch.load does not check it; ``load`` does.
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
# Control characters, which command a terminal, bidirectional marks and surrogates, as in pipelines/untrusted.py.
COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NETWORK_FORMATS = (1, 2)  # both describe the network alike; a run resumes from FORMAT only


def save(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write ``state`` under a temporary name and rename it, so that a stop leaves the old file or the new one, whole.

    ``keep`` - 1 older checkpoints are kept as ``path`` with -1, -2, ... after its stem. Raises AlexNetError if the file
    cannot be written.
    """
    try:
        with replacing(path) as partial:
            with partial.open("wb") as file:  # given a path, torch would hold Python's lock while it writes
                torch.save({"format": FORMAT} | state, file)
                file.flush()
                os.fsync(file.fileno())  # before older checkpoints are renamed
            _make_room(path, keep)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else f"check {path.parent}"
        raise AlexNetError(
            f"cannot write {path} ({str(error).splitlines()[0]}): {advice}, then give the same command with --resume; "
            "earlier checkpoints are intact"
        ) from error


def _make_room(path: Path, keep: int) -> None:
    """Delete surplus older checkpoints, number the others one higher, and link ``path`` as -1. ``path`` stays."""
    if not path.exists():  # ``load_newest`` has renamed it as damaged: the older ones keep their numbers
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
    except OSError:  # no hard links here: ``path`` is missing for a moment, and ``load_newest`` falls back to this one
        path.replace(_numbered(path, 1))


def older_than(path: Path) -> list[Path]:
    """Return the older checkpoints that ``save`` kept, the newest first."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))
    found = {int(match[1]): file for file in path.parent.glob("*") if (match := pattern.fullmatch(file.name))}
    return [found[number] for number in sorted(found)]


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")


def newest(path: Path) -> Path:
    """Return the path of the newest whole checkpoint, as ``load_newest`` does. Raises AlexNetError."""
    return load_newest(path)[0]


def load_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Load ``path`` or, if it is missing or damaged, the newest whole checkpoint before it. Return path and content.

    Warn about damaged checkpoints and rename them. Raises AlexNetError if none is whole.
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
    """Load what ``save`` wrote, onto the CPU. Raises AlexNetError if the file is missing, damaged or no checkpoint."""
    state = read(path)
    if state.get("format") not in NETWORK_FORMATS:
        raise AlexNetError(f"{path} is no checkpoint of train.py")
    return state


def read(path: Path) -> dict[Any, Any]:
    """Load a dict that torch.save wrote, onto the CPU. Raises AlexNetError if the file is missing, damaged or other.

    The file is opened once: the content that was checked is the content read, even if ``path`` is replaced meanwhile.
    """
    if not path.is_file():
        raise AlexNetError(f"no checkpoint {path}: name a run folder, or a checkpoint that train.py wrote")
    try:
        with path.open("rb") as file:
            _check(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # zipfile and the unpickler raise anything on damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AlexNetError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state, dict):
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
            raise ValueError(f"it holds more than {MAX_STRUCTURE_BYTES >> 20} MB besides its tensors")
        folder = records[0].filename.partition("/")[0]
        check_pickle(archive.read(f"{folder}/data.pkl"), sizes, file_bytes)


def _check_records(records: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Raise ValueError unless the archive is laid out as torch.save does.

    Then nothing unpacks to more than the file's size, and torch finds the same records as zipfile: no name occurs
    twice, and nothing stands before the first record.
    """
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > file_bytes:
        raise ValueError("its records are compressed, or larger than the file")
    names = {record.filename.lower() for record in records}
    folders = {record.filename.partition("/")[0] for record in records}
    if len(names) < len(records) or len(folders) != 1 or min(record.header_offset for record in records):
        raise ValueError("its records are not laid out as torch.save does")


def load_model(path: Path, device: torch.device) -> tuple[AlexNet, dict[str, Any]]:
    """Return the network of a checkpoint, channels-last on ``device`` in evaluation mode, and the whole checkpoint.

    Raises AlexNetError.
    """
    model, state = build_model(load(path), path)
    return model.to(device, memory_format=torch.channels_last).eval(), state  # type: ignore[call-overload]


def build_model(state: dict[str, Any], path: Path) -> tuple[AlexNet, dict[str, Any]]:
    """Return the network that a checkpoint describes, and the checkpoint. Raises AlexNetError."""
    if state["format"] not in NETWORK_FORMATS:
        raise AlexNetError(f"{path} is no checkpoint of train.py")
    try:
        _check_names(state["classes"])
        if len(state["model"]["classifier.6.bias"]) != len(state["classes"]):
            raise ValueError("its last layer does not have one output per class")
        model = AlexNet(state["variant"], len(state["classes"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AlexNetError(f"{path} does not fit its own description: {str(error).splitlines()[0]}") from error
    return model, state


def _check_names(classes: Any) -> None:
    """Raise ValueError unless ``classes`` are pairs of wnid and name that are safe to print."""
    pairs = isinstance(classes, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in classes)
    if not pairs or not all(isinstance(name, str) and not COMMANDS.search(name) for entry in classes for name in entry):
        raise ValueError("its classes are not pairs of wnid and name")


def check_format(state: dict[str, Any], path: Path) -> None:
    """Raise AlexNetError unless a run can resume from the checkpoint."""
    if state["format"] != FORMAT:
        raise AlexNetError(
            f"{path} has format {state['format']}, and a run resumes only from format {FORMAT}: you can still evaluate "
            "it; start a new run with another --out"
        )


def check_variant(state: dict[str, Any], path: Path, variant: str) -> None:
    """Raise AlexNetError unless the checkpoint's network is of that variant."""
    if state["variant"] != variant:
        raise AlexNetError(
            f"{path} holds a network of variant {state['variant']}, this run is of {variant}: "
            f"use --variant {state['variant']}, or start a new run with another --out"
        )


def class_columns(state: dict[str, Any], path: Path, wnids: list[str], data: Path | str) -> list[int]:
    """Return the network's class number for each class of the data, found by wnid.

    Data whose classes are called by all the numbers from 0 on (ImageNetV2) has the network's classes in their order.
    Raises AlexNetError, which names some, if the network does not know a class.
    """
    if sorted(wnids) == sorted(map(str, range(len(state["classes"])))):
        return [int(wnid) for wnid in wnids]
    known = {wnid: number for number, (wnid, _) in enumerate(state["classes"])}
    unknown = [wnid for wnid in wnids if wnid not in known]
    if unknown:
        named = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
        raise AlexNetError(
            f"{path} was trained on {len(known)} classes, and {len(unknown)} of the {len(wnids)} in {data} are not "
            f"among them ({named}): use data of the classes it was trained on, or a part of them"
        )
    return [known[wnid] for wnid in wnids]


def check_classes(state: dict[str, Any], path: Path, wnids: list[str], data: Path | str) -> None:
    """Raise AlexNetError unless the checkpoint was trained on the classes of the data."""
    trained = [wnid for wnid, _ in state["classes"]]
    if len(trained) != len(wnids):
        raise AlexNetError(
            f"{path} was trained on {len(trained)} classes and {data} has {len(wnids)}: use the data it was trained on"
        )
    for i, (here, there) in enumerate(zip(trained, wnids, strict=True)):
        if here != there:
            raise AlexNetError(f"class {i} is {here} in {path} and {there} in {data}: use the data it was trained on")
