"""The time of a training step, kernel by kernel, as torch's profiler measures it.

python -m benchmarks kernels --variant paper --compile on
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch.profiler import ProfilerActivity, profile

from alexnet import AlexNetError
from alexnet.engine import find_device
from benchmarks.harness.options import MeasureOptions
from benchmarks.step import GPU, Candidate, Compiling, Precision, Variant, prepare
from pipelines.terminal import in_range

WARM_STEPS = 5


@dataclass(frozen=True)
class KernelsOptions(MeasureOptions):
    """The kernels of a training step, the longest first."""

    variant: Variant = "paper"
    precision: Precision = "bf16" if GPU else "fp32"
    compile: Compiling = "on" if GPU else "off"
    conv1: Literal["direct", "blocks"] = "direct"
    batch_size: int = 1024 if GPU else 32
    steps: int = 5
    kernels: int = 30
    """Number of kernels to list."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "kernels"):
            in_range(name, getattr(self, name), 1)


def run_kernels(options: KernelsOptions) -> Iterator[dict]:
    """Yield a row per kernel, in ms a step; on a CPU, a row per torch operation."""
    device = find_device(options.device)
    candidate = Candidate(options.variant, options.precision, options.compile, conv1=options.conv1)
    take, _ = prepare(candidate, options.steps, options.batch_size, device)
    take(WARM_STEPS if device.type == "cuda" else 1)
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiled:
        take(options.steps)
    spent = [(event.key, event.count, own_us(event, gpu)) for event in profiled.key_averages()]
    total = sum(us for _, _, us in spent)
    if not total:
        raise AlexNetError("torch's profiler saw no kernel: it needs CUPTI, which comes with torch's CUDA packages")
    rows = [
        {"name": name, "ms": round(us / 1000 / options.steps, 4), "share": round(us / total, 4), "calls": calls}
        for name, calls, us in sorted(spent, key=lambda entry: -entry[2])[: options.kernels]
    ]
    for row in rows:
        print(f"{row['ms']:>10.3f} ms{row['share']:>8.1%}{row['calls']:>8}  {row['name'][:90]}")
    settings = {"candidate": candidate.name, "batch_size": options.batch_size, "steps": options.steps}
    whole = {"total_ms": round(total / 1000 / options.steps, 3)}
    yield {"benchmark": "kernels", "unit": "ms a step", "device": str(device), **settings, **whole, "rows": rows}


def own_us(event: Any, gpu: bool) -> float:
    return event.self_device_time_total if gpu else event.self_cpu_time_total
