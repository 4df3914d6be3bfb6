"""One training step and one evaluation pass: channels-last, with autocast and torch.compile."""

import logging
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.ema import EMA
from alexnet.errors import AlexNetError
from alexnet.half_weights import HalfWeights
from alexnet.metrics import Predictions, collect, score_batch
from alexnet.recipes import Recipe

CompileMode = Literal["auto", "on", "off", "graphs"]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """Return the device of that name; auto is a GPU if there is one, else the CPU. Raises AlexNetError.

    A GPU named with its number becomes the current one, before anything else: else a context, some 500 MB, would be
    made on GPU 0 too.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AlexNetError(f"no device {name!r} here ({str(error).splitlines()[0]}): use auto, cpu or cuda") from error
    return device


def gpu_failure(error: RuntimeError) -> str | None:
    """Return what to tell the user if the GPU failed, or if the batch does not fit into memory; None otherwise."""
    said = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said:
        smaller = "lower --batch-size, or compute each batch in parts: --accumulate 2"
        return f"too little memory ({said.partition('. GPU')[0]}): {smaller}"
    if isinstance(error, torch.AcceleratorError) or said.startswith(("CUDA error", "cuDNN error", "NCCL error")):
        return f"the GPU failed ({said}): give the same command again with --resume"
    return None


def forward(model: nn.Module, images: Tensor, precision: str, device: torch.device) -> Tensor:
    """Return float32 logits, computed under autocast in ``precision``; auto is bf16 on a GPU, fp32 on a CPU."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    half = HALVES.get(precision)
    with torch.autocast(device.type, half, enabled=half is not None):
        return model(images if half else images.float()).float()  # loaders give float16 on a GPU


class TrainStep:
    """A training step: forward, backward and update. It returns the loss on the device and never waits for the GPU.

    A batch is processed in ``parts`` equal parts, one after the other, whose gradients are accumulated: for batches
    that do not fit into memory. Batch normalisation sees one part at a time. Ranks exchange gradients once per batch.
    It counts the images that it classified right, before their update. With ``halves``, ``model`` is their network.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
        *,
        ema: EMA | None = None,
        parts: int = 1,
        halves: HalfWeights | None = None,
    ) -> None:
        self.model, self._optimizer, self._recipe, self._device = model, optimizer, recipe, device
        self._parts, self._without_exchange = parts, getattr(model, "no_sync", nullcontext)
        self.ema, self.halves = ema, halves
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._right = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Step once. Return the mean loss, a scalar. ``images`` N,3,224,224 channels-last, ``labels`` N int64."""
        *first, last = zip(images.chunk(self._parts), labels.chunk(self._parts), strict=True)
        with self._without_exchange():
            loss = sum(self._learn(*part) for part in first)
        loss = self._learn(*last) + loss
        self.scaler.step(self._optimizer)
        if self.halves:
            self.halves.update(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad()
        if self.ema:
            self.ema.update()
        return loss

    def _learn(self, images: Tensor, labels: Tensor) -> Tensor:
        """Accumulate a part's gradients. Return its share of the batch's loss."""
        if self._device.type == "cuda":  # on a CPU this would import torch's compiler, for a second or two
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the previous pass's CUDA graph may be overwritten
        logits = forward(self.model, images, self._recipe.precision, self._device)
        loss = F.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing) / self._parts
        self._right += (logits.detach().argmax(1) == labels).sum()
        self.scaler.scale(loss).backward()
        return loss.detach()

    def take_right(self) -> int:
        """Return how many images were classified right since the last call. Waits for the GPU."""
        right = int(self._right)
        self._right.zero_()
        return right


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable, device: torch.device, precision: str = "auto") -> Predictions:
    """Return predictions for batches of images, labels and the number of leading labels that count.

    If a batch has more images than labels, each image has several views in consecutive rows (ten crops, say), over
    which its probabilities are averaged. Raises AlexNetError if logits are not finite.
    """
    model.eval()
    scored = []
    for images, labels, valid, *_ in batches:
        logits = forward(model, images, precision, device)
        if len(images) > len(labels):
            probabilities = logits.double().softmax(dim=1)  # float32 would round unlikely classes to 0
            logits = probabilities.unflatten(0, (len(labels), -1)).mean(dim=1).log()  # over N,views,num_classes
        scored.append(score_batch(logits[:valid], labels[:valid]))
    return collect(scored)  # waits for the GPU


def compile_model(model: nn.Module, wanted: CompileMode, device: torch.device) -> nn.Module:
    """Return ``model`` under torch.compile, with static shapes, if ``wanted``: on, off, or auto, which means on a GPU.

    graphs also records CUDA graphs, which spare short steps the host's kernel launches. The gradients are then in the
    graph's memory, which the next replay overwrites: they must be used, and dropped, before it. If the machine has no C
    compiler for the generated code, warn and return the model as it is, to run eagerly.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return model
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        logging.getLogger(__name__).warning("torch.compile needs a C compiler and none is installed: running eagerly")
        return model
    mode = "reduce-overhead" if wanted == "graphs" else None
    return torch.compile(model, dynamic=False, mode=mode)  # type: ignore[return-value]
