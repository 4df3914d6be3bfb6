"""The code that torch.compile would generate for an H100, generated without a GPU.

Networks are traced with fake tensors on the CPU, whose graphs are then said to be on a GPU: autograd would ask a driver
for streams. ``pretend`` changes torch's internals for the rest of the process, which must do nothing else afterwards.
Tried with torch 2.11 and 2.15; another version may need other changes.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

DEVICE = torch.device("cuda:0")
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    total_memory=80 * 2**30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
    uuid="none",
)


ANSWERS_OF_THE_INTERFACE = {  # torch._dynamo's, by function
    "is_available": True,
    "get_compute_capability": 90,
    "current_device": 0,
    "is_bf16_supported": True,
    "is_triton_capable": True,
    "raise_if_triton_unavailable": None,
    "synchronize": None,
}
ANSWERS_OF_TORCH_CUDA = {
    "get_device_capability": (9, 0),
    "current_device": 0,
    "device_count": 1,
    "is_bf16_supported": True,
    "get_device_name": H100.name,
}


class GeneratedError(Exception):
    """The end of a compilation whose code has been kept."""


def pretend() -> None:
    """Let torch and Triton see an H100 in this process."""
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    import torch._dynamo.device_interface as interface
    import torch._inductor.compile_fx
    import torch._inductor.config as config
    import torch.cuda.amp.common
    import torch.utils._triton as triton_support
    import triton
    from triton.backends.compiler import GPUTarget

    config.compile_threads, config.fx_graph_cache = 1, False
    cuda: Any = interface.CudaInterface
    torch_cuda: Any = torch.cuda
    support: Any = triton_support
    for owner in (cuda, cuda.Worker, torch_cuda):
        owner.get_device_properties = staticmethod(lambda *_, **__: H100)
    for name, value in ANSWERS_OF_THE_INTERFACE.items():
        setattr(cuda, name, staticmethod(lambda *_, value=value, **__: value))
    cuda.device = _no_guard
    for name, value in ANSWERS_OF_TORCH_CUDA.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    for module in [module for name, module in sys.modules.items() if name.startswith("torch")]:
        if hasattr(module, "has_triton"):
            setattr(module, "has_triton", lambda *_, **__: True)  # noqa: B010
    support.triton_hash_with_backend = lambda: "none"
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    internals: Any = torch._C
    internals._conv_determine_backend_memory_format = lambda *_, **__: torch.channels_last
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0, is_active=lambda: True
    )
    triton.runtime.driver.set_active(target)


@contextmanager
def _no_guard(*_: object) -> Iterator[None]:
    yield


def generate(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> list[tuple[Any, str]]:
    """Return Inductor's graph and its code for the forward and the backward pass, under autocast in bfloat16.

    ``build`` makes the network, ``shape`` N,C,H,W is that of its float16 channels-last images. Call ``pretend`` before.
    """
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: list[tuple[Any, str]] = []
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def keep(graph: Any) -> None:
        code, _ = graph.codegen()
        kept.append((graph, getattr(code, "value", code)))
        raise GeneratedError

    def compile_graph(module: torch.fx.GraphModule, inputs: list, **options: Any) -> Any:
        run = torch.fx.GraphModule(module, copy.deepcopy(module.graph)).forward  # as it was: on the CPU
        count = len(kept)
        try:
            with V.set_fake_mode(fake):
                compile_fx_inner(_on_gpu(module), [_move(value) for value in inputs], **options)
        except Exception:
            if len(kept) == count:
                raise
        return make_boxed_func(run)

    def split(module: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        with V.set_fake_mode(detect_fake_mode(inputs) or fake):
            joint_graph_passes(module)
        return min_cut_rematerialization_partition(module, inputs, **options | {"compiler": "inductor"})

    lowering: Any = GraphLowering
    lowering.compile_to_module = keep
    with fake:
        model = _channels_last(build())
        n, c, h, w = shape
        images = torch.empty(n, h, w, c, dtype=torch.float16).permute(0, 3, 1, 2)
        backend = aot_autograd(
            fw_compiler=partial(compile_graph, is_backward=False),
            bw_compiler=partial(compile_graph, is_backward=True),
            decompositions=select_decomp_table(),
            partition_fn=split,
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)(images).float()
        logits.sum().backward()
    return kept


def _channels_last(model: nn.Module) -> nn.Module:
    """Return the network with its kernels in that layout; ``Module.to`` cannot change fake parameters."""
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.ndim == 4:
                kernels = value.detach().contiguous(memory_format=torch.channels_last)
                setattr(module, name, nn.Parameter(kernels))
    return model


def _move(value: Any) -> Any:
    """Return a fake tensor, or a tuple of them, as the same on the GPU."""
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(value, FakeTensor):
        with value.fake_mode:
            return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=DEVICE)
    return type(value)(map(_move, value)) if isinstance(value, tuple | list) else value


def _on_gpu(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    for node in module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = _move(node.meta["val"])
        node.meta.pop("tensor_meta", None)
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": DEVICE}
        node.args = tuple(DEVICE if isinstance(arg, torch.device) else arg for arg in node.args)
    module.recompile()
    return module
