"""One training step and one evaluation pass: channels-last, autocast, compiled where that pays."""

import shutil
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.errors import AlexNetError
from alexnet.metrics import classification_metrics
from alexnet.model import AlexNet
from alexnet.recipes import Recipe


def find_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU where there is one, else the CPU. Raises AlexNetError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AlexNetError(f"no device {name!r} here ({str(error).splitlines()[0]}): use auto, cpu or cuda") from error
    return device


def forward(model: nn.Module, images: Tensor, precision: str, device: torch.device) -> Tensor:
    """Logits, float32, computed under bf16 autocast where the recipe, or on "auto" the device, wants it."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return model(images if bf16 else images.float()).float()  # loaders give float16 on a GPU


class TrainStep:
    """Forward, backward and update. Gives the loss as a tensor on the device: nothing waits for the GPU."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, device: torch.device
    ) -> None:
        self._model, self._optimizer, self._recipe, self._device = model, optimizer, recipe, device

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """``images`` N,3,224,224 channels-last, ``labels`` N int64; the mean loss, a scalar."""
        logits = forward(self._model, images, self._recipe.precision, self._device)
        loss = F.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable, num_classes: int, device: torch.device, precision: str = "auto"
) -> dict[str, float]:
    """Metrics over batches of images, labels and the number of leading rows that count; ``samples`` counts them."""
    model.eval()
    metrics = classification_metrics(num_classes, device)
    samples = 0
    for images, labels, valid in batches:
        logits = forward(model, images, precision, device)
        metrics.update(logits[:valid], labels[:valid])
        samples += valid
    values = {name: value.item() for name, value in metrics.compute().items()}  # waits for the GPU
    return values | {"samples": samples}


def compile_model(model: AlexNet, wanted: str, device: torch.device) -> nn.Module:
    """``model`` under torch.compile: ``wanted`` is on, off, or auto, which compiles on a GPU.

    Says so and leaves it eager where the machine has no C compiler for the generated code.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return model
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        print("torch.compile needs a C compiler and none is installed: running eagerly")
        return model
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]
