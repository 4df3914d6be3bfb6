"""Tests that run the code of the README and docs/ on small data. test_frameworks.py runs that of your-training-loop.md.

What is not run is marked: ``<!-- not run: REASON -->`` before the block.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines import load_manifest
from pipelines.sharding import indexing, verify
from tests.conftest import ROOT, script
from tests.pages import BLOCKS, commands_of
from tests.test_own_shards import InProcess, encoded, indexed, write_tar

HARNESS = """
import torch
import webdataset as wds
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from pipelines import Augment, open_loader
device = torch.device("cpu")
def make_network():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 101))
"""
# The blocks' numbers, for 96 images.
SMALLER = {
    "batch_size=256": "batch_size=8",
    "batch_size=64": "batch_size=8",
    "batched(64)": "batched(8)",
    "batched(256)": "batched(8)",
    "1281167 // (256": "96 // (8",
    "num_workers=8": "num_workers=1",
    "range(90)": "range(1)",
    "000127}": "000000}",
    "pin_memory=True": "pin_memory=False",
    "    ...\n": "    SEEN.append((images.shape, labels.tolist()))\n",
}
PYTHON_PAGES = ["README.md", "api.md", "migrating.md", "own-shards.md"]


def run_blocks(page: str, folders: dict[str, Path]) -> dict[str, Any]:
    """Run the Python blocks of a page in order. Return their names, and SEEN: shape and labels of batches."""
    scope: dict[str, Any] = {"SEEN": []}
    exec(HARNESS, scope)
    for block in (block for block in BLOCKS if block[:2] == (page, "python") and not block.why):
        code = block.code
        for name, folder in folders.items():
            code = code.replace(f'"{name}', f'"{folder}')
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, page, "exec"), scope)
    return scope


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of tars as webdataset writes them, with captions and scores, and their index."""
    monkeypatch.setattr(indexing, "WorkerPool", InProcess)
    for split in ("train", "val"):
        members = {}
        for number in range(24):
            key = f"{split}{number}"
            members |= {f"{key}.jpg": encoded(number % 8), f"{key}.cls": b"%d" % (number % 8)}
            members |= {f"{key}.txt": b"a fish", f"{key}.json": json.dumps({"score": 0.5}).encode()}
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        write_tar(tmp_path / f"elsewhere/{split}-000000.tar", members)
    return indexed(tmp_path / "elsewhere", size=256)


def test_pages_with_code_are_run() -> None:
    pages = {block.page for block in BLOCKS if block.kind == "python"}
    assert pages == {*PYTHON_PAGES, "your-training-loop.md"}


def test_every_block_of_the_training_loop_page_is_run_by_its_tests() -> None:
    text = (ROOT / "docs/your-training-loop.md").read_text()
    parts = text.split("\n## ")
    tested = (ROOT / "tests/test_frameworks.py").read_text()
    for part in parts[1:]:
        if "```python" in part:
            assert part.count("```python") == 1, "run() takes the first block after a heading"
            assert any(f'"## {part[:length]}"' in tested for length in range(5, 40)), part[:40]


def test_the_ten_lines_of_the_readme_train_and_can_be_resumed(numbered_shards: Path) -> None:
    scope = run_blocks("README.md", {"shards/imagenet": numbered_shards})
    assert scope["state"]["epoch"] == 1 and len(scope["loader"]) == 12
    code = next(block.code for block in BLOCKS if block[:2] == ("README.md", "python"))
    assert len([line for line in code.splitlines() if line]) == 10


def test_the_names_of_the_api_page_are_those_of_the_packages() -> None:
    import alexnet
    import pipelines

    scope = run_blocks("api.md", {})
    text = (ROOT / "docs/api.md").read_text()
    for package in (alexnet, pipelines):
        for name in package.__all__:
            assert name in scope or f"::: {package.__name__}.{name}" in text or name in ("VARIANTS", "BACKENDS")


def test_own_shards(elsewhere: Path) -> None:
    scope = run_blocks("own-shards.md", {"FOLDER": elsewhere})
    assert scope["batch"].extras["txt"] == ["a fish"] * 8 and scope["targets"].tolist() == [0.5] * 8


