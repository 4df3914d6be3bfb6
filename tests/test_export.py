"""A test that an exported network predicts the same as tools/predict.py, in a program without this project."""

import json
from pathlib import Path

import pytest
import torch

from alexnet import AlexNet, AlexNetError, checkpoint
from pipelines import load_manifest
from pipelines.images.picture import read_file
from pipelines.images.resize import square
from tests.conftest import assert_refused, command, script
from tools import export
from train import mean_image

RUNTIMES = {
    "model.pt2": "names = {{'classes.json': ''}}; p = torch.export.load({path!r}, extra_files=names); "
    "print(json.dumps(names['classes.json'])); print(p.module()(torch.load({pixels!r})).tolist())",
    "model.onnx": "import onnxruntime; s = onnxruntime.InferenceSession({path!r}); "
    "print(json.dumps(s.get_modelmeta().custom_metadata_map['classes'])); "
    "print(s.run(None, {{'pixels': torch.load({pixels!r}).numpy()}})[0].tolist())",
}


@pytest.fixture(scope="module")
def paper_checkpoint(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of the paper's net, untrained, with the mean image, and with less uniform predictions."""
    torch.manual_seed(0)
    model, manifest = AlexNet("paper", 10), load_manifest(demo_shards)
    torch.nn.init.normal_(model.classifier[-1].weight, std=1.0)
    state = {
        "variant": "paper",
        "classes": [[entry.wnid, entry.name] for entry in manifest.classes],
        "augment": "paper",
        "statistics": vars(manifest.statistics),
        "mean_image": mean_image(manifest),
        "image_size": manifest.image.size,
        "model": model.state_dict(),
    }
    path = tmp_path_factory.mktemp("paper") / "best.pt"
    checkpoint.save(path, state)
    return path


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_exported_network_answers_as_predict_does(
    name: str, paper_checkpoint: Path, demo_images: Path, tmp_path: Path
) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    done = script("tools/export.py", paper_checkpoint, tmp_path / name)
    assert done.returncode == 0, done.stderr
    pictures = sorted((demo_images / "val").rglob("*.JPEG"))[::60]
    pixels = torch.stack([torch.from_numpy(square(read_file(path).pixels, 256)) for path in pictures])
    torch.save(pixels, tmp_path / "pixels.pt")
    paths = {"path": str(tmp_path / name), "pixels": str(tmp_path / "pixels.pt")}
    run = command("-c", "import json, torch; " + RUNTIMES[name].format(**paths), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    exported = json.loads(run.stdout.splitlines()[-1])
    assert len(exported) == len(pictures), "any number of images"
    classes = (tmp_path / f"{name}.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.json", "pixels.pt"}
    assert json.loads(run.stdout.splitlines()[-2]) == classes, "the file itself has the names too"
    wnids = [entry["wnid"] for entry in json.loads(classes)]
    answers = script("tools/predict.py", paper_checkpoint, "--json", "--top", 10, *pictures).stdout.splitlines()
    for line, probabilities in zip(answers, exported, strict=True):
        for said in json.loads(line)["answers"]:
            assert probabilities[wnids.index(said["wnid"])] == pytest.approx(said["probability"], abs=1e-4)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_disk_that_fills_leaves_the_earlier_export(name: str, paper_checkpoint: Path, small_disk: Path) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    for file in (name, f"{name}.json"):
        (small_disk / file).write_text("earlier")
    done = script("tools/export.py", paper_checkpoint, small_disk / name)
    assert_refused(done, f"No space left on device {small_disk / name}: free some space")
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == {
        name: b"earlier",
        f"{name}.json": b"earlier",
    }


def test_a_wrong_export_does_not_replace_the_earlier_one(
    paper_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(whole: export.FromPixels, pixels: torch.Tensor, out: Path, classes: str) -> torch.Tensor:
        out.write_text("wrong")
        return torch.zeros(len(pixels), 10)

    (tmp_path / "model.pt2").write_text("earlier")
    monkeypatch.setattr(export, "export_torch", wrong)
    with pytest.raises(AlexNetError, match=r"model\.pt2 .*off by 0\."):
        export.main(export.Options(paper_checkpoint, tmp_path / "model.pt2"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.pt2": "earlier"}


def test_other_formats_and_missing_folders_are_refused(paper_checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(script("tools/export.py", paper_checkpoint, tmp_path / "model.h5"), "neither", code=2)
    assert_refused(script("tools/export.py", paper_checkpoint, tmp_path / "none/model.pt2"), "is no folder")
