"""The pickle inside a checkpoint, checked before torch reads it.

torch's reader runs no code, but a pickle of a few bytes can make it allocate any amount of memory. ``check_pickle``
reads the pickle with stand-ins that allocate none, allows only what checkpoints need, and adds up its real size.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_STRUCTURE_BYTES = 1 << 24  # of the pickle: names, numbers and shapes; of 1000 classes 100 KB, of 100,000 some 6 MB
MAX_OPCODES = 1 << 21  # 100,000 classes take 700,000
MAX_VALUES = 1 << 24  # values and characters of text; a shared value counts each time
MAX_DEPTH = 32
MAX_DIMENSIONS = 8
MAX_LONG = 1 << 64
# Tensors may claim this much in a smaller file, as expanded tensors do: four sets of weights of 1000 classes.
MAX_CLAIMED_BYTES = 1 << 30
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", *TUPLES, *PUTS, *GETS),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
}
ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}


class _Kind(NamedTuple):
    """A storage type, such as FloatStorage."""

    item_bytes: int


class _Storage(NamedTuple):
    bytes: int
    item_bytes: int


class _Tensor(NamedTuple):
    bytes: int


class _Encoded(NamedTuple):
    length: int


class _Ordered(dict):
    """A stand-in for OrderedDict: empty when it is made, and with no other attribute than a state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise ValueError("an OrderedDict in it has attributes that no state dict has")
        self.attributes = state


def check_pickle(pickled: bytes, record_bytes: Mapping[str, int], file_bytes: int) -> None:
    """Raise ValueError unless torch can read ``pickled`` in memory that the file's size bounds.

    ``record_bytes`` are the sizes of the file's other records by name, with their folder: "data/0".
    """
    _check_opcodes(pickled)
    values, claimed = _Totals().of(_Reader(pickled, record_bytes).load(), MAX_DEPTH)[:2]
    if values > MAX_VALUES:
        raise ValueError(f"it unfolds to {values} values and characters; the limit is {MAX_VALUES}")
    if claimed > max(file_bytes, MAX_CLAIMED_BYTES):
        raise ValueError(f"its tensors claim {claimed} bytes, and the file has {file_bytes}")


def _check_opcodes(pickled: bytes) -> None:
    """Raise ValueError for opcodes that take much memory or time by themselves.

    These are opcodes that torch.save does not write, long integers, distant memo indices, and nested tuples that share
    their parts, whose hash takes exponential time.
    """
    if len(pickled) > MAX_STRUCTURE_BYTES:
        raise ValueError(f"it holds more than {MAX_STRUCTURE_BYTES >> 20} MB besides its tensors")
    maker = ""  # the opcode that made the value on top of the stack
    makers: dict[int, str] = {}  # the opcodes that made the memo's values, by index
    operations: Any = pickletools.genops(pickled)
    for number, (opcode, argument, _) in enumerate(operations):
        name = opcode.name
        if name not in OPCODES:
            raise ValueError(f"it has the opcode {name}, which no checkpoint needs")
        if number >= MAX_OPCODES or (name in PUTS and argument > number):
            raise ValueError(f"it has more than {MAX_OPCODES} opcodes, or a memo with gaps")
        if name == "LONG1" and not -MAX_LONG < argument < MAX_LONG:
            raise ValueError("it holds an integer of more than 64 bits")
        if name in GETS and makers.get(argument, "") in TUPLES:
            raise ValueError("it holds a tuple twice")
        if name in PUTS:
            makers[argument] = maker
        else:
            maker = name


class _Reader(pickle.Unpickler):
    """An unpickler that makes stand-ins, for a pickle whose opcodes were checked before.

    It raises ValueError for globals that no checkpoint needs, and for storages and tensors larger than their record.
    """

    def __init__(self, pickled: bytes, record_bytes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._record_bytes, self._encoded = record_bytes, 0

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in ITEM_BYTES:
            return _Kind(ITEM_BYTES[name])
        known = {
            "collections.OrderedDict": _Ordered,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "_codecs.encode": self._encode,
        }
        if f"{module}.{name}" not in known:
            raise ValueError(f"it names {module}.{name}, which no checkpoint needs")
        return known[f"{module}.{name}"]

    def persistent_load(self, identifier: Any) -> _Storage:
        word, kind, key, _, length = identifier
        if word != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str) or type(length) is not int:
            raise ValueError("it refers to something other than a storage")
        if self._record_bytes.get(f"data/{key}") != length * kind.item_bytes:
            raise ValueError(f"its record data/{key} is not of the {length} numbers that it claims")
        return _Storage(length * kind.item_bytes, kind.item_bytes)

    def _encode(self, text: str, encoding: str) -> _Encoded:
        """Return a stand-in for bytes, which a pickle of this protocol holds as text."""
        self._encoded += len(text)
        if encoding != "latin1" or self._encoded > MAX_STRUCTURE_BYTES:
            raise ValueError("it holds bytes as no checkpoint does")
        return _Encoded(len(text))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    """Return a stand-in for a tensor. A stride of 0 repeats numbers, so ``bytes`` may exceed the storage's."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor in it has no storage, size or stride")
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) > MAX_DIMENSIONS:
        raise ValueError("a tensor in it has an impossible size or stride")
    if type(requires_grad) is not bool or not isinstance(hooks, _Ordered) or hooks:
        raise ValueError("a tensor in it has hooks")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (last + 1) * storage.item_bytes > storage.bytes:
        raise ValueError("a tensor in it reaches beyond its storage")
    return _Tensor(math.prod(size) * storage.item_bytes)


class _Totals:
    """A sum over nested values that visits a value only once, even if it is shared a thousand times."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, int]] = {}

    def of(self, value: Any, depth: int) -> tuple[int, int, int]:
        """Return the number of values and characters in ``value``, the bytes its tensors claim, and its depth.

        Raises ValueError if it is nested more than ``depth`` deep, or endlessly, or holds an object of another kind.
        """
        if value is None or isinstance(value, bool | int | float):
            return 1, 0, 0
        if isinstance(value, str):
            return 1 + len(value), 0, 0
        if isinstance(value, _Encoded):
            return 1 + value.length, 0, 0
        if isinstance(value, _Tensor):
            return 1, value.bytes, 0
        if not isinstance(value, dict | list | tuple) or isinstance(value, _Kind | _Storage):
            raise ValueError("it holds something that is neither a tensor nor a number, text, list or dict")
        if id(value) not in self._seen:
            self._seen[id(value)] = self._of_parts(value, depth)
        if self._seen[id(value)][2] > depth:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        return self._seen[id(value)]

    def _of_parts(self, value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> tuple[int, int, int]:
        if not depth:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict) and not all(isinstance(key, str | int) for key in value):
            raise ValueError("a dict in it has keys that are neither text nor whole numbers")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        totals = [self.of(part, depth - 1) for part in parts]
        if isinstance(value, _Ordered):
            totals.append(self.of(value.attributes, depth - 1))
        values, claimed, heights = zip(*totals, strict=True) if totals else ((), (), (0,))
        return 1 + sum(values), sum(claimed), 1 + max(heights)
