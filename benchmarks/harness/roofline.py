"""The limits of the machine, and how near each layer of a network comes to them, forward and backward together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet import AlexNet


@dataclass(frozen=True)
class Limits:
    """The rates measured here of a large product in the same precision and a large copy (bytes read plus written)."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Layer:
    """A layer's time and work.

    ``bytes`` is the least traffic: inputs, outputs, their gradients and the weights, each read or written once.
    """

    name: str
    milliseconds: float
    flops: int
    bytes: int

    def least_ms(self, limits: Limits) -> float:
        return 1000 * max(self.flops / limits.flops_per_second, self.bytes / limits.bytes_per_second)


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


def matmul(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Return a square matrix product and its floating-point operations."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    product, flops = matmul(device, dtype)
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    return Limits(flops / seconds(product, device), copied / seconds(lambda: target.copy_(source), device))


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

    def count(layer: nn.Module, _: object, outputs: Tensor) -> None:
        found.append(product_flops(layer, outputs, first=not found))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, PRODUCTS)]
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224, device=device))
    for hook in hooks:
        hook.remove()
    return sum(found)


def product_flops(layer: nn.Module, outputs: Tensor, first: bool) -> int:
    """Count the FLOP of forward, gradient of the weights and, except in the first layer, gradient of the inputs.

    torch's own counter ignores the groups of a grouped convolution in the gradient of its weights.
    """
    assert isinstance(layer, PRODUCTS)
    return (2 if first else 3) * 2 * outputs.numel() * layer.weight[0].numel()


def layers(model: AlexNet, batch_size: int, device: torch.device, half: torch.dtype | None) -> list[Layer]:
    """Measure each layer of the network by itself, eagerly. A ReLU or a dropout belongs to the layer before."""
    maps = torch.randn(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    found = []
    for name, group in groups(model):
        if name == "fc6":
            maps = maps.flatten(1)
        layer, maps = measure_layer(name, nn.Sequential(*group), maps, half, first=name == "conv1")
        found.append(layer)
    return found


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
    flops = product_flops(layer[0], outputs, first) if isinstance(layer[0], PRODUCTS) else 0
    ms = 1000 * seconds(both, device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters())
    into, out = (tensor.numel() * tensor.element_size() for tensor in (inputs, outputs))
    # forward: read into and weights, write out; backward: read into, weights and out's gradient, write two gradients
    traffic = (into + weights + out) + (into + weights + out + (0 if first else into) + weights)
    return Layer(name, ms, flops, traffic), outputs
