"""Checkpoints: written whole or not at all, read without pickle's powers."""

import os
from pathlib import Path
from typing import Any

import torch

from alexnet.errors import AlexNetError
from alexnet.model import AlexNet

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` under a temporary name and rename it: a stop leaves the old file or the new one, whole.

    Raises AlexNetError when it cannot be written.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT} | state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        partial.unlink(missing_ok=True)
        raise AlexNetError(
            f"cannot write {path} ({str(error).splitlines()[0]}): free some space, then go on with --resume; "
            "what was written before stands"
        ) from error
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote, on the CPU. Raises AlexNetError where the file is missing, damaged or something else."""
    if not path.is_file():
        raise AlexNetError(f"no checkpoint {path}: train one with train.py --out {path.parent}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises anything on damaged files
        raise AlexNetError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise AlexNetError(f"{path} is no checkpoint of train.py")
    return state


def load_model(path: Path, device: torch.device) -> tuple[AlexNet, dict[str, Any]]:
    """The network of a checkpoint, channels-last on ``device`` and ready to evaluate, with the rest of the checkpoint.

    Raises AlexNetError.
    """
    state = load(path)
    try:
        model = AlexNet(state["variant"], len(state["classes"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise AlexNetError(f"{path} does not fit its own description: {str(error).splitlines()[0]}") from error
    return model.to(device, memory_format=torch.channels_last).eval(), state  # type: ignore[call-overload]


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
