"""Tests of the loader in other people's frameworks: they run the code of docs/your-training-loop.md as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PATIENCE, ROOT

PAGE = ROOT / "docs" / "your-training-loop.md"
IMPORTS = """
import json
from pathlib import Path
import accelerate, pytorch_lightning as lightning, torch
from accelerate import Accelerator
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2
from transformers import Trainer, TrainerCallback, TrainingArguments
from pipelines import Augment, open_loader
"""
SEEN: list[list[int]] = []


class Network(torch.nn.Module):
    """A small network that records the labels it is trained on; it takes also what Hugging Face's Trainer gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.last = torch.nn.Dropout(0.5), torch.nn.Linear(3, 101)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.last(self.drop(pixel_values.mean((2, 3))))
        if labels is None:
            return logits
        SEEN.append(labels.tolist())
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def recorded(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    SEEN.append(labels.tolist())
    return torch.nn.functional.cross_entropy(logits, labels)


def block(heading: str) -> str:
    """Return the first code block of the page after a heading, for batches of 8."""
    text = PAGE.read_text()
    return re.findall(r"```python\n(.*?)```", text[text.index(heading) :], re.DOTALL)[0]


def run(heading: str, shards: Path, **names: Any) -> dict[str, Any]:
    """Run a block in the working directory. Return its names, with ``seen``: the labels of each batch."""
    SEEN.clear()
    torch.manual_seed(0)
    code = block(heading).replace('"shards/imagenet"', repr(str(shards)))
    code = code.replace("batch_size=64", "batch_size=8").replace('augment="modern"', 'augment="crop_flip"')
    scope: dict[str, Any] = {"make_network": Network, "resume_from": None, "after_step": lambda _: None}
    exec(IMPORTS, scope)
    scope |= {"cross_entropy": recorded} | names
    exec(code, scope)
    return scope | {"seen": [*SEEN]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_epochs(seen: list[list[int]], epochs: int) -> None:
    """Check that each epoch is twelve batches of 8, all of other samples, in another order each."""
    assert len(seen) == 12 * epochs
    each = [[label for batch in seen[i : i + 12] for label in batch] for i in range(0, len(seen), 12)]
    assert all(len(set(labels)) == 96 for labels in each)
    assert len({tuple(labels) for labels in each}) == epochs


def test_a_plain_loop(numbered_shards: Path, here: Path) -> None:
    check_epochs(run("# The loader", numbered_shards)["seen"], 2)
    loader = run("## Resume", numbered_shards)["loader"]
    assert loader.epoch == 2 and json.loads((here / "position.json").read_text())["taken"] == 0


def test_transforms_of_torchvision(numbered_shards: Path) -> None:
    loader = run("## Your own transforms", numbered_shards)["loader"]
    batch = next(iter(loader))
    assert batch.labels.shape == (8, 1000) and batch.images.shape == (8, 3, 224, 224)
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))


def test_the_mean_of_pretrained_networks_and_names(numbered_shards: Path, capsys) -> None:
    assert next(iter(run("## Networks that", numbered_shards)["loader"])).images.dtype == torch.float32
    run("## Names, captions", numbered_shards)
    assert "val_100 c100" in capsys.readouterr().out.splitlines()


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_with_the_very_next_batch(numbered_shards: Path, here: Path) -> None:
    whole = run("## Lightning", numbered_shards)
    check_epochs(whole["seen"], 2)
    checkpoint = next((here / "checkpoints").glob("*step=15.ckpt"))
    resumed = run("## Lightning", numbered_shards, resume_from=checkpoint)
    assert resumed["seen"] == whole["seen"][15:]


@pytest.mark.filterwarnings("ignore")
def test_accelerate_resumes_with_the_very_next_batch(numbered_shards: Path, here: Path) -> None:
    def save(accelerator) -> None:
        if len(SEEN) == 5 and not (here / "state").exists():
            accelerator.save_state("state")

    whole = run("## Accelerate", numbered_shards, after_step=save)
    check_epochs(whole["seen"], 1)
    assert whole["accelerator"].prepare(whole["loader"]) is whole["loader"]
    resumed = run("## Accelerate", numbered_shards, resume_from="state")
    assert resumed["seen"] == whole["seen"][5:]
    assert torch.equal(resumed["network"].last.weight, whole["network"].last.weight)


@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_trainer_resumes_with_the_very_next_batch(numbered_shards: Path, here: Path) -> None:
    whole = run("## Hugging Face", numbered_shards)
    check_epochs(whole["seen"], 2)
    resumed = run("## Hugging Face", numbered_shards, resume_from=f"{here}/output/checkpoint-15")
    assert resumed["seen"] == whole["seen"][15:]
    assert torch.equal(resumed["trainer"].model.last.weight, whole["trainer"].model.last.weight)


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["## Several ranks", "## Lightning", "## Accelerate", "## Hugging Face"])
def test_two_ranks_share_an_epoch(numbered_shards: Path, tmp_path: Path, heading: str) -> None:
    program = tmp_path / "ranks.py"
    program.write_text(
        "import json, os\n"
        "from pathlib import Path\n"
        "from tests.test_frameworks import run\n"
        f"seen = run({heading!r}, Path({str(numbered_shards)!r}))['seen']\n"
        "Path(f'seen-{os.environ[\"RANK\"]}.json').write_text(json.dumps(seen))\n"
    )
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    epochs = 1 if heading in ("## Several ranks", "## Accelerate") else 2
    assert [len(seen) for seen in ranks] == [6 * epochs] * 2
    for epoch in range(epochs):
        labels = [label for seen in ranks for batch in seen[6 * epoch : 6 * epoch + 6] for label in batch]
        assert len(set(labels)) == len(labels) == 96
