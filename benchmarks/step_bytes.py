"""The bytes that the Triton kernels of a compiled training step move, counted without a GPU.

python -m benchmarks bytes --json benchmarks/results/bytes-torch2.15.json
python -m benchmarks bytes --fused off          # with the layers between convolutions as torch operations

Each tensor that a kernel is given counts once, one that it changes twice. cuDNN's and cuBLAS's kernels are not counted.
The code is generated for a pretended H100 (benchmarks/harness/pretended_gpu.py), which takes a minute.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import alexnet.layers
from alexnet import AlexNet
from alexnet.model import Fused, Groups
from benchmarks.harness.pretended_gpu import generate, pretend
from pipelines.terminal import in_range

BANDWIDTH = 3.0e12  # bytes/s, assumed for an H100
KINDS = (  # the first pattern that a kernel's name contains
    ("fused layers", r"^normalise_and_pool|^pool_"),
    ("dropout", r"dropout"),
    ("normalisation and pooling", r"sqrt|max_pool|constant_pad"),
    ("ReLU, with the bias", r"relu|threshold"),
    ("biases", r"convolution"),
    ("copies and casts", r"copy|clone"),
    ("sums", r"sum"),
)


@dataclass(frozen=True)
class BytesOptions:
    """The bytes moved by the compiler's and our kernels in a training step, counted without a GPU."""

    variant: Literal["paper", "ungrouped", "source2012", "one_weird_trick", "bn"] = "paper"
    batch_size: int = 1024
    conv1: Literal["direct", "blocks"] = "direct"
    groups: Groups = "grouped"
    fused: Fused = "auto"
    code: Path | None = None
    """Write the generated code into this folder, as forward.py and backward.py."""
    json: Path | None = None
    """Write the result here too."""

    def __post_init__(self) -> None:
        in_range("batch_size", self.batch_size, 1)


def run_bytes(options: BytesOptions) -> Iterator[dict]:
    """Yield a row per kernel launch and the sum of each kind of kernel. No GPU can be used afterwards."""
    pretend()
    alexnet.layers.usable = lambda maps: True  # the network is traced on the CPU
    how: Any = {"conv1": options.conv1, "groups": options.groups, "fused": options.fused}
    passes = generate(lambda: AlexNet(options.variant, **how), (options.batch_size, 3, 224, 224))
    rows, kept = [], _kept(passes[0][0])
    for name, (graph, code) in zip(("forward", "backward"), passes, strict=True):
        rows += [{"pass": name, **row} for row in launches(graph, code)]
        if options.code:
            options.code.mkdir(parents=True, exist_ok=True)
            (options.code / f"{name}.py").write_text(code)
    kinds = {row["kind"]: 0 for row in rows}
    for row in rows:
        kinds[row["kind"]] += row["bytes"]
    total = sum(kinds.values())
    for row in (row for row in rows if row["bytes"] >= 1e7):
        print(f"{row['bytes'] / 1e9:>8.3f} GB  {row['pass']:<9} {row['kernel'][:90]}")
    print()
    for kind, moved in sorted(kinds.items(), key=lambda entry: -entry[1]):
        print(f"{moved / 1e9:>8.3f} GB  {kind}")
    print(f"{total / 1e9:>8.3f} GB  in all, {1000 * total / BANDWIDTH:.2f} ms at 3 TB/s")
    print(f"{kept / 1e9:>8.3f} GB  kept for the backward pass")
    settings = {name: value for name, value in asdict(options).items() if name not in ("json", "code")}
    result = {"total": total, "kept": kept, "kinds": kinds, "rows": rows}
    yield {"benchmark": "bytes", "unit": "bytes a step", **settings, **result}


def _kept(graph: Any) -> int:
    """Return the bytes that the forward pass hands to the backward pass, besides parameters and images."""
    _, *names = graph.get_output_names()
    return sum(_bytes(graph, name) for name in {*names} - {*graph.graph_inputs} if name in graph.name_to_buffer)


def launches(graph: Any, code: str) -> list[dict[str, Any]]:
    """Return a row per launch of a Triton kernel in Inductor's code: its name, kind and bytes."""
    pointers = {
        name: [_passes(source, argument) for argument, kind in _signature(source) if kind.startswith("*")]
        for name, source in re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", code, re.DOTALL)
    }
    rows = []
    for kernel, given in re.findall(r"^\s*(\w+)\.run\((.*)\)", code, re.MULTILINE):
        if kernel in pointers:
            tensors = re.findall(r"reinterpret_tensor\(.*?\), \d+\)|[^,\s][^,]*", given)
            moved = sum(
                _bytes(graph, tensor) * passes
                for passes, tensor in zip(pointers[kernel], tensors, strict=False)  # sizes follow
            )
            kind = next((name for name, pattern in KINDS if re.search(pattern, kernel)), "others")
            rows.append({"kernel": kernel, "kind": kind, "bytes": moved})
    return rows


def _signature(source: str) -> list[tuple[str, str]]:
    found = re.search(r"'signature': \{(.*?)\}", source)
    assert found, "a kernel without a signature"
    return re.findall(r"'(\w+)': '([^']+)'", found[1])


def _passes(source: str, argument: str) -> int:
    """Return 2 for a tensor that is changed in place, 1 for one that is only read or only written."""
    return 1 + (argument.startswith("in_out") and f"tl.load({argument}" in source)


def _bytes(graph: Any, tensor: str) -> int:
    """Return the bytes of a tensor in the code: a name, or a name with another shape."""
    shaped = re.match(r"reinterpret_tensor\((\w+), \(([\d, ]*)\)", tensor)
    name = shaped[1] if shaped else tensor
    values = math.prod(map(int, re.findall(r"\d+", shaped[2]))) if shaped else int(graph.get_numel(name))
    return values * graph.get_dtype(name).itemsize
