"""Tests that a checkpoint's pickle may ask only for what ours need, and for memory and time bounded by its file."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet import RECIPES, AlexNet, AlexNetError, checkpoint
from alexnet.optim import make_optimizer
from alexnet.train_state import random_state

FLOATS = b"ctorch\nFloatStorage\n"


def write(path: Path, pickled: bytes, numbers: int = 4) -> None:
    """Write a file as torch.save lays it out, with one record of floats."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(4 * numbers))
        archive.writestr("x/version", "3\n")


def checkpoint_of(value: bytes) -> bytes:
    """Return the pickle of {"format": 2, "x": value}."""
    return b"\x80\x02}(X\x06\x00\x00\x00formatK\x02X\x01\x00\x00\x00x" + value + b"u."


def called(name: str, arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + arguments + b"tR"


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True) if value < 1 << 31 else pickle.dumps(value, 2)[2:-1]


def tensor(size: list[int], stride: list[int], claimed: int = 4) -> bytes:
    """Return the pickle of a tensor over the record, which claims to have so many floats."""
    storage = (
        b"(X\x07\x00\x00\x00storage" + FLOATS + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(claimed) + b"tQ"
    )
    parts = [b"(" + b"".join(map(number, part)) + b"t" for part in (size, stride)]
    hooks = called("collections.OrderedDict", b"")
    return called("torch._utils._rebuild_tensor_v2", storage + number(0) + b"".join(parts) + b"\x89" + hooks)


