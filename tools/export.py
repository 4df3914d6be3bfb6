"""Export a checkpoint to one file that other programs can run, from pixels to probabilities: torch.export or ONNX.

    python tools/export.py runs/demo runs/demo/model.pt2      # torch.export.load(...).module()
    python tools/export.py runs/demo runs/demo/model.onnx     # needs onnx, onnxscript and onnxruntime

The exported network takes N,size,size,3 uint8 RGB: squares of the shards' image size (256), from images whose shorter
side was resized to it and whose centre was cropped. It crops and normalises them itself and returns N,num_classes
probabilities. The file is read back and compared with the checkpoint before it gets its final name. OUT.json beside it
names the classes in order; so do the file's own metadata: "classes" in ONNX, the extra file classes.json in .pt2.
"""

import importlib.util
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from alexnet import AlexNet, AlexNetError, checkpoint
from alexnet.run_reader import find_checkpoint
from pipelines import DataError
from pipelines.files import replacing, write_atomically
from pipelines.preprocess import Preparation
from pipelines.terminal import require, run_command

TOLERANCE = 1e-4  # of a probability; the runtimes sum in different orders
ONNX_WHEELS = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Options:
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder (its best.pt, else its last.pt), or a checkpoint."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The file: .pt2 for torch.export, .onnx for ONNX."""

    def __post_init__(self) -> None:
        require(self.out.suffix in (".pt2", ".onnx"), f"{self.out} is neither .pt2 nor .onnx")


class FromPixels(nn.Module):
    """A network that crops and normalises its input itself, as ``Preparation`` does."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: AlexNet, preparation: Preparation) -> None:
        super().__init__()
        self.model, self.box = model, preparation.box
        self.register_buffer("mean", torch.from_numpy(np.array(preparation.mean)))
        self.register_buffer("std", torch.from_numpy(np.array(preparation.std)))

    def forward(self, pixels: Tensor) -> Tensor:
        top, left, size = self.box
        view = pixels[:, top : top + size, left : left + size].float()
        images = ((view - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.model(images).softmax(dim=1)


def main(options: Options) -> None:
    if not options.out.parent.is_dir():
        raise AlexNetError(f"{options.out.parent} is no folder: make it, or name another place")
    model, state = checkpoint.load_model(find_checkpoint(options.checkpoint), torch.device("cpu"))
    whole = FromPixels(model, Preparation.of(state)).eval()
    pixels = torch.randint(256, (3, state["image_size"], state["image_size"], 3), dtype=torch.uint8)
    classes = json.dumps([{"wnid": wnid, "name": name} for wnid, name in state["classes"]], indent=1) + "\n"
    names = options.out.with_name(f"{options.out.name}.json")
    export = export_onnx if options.out.suffix == ".onnx" else export_torch
    with replacing(options.out) as partial:
        found = export(whole, pixels, partial, classes)
        with torch.inference_mode():
            difference = (found - whole(pixels)).abs().max().item()
        if not difference <= TOLERANCE:
            raise AlexNetError(f"{options.out} would give probabilities that are off by {difference:.2g}: not written")
        write_atomically(names, classes.encode())
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB, off by {difference:.1g} at most; names in {names}"
    )


def export_torch(whole: FromPixels, pixels: Tensor, out: Path, classes: str) -> Tensor:
    """Write the file, with the classes, read it back, and return its probabilities for the pixels. Raises OSError."""
    content = io.BytesIO()  # a full disk would abort torch's own writing to a file
    torch.export.save(program(whole, pixels), content, extra_files={"classes.json": classes})
    out.write_bytes(content.getbuffer())
    with torch.inference_mode(), out.open("rb") as file:
        return torch.export.load(file).module()(pixels)


def export_onnx(whole: FromPixels, pixels: Tensor, out: Path, classes: str) -> Tensor:
    """Do the same as ``export_torch`` for ONNX. Raises OSError, and AlexNetError if wheels are missing."""
    missing = [name for name in ONNX_WHEELS if importlib.util.find_spec(name) is None]
    if missing:
        raise AlexNetError(f"ONNX needs {' and '.join(missing)}: pip install 'alexnet-pipelines[export]'")
    import onnxruntime

    exported = program(whole, pixels)
    inputs, outputs = ["pixels"], ["probabilities"]
    written: Any = torch.onnx.export(exported, input_names=inputs, output_names=outputs, verbose=False)
    written.model.metadata_props["classes"] = classes
    written.save(out, external_data=False)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(outputs, {inputs[0]: pixels.numpy()})[0])


def program(whole: FromPixels, pixels: Tensor) -> torch.export.ExportedProgram:
    """Return the program that torch traces, for any number of images."""
    return torch.export.export(whole, (pixels,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))


if __name__ == "__main__":
    run_command(main, Options, __doc__, errors=(AlexNetError, DataError))