@pytest.mark.filterwarnings("ignore")
def test_migrating_from_other_loaders_gives_the_same_images_and_labels(
    numbered_images: Path, numbered_shards: Path, elsewhere: Path
) -> None:
    """Check that ImageFolder's and webdataset's own code runs, and that ours sees as many images and classes."""
    folders = {"imagenet/train": numbered_images / "train", "shards/imagenet": numbered_shards}
    folders |= {"shards/train": elsewhere / "train", "shards": elsewhere}
    scope = run_blocks("migrating.md", folders)
    shapes, labels = zip(*scope["SEEN"], strict=True)
    assert set(shapes) == {torch.Size([8, 3, 224, 224])}
    assert len(shapes) == 12 + 12 + 12 + 3 + 12 + 12  # ImageFolder, ours, webdataset, ours, instead of FFCV, of LitData
    assert scope["files"].classes == [entry.wnid for entry in load_manifest(numbered_shards).classes]
    assert {label for batch in labels[24:39] for label in batch} == set(range(8))
    assert all(len({label for batch in labels[start : start + 12] for label in batch}) == 96 for start in (0, 12, 39))


# Commands that are not run here: other tests do, or the shell.
IN_OTHER_TESTS = {
    "source": "the shell",
    "make": "test_demo.py",
    "torchrun": "test_ranks.py",
    "-m": "test_benchmarks.py",
}
# One run is trained, for a short time, and stands for all the runs of the pages.
LESS = {"train.py": ("--epochs", "1", "--batch-size", "4"), "tools/visualize.py": ("--searched", "8")}
USER_PAGES = ("README.md", "index.md", "imagenet.md", "own-pictures.md", "seeing.md", "migrating.md")


def pictures(folder: Path, *names: str) -> None:
    """Write a different picture for each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(7 * number + len(str(folder))).resize((240, 200)).save(path)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with the pictures that the pages speak of."""
    for module in (indexing, verify):
        monkeypatch.setattr(module, "WorkerPool", InProcess)
    for folder in ("my_pictures", "IMAGES", "flowers", "imagenet/train", "imagenet/val"):
        pictures(tmp_path / folder, *(f"class{number % 4}/{number}.jpg" for number in range(24)))
    pictures(tmp_path, "cat.jpg", "dog.jpg", "holiday/a.jpg", *(f"dogs/train/{key}.jpg" for key in "abc"))
    (tmp_path / "dogs/labels.csv").write_text("id,breed\na,boxer\nb,boxer\nc,beagle\n")
    return tmp_path


def user_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield script and arguments of each command of the pages; other than of sharding, one of each script."""
    seen: set[str] = set()
    for block in BLOCKS:
        if block.page not in USER_PAGES or block.kind != "bash" or block.why:
            continue
        for words in commands_of(block.code.replace("/data/imagenet", "imagenet")):
            if words[0] in IN_OTHER_TESTS or words[1] in IN_OTHER_TESTS:
                continue
            key = " ".join(words[1:]) if words[1] == "tools/shard_imagenet.py" else words[1]
            if key not in seen:
                seen.add(key)
                yield words[1], words[2:]


def test_the_folders_that_the_pages_shard_are_there(user: Path) -> None:
    for program, options in user_commands():
        if program == "tools/shard_imagenet.py" and not {"--verify", "--index"} & {*options}:
            assert (user / options[0]).is_dir(), f"the fixture has no {options[0]}"


@pytest.mark.slow
def test_the_commands_of_the_pages_run_in_their_order(user: Path) -> None:
    ran = []
    for program, options in user_commands():
        if "--index" in options:  # of a folder that webdataset wrote, instead of those that commands before made
            shutil.rmtree(user / "shards")
            (user / "shards").mkdir()
            write_tar(user / "shards/train-0.tar", {"a.jpg": encoded(1), "a.cls": b"0"})
        elif program == "tools/shard_imagenet.py" and "--verify" not in options:
            shutil.rmtree(user / options[1], ignore_errors=True)
        done = script(program, *options, *LESS.get(program, ()), cwd=user)
        assert done.returncode == 0, f"{program} {' '.join(options)}: {done.stderr[-1000:]}"
        if program == "train.py":
            (user / "runs/paper").symlink_to(user / options[options.index("--out") + 1])
        ran.append(program)
    assert len(ran) > 12 and {"tools/evaluate.py", "tools/report.py", "tools/predict.py", "tools/export.py"} < {*ran}