LISTS = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(28))  # each has the previous one twice
TUPLES = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(20))
BOMBS: dict[str, tuple[bytes, str]] = {
    "bytearray": (called("builtins.bytearray", number(1 << 30)), "names builtins.bytearray"),
    "set": (called("builtins.set", b")"), "names builtins.set"),
    "size": (called("torch.Size", b"(K\x01t"), "names torch.Size"),
    "parameter": (called("torch.nn.parameter.Parameter", b"N"), r"names torch\.nn\.parameter\.Parameter"),
    "meta": (called("torch._utils._rebuild_meta_tensor_no_storage", b""), "names torch._utils._rebuild_meta"),
    "copied dict": (called("collections.OrderedDict", b"](K\x01K\x02\x86e"), "positional argument"),
    "lists of lists": (b"](" + LISTS + b"e", "it unfolds to"),
    "tuples of tuples": (b"(" + TUPLES + b"t", "it holds a tuple twice"),
    "hashed tuples": (b"}(" + TUPLES[:-2] + b"K\x01u", "it holds a tuple twice"),
    "long integer": (b"\x8a\xff" + b"\x7f" * 255, "more than 64 bits"),
    "distant memo": (b"Nr" + (1 << 31).to_bytes(4, "little"), "memo with gaps"),
    "deep": (b"](" * 100 + b"K\x01" + b"e" * 100, "nested more than 32 deep"),
    "itself": (b"]q\x00h\x00a", "nested more than 32 deep"),
    "attributes": (called("collections.OrderedDict", b"") + b"}X\x01\x00\x00\x00aK\x01sb", "attributes"),
    "expanded": (tensor([1 << 20, 1 << 20], [0, 0]), "its tensors claim 4398046511104 bytes"),
    "beyond": (tensor([5], [1]), "reaches beyond its storage"),
    "claimed": (tensor([5], [1], claimed=1 << 20), "not of the 1048576 numbers"),
    "dimensions": (tensor([1] * 100, [0] * 100), "impossible size"),
    "opcodes": (b"](" + b"N" * (1 << 21) + b"e", "it has more than 2097152 opcodes"),
    "storage alone": (b"]" + FLOATS + b"a", "neither a tensor nor"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_more_than_the_file_has_is_refused(tmp_path: Path, name: str) -> None:
    value, words = BOMBS[name]
    write(tmp_path / "last.pt", checkpoint_of(value))
    with pytest.raises(AlexNetError, match=f"cannot be read as a checkpoint: .*({words})"):
        checkpoint.load(tmp_path / "last.pt")


def test_the_same_by_hand_without_a_bomb_is_read(tmp_path: Path) -> None:
    write(tmp_path / "last.pt", checkpoint_of(tensor([2, 2], [2, 1])))
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["x"], torch.zeros(2, 2))


def test_all_that_checkpoints_hold_is_read(tmp_path: Path) -> None:
    """Check weights of each precision, AdamW's moments, random states, a scaler, bytes, big integers, shared lists."""
    model = AlexNet("bn", 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    optimizer.step()
    shared = ["a", "b"]
    state: dict[str, Any] = {
        "model": model.state_dict(),  # an OrderedDict with _metadata
        "precisions": [torch.ones(3).to(kind) for kind in (torch.half, torch.bfloat16, torch.double, torch.bool)],
        "optimizer": optimizer.state_dict(),
        "sgd": make_optimizer(model, RECIPES["paper"]).state_dict(),
        "random": random_state(torch.device("cpu")),
        "scaler": torch.amp.GradScaler("cpu", enabled=True).state_dict(),
        "values": [None, True, -1, 2**40, -(2**63), 0.5, "é\ud800", b"\0\xff", (1, 2, 3, 4), {1: "x"}, shared, shared],
        "empty": [OrderedDict(), [], {}, (), torch.zeros(0, 3)],
        "view": torch.arange(12).reshape(3, 4)[:, 1:3],
    }
    checkpoint.save(tmp_path / "last.pt", state)
    found = checkpoint.load(tmp_path / "last.pt")
    assert found["values"] == state["values"] and found.keys() == state.keys() | {"format"}
    assert torch.equal(found["view"], state["view"])
    for name, weights in state["model"].items():
        assert torch.equal(found["model"][name], weights), name
    assert found["optimizer"]["state"].keys() == state["optimizer"]["state"].keys()


def test_expanded_tensors_of_a_networks_shapes_are_read(tmp_path: Path) -> None:
    """Check four sets of weights of ImageNet's network in some kilobytes, as tests keep files of earlier versions."""
    with torch.device("meta"):
        shapes = {name: weights.shape for name, weights in AlexNet("paper", 1000).state_dict().items()}
    sets = {f"set {i}": {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()} for i in range(4)}
    checkpoint.save(tmp_path / "last.pt", sets)
    assert (tmp_path / "last.pt").stat().st_size < 100_000
    found = checkpoint.load(tmp_path / "last.pt")
    assert {name: weights.shape for name, weights in found["set 3"].items()} == shapes


def edited(path: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> None:
    """Change the names and contents of a checkpoint's records."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["x/data.pkl", "x/DATA.PKL", "y/data.pkl"])
def test_no_second_pickle_hides_behind_the_one_that_is_checked(tmp_path: Path, name: str) -> None:
    write(tmp_path / "last.pt", checkpoint_of(b"K\x01"))
    edited(tmp_path / "last.pt", lambda records: records.append((name, checkpoint_of(BOMBS["bytearray"][0]))))
    with pytest.raises(AlexNetError, match="not laid out as torch"):
        checkpoint.load(tmp_path / "last.pt")


def test_nothing_stands_before_the_first_record(tmp_path: Path) -> None:
    """Check that bytes before the first record are refused: zipfile would skip them, and torch would not."""
    write(tmp_path / "last.pt", checkpoint_of(b"K\x01"))
    (tmp_path / "last.pt").write_bytes(bytes(100) + (tmp_path / "last.pt").read_bytes())
    with pytest.raises(AlexNetError, match="not laid out as torch"):
        checkpoint.load(tmp_path / "last.pt")


def test_what_was_checked_is_what_is_read_if_the_file_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other, check = tmp_path / "last.pt", tmp_path / "other.pt", zipfile.ZipFile.testzip
    checkpoint.save(path, {"number": 1})
    checkpoint.save(other, {"number": 2})

    def replaced_then(archive: zipfile.ZipFile) -> str | None:
        damaged = check(archive)
        other.replace(path)
        return damaged

    monkeypatch.setattr(zipfile.ZipFile, "testzip", replaced_then)
    assert checkpoint.load(path)["number"] == 1
