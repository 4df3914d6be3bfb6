"""The model card of a run: network, recipe, data, accuracy and licences, as far as its folder tells."""

import shlex
from collections.abc import Iterator
from typing import Any

import torch

from alexnet.errors import AlexNetError
from alexnet.model import AlexNet
from alexnet.run_reader import Run

RECIPE = {
    "epochs": "epochs",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "schedule": "schedule",
    "augment": "augmentation",
    "dropout": "dropout",
    "weight_decay": "weight decay",
    "average_decay": "EMA decay",
    "precision": "precision",
}


def model_card(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the rows: what each is called, and its value."""
    settings = run.config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    yield "network", f"AlexNet, variant {settings.get('variant', 'not known')}"
    yield "parameters", parameters(settings.get("variant"), len(run.classes))
    yield "input", "an RGB image, its centre crop of 224 x 224"
    yield "output", f"probabilities of {len(run.classes)} classes" if run.classes else "probabilities of the classes"
    told = ", ".join(
        f"{title} {settings[name]}" for name, title in RECIPE.items() if settings.get(name) not in (None, "", 0)
    )
    yield "recipe", f"{run.config.get('recipe', 'not known')}: {told}" if told else "not known"
    yield "trained on", str(run.config.get("data", "not known"))
    yield "evaluated on", _evaluated(run.metrics)
    yield "top-1, 95 % interval", accuracy(run.metrics, "top1") or "not evaluated yet"
    if len(run.classes) > 5 and "top5" in run.metrics:
        yield "top-5, 95 % interval", accuracy(run.metrics, "top5") or ""
    yield "made", _made(run.environment)
    yield "licence of the code", "MIT (the file LICENSE)"
    yield "licence of the data", "not known here: ask where the images come from; it may cover the weights too"


def parameters(variant: Any, classes: int) -> str:
    """Return the number of parameters of the network; no memory is taken for them."""
    if not classes:
        return "known after tools/evaluate.py"
    try:
        with torch.device("meta"):
            model = AlexNet(variant, classes)
    except (AlexNetError, TypeError):
        return "not known"
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def accuracy(metrics: dict[str, Any], field: str) -> str | None:
    """Return a fraction in per cent, with its interval if there is one; None if there is no such field."""
    if field not in metrics:
        return None
    value = f"{100 * metrics[field]:.2f} %"
    if f"{field}_interval" not in metrics:
        return value
    low, high = metrics[f"{field}_interval"]
    return f"{value} ({100 * low:.2f} to {100 * high:.2f})"


def _evaluated(metrics: dict[str, Any]) -> str:
    if "samples" not in metrics:
        return "not evaluated yet"
    crops = {1: "one crop each"}.get(metrics.get("crops", 1), f"{metrics.get('crops')} crops each")
    data, split = (metrics.get(name, "not known") for name in ("data", "split"))
    return f"{metrics['samples']:,} images of {data}, split {split}, {crops}"


def _made(environment: dict[str, Any]) -> str:
    packages = environment.get("packages")
    torch_version = packages.get("torch") if isinstance(packages, dict) else None
    command = environment.get("command")
    parts = [
        environment.get("time"),
        environment.get("gpu") or (f"{environment['cores']} CPU cores" if "cores" in environment else None),
        f"torch {torch_version}" if torch_version else None,
        f"python {shlex.join(map(str, command))}" if isinstance(command, list) else None,
    ]
    return ", ".join(str(part) for part in parts if part) or "not known"
