"""The limits of the machine, and how near each layer of a network comes to them, forward and backward together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet import AlexNet


@dataclass(frozen=True)
class Limits:
    """The highest rates measured here, in the same precision: of operations, and of bytes read plus written.

    They start as those of large products and a large copy. What a layer reached is possible as well.
    """

    flops_per_second: float
    bytes_per_second: float

    def raised(self, *others: "Limits") -> "Limits":
        """Return the higher rates of all."""
        every = [self, *others]
        return Limits(max(one.flops_per_second for one in every), max(one.bytes_per_second for one in every))


@dataclass(frozen=True)
class Layer:
    """A layer's time and work.

    ``flops`` leaves out products with the zeros of a padding, which libraries may skip. ``bytes`` is the least traffic:
    inputs, outputs, their gradients and the weights, each read or written once.
    """

    name: str
    milliseconds: float
    flops: int
    bytes: int

    def least_ms(self, limits: Limits) -> float:
        return 1000 * max(self.flops / limits.flops_per_second, self.bytes / limits.bytes_per_second)

    def reached(self) -> Limits:
        """Return its own rates."""
        return Limits(1000 * self.flops / self.milliseconds, 1000 * self.bytes / self.milliseconds)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the least time of ``rounds`` after an uncounted one: disturbances only make a limit look slower."""
    found = []
    for _ in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def matmul(device: torch.device, dtype: torch.dtype, size: int | None = None) -> tuple[Callable[[], object], int]:
    """Return a square matrix product and its floating-point operations."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure products of several sizes, as none is the fastest everywhere, and a copy."""
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024)
    products = [matmul(device, dtype, size) for size in sizes]
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    rate = max(flops / seconds(product, device) for product, flops in products)
    return Limits(rate, copied / seconds(lambda: target.copy_(source), device))


def measure_host_copy(device: torch.device) -> float | None:
    """Return bytes a second from pinned memory to the GPU; None if there is no GPU."""
    if device.type != "cuda":
        return None
    source = torch.randint(256, (2**28,), dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    return source.numel() / seconds(lambda: target.copy_(source, non_blocking=True), device)


def train_flops(model: nn.Module, device: torch.device) -> int:
    """Count the floating-point operations of products and convolutions for one image, forward and backward."""
    found: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        found.append(product_flops(layer, inputs[0], outputs, first=not found))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, PRODUCTS)]
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224, device=device))
    for hook in hooks:
        hook.remove()
    return sum(found)


def product_flops(layer: nn.Module, inputs: Tensor, outputs: Tensor, first: bool) -> int:
    """Count the FLOP of forward, gradient of the weights and, except in the first layer, gradient of the inputs.

    torch's own counter ignores the groups of a grouped convolution in the gradient of its weights, and counts products
    with the zeros of a padding: a tenth of AlexNet's, so that layers seemed to beat the machine.
    """
    assert isinstance(layer, PRODUCTS)
    products = outputs.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.Conv2d):
        inside = taps_inside(layer, inputs, 0) * taps_inside(layer, inputs, 1)
        products = outputs.shape[:2].numel() * layer.weight.shape[1] * inside
    return (2 if first else 3) * 2 * products


def taps_inside(layer: nn.Conv2d, inputs: Tensor, axis: int) -> int:
    """Return, along rows or columns, how many pairs of an output and a weight lie on the input, not on its padding."""
    size, kernel, stride = inputs.shape[2 + axis], layer.kernel_size[axis], layer.stride[axis]
    padding = int(layer.padding[axis])
    starts = range(-padding, size + padding - kernel + 1, stride)
    return sum(min(start + kernel, size) - max(start, 0) for start in starts)


def layers(
    model: AlexNet, batch_size: int, device: torch.device, half: torch.dtype | None, limits: Limits
) -> tuple[list[Layer], Limits]:
    """Measure each layer of the network by itself, eagerly. A ReLU or a dropout belongs to the layer before.

    The limits are measured again, because the speed of a machine changes: they must not be those of a slow moment.
    Return the layers and the highest limits, ``limits`` and what the layers reached among them.
    """
    maps = torch.randn(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    found = []
    for name, group in groups(model):
        if name == "fc6":
            maps = maps.flatten(1)
        layer, maps = measure_layer(name, nn.Sequential(*group), maps, half, first=name == "conv1")
        found.append(layer)
    return found, limits.raised(measure_limits(device, half or torch.float32), *(layer.reached() for layer in found))


def print_layers(title: str, measured: list[Layer], limits: Limits) -> None:
    """Print the roofline: the time of each layer, and the least that its operations and bytes allow here."""
    print(f"\n{title}: {limits.flops_per_second / 1e9:.0f} GFLOP/s, {limits.bytes_per_second / 1e9:.1f} GB/s at most")
    print(f"{'':<10}{'ms':>10}{'GFLOP':>10}{'MB':>10}{'least ms':>10}{'reached':>8}  bound by")
    for layer in measured:
        least = layer.least_ms(limits)
        bound = "operations" if layer.flops / limits.flops_per_second * 1000 >= least else "bytes"
        print(
            f"{layer.name:<10}{layer.milliseconds:>10.2f}{layer.flops / 1e9:>10.1f}{layer.bytes / 1e6:>10.1f}"
            f"{least:>10.2f}{least / layer.milliseconds:>8.0%}  {bound}"
        )


def groups(model: AlexNet) -> list[tuple[str, list[nn.Module]]]:
    """Return the modules in order, by name: conv1, norm1, pool1 ... fc8."""
    found: list[tuple[str, list[nn.Module]]] = []
    block = 0
    for module in [*model.features, *model.classifier]:
        kind = next((k for part, k in KINDS.items() if part in type(module).__name__), None)
        if kind is None and found:
            found[-1][1].append(module)
            continue
        block += kind in ("conv", "fc")
        found.append((f"{kind or 'input'}{block or ''}", [module]))
    return found


PRODUCTS = (nn.Conv2d, nn.Linear)
KINDS = {"Conv2d": "conv", "Norm": "norm", "MaxPool": "pool", "Linear": "fc"}


def measure_layer(
    name: str, layer: nn.Sequential, inputs: Tensor, half: torch.dtype | None, first: bool
) -> tuple[Layer, Tensor]:
    device = inputs.device
    inputs = inputs.detach().requires_grad_(not first)
    trained = inputs.requires_grad or any(True for _ in layer.parameters())

    def both() -> Tensor:
        inputs.grad = None
        with torch.autocast(device.type, half, enabled=half is not None):
            outputs = layer(inputs.clone() if isinstance(layer[0], nn.ReLU) else inputs)
        if trained:
            outputs.backward(torch.ones_like(outputs))
        layer.zero_grad()
        return outputs.detach()

    outputs = both()
    flops = product_flops(layer[0], inputs, outputs, first) if isinstance(layer[0], PRODUCTS) else 0
    ms = 1000 * seconds(both, device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters())
    into, out = (tensor.numel() * tensor.element_size() for tensor in (inputs, outputs))
    # forward: read into and weights, write out; backward: read into, weights and out's gradient, write two gradients
    traffic = (into + weights + out) + (into + weights + out + (0 if first else into) + weights)
    return Layer(name, ms, flops, traffic), outputs
