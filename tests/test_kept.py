"""Shards and a run that version 0.1.0 wrote (commit 9c529c3), before modules and names moved: they still open."""

import json
import shutil
from pathlib import Path

from alexnet.log import read_log
from pipelines import load_manifest, open_loader
from pipelines.sharding.verify import verify
from tests.conftest import ROOT, script

KEPT = ROOT / "tests" / "kept"
SHARDS = KEPT / "shards"


def test_shards_are_read_and_verified() -> None:
    manifest = load_manifest(SHARDS)
    assert not manifest.checksums and manifest.split("train").samples == 8
    for backend in ("turbo", "dali"):
        labels = [label for batch in open_loader(SHARDS, "val", 4, backend=backend) for label in batch.labels.tolist()]
        assert sorted(labels) == [0, 0, 1, 1]
    verify(SHARDS, 1)


def test_a_network_is_evaluated(tmp_path: Path) -> None:
    run = shutil.copytree(KEPT / "run", tmp_path / "run")
    done = script("tools/evaluate.py", run / "best.pt", "--data", SHARDS)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.json").read_text())["samples"] == 4


def test_a_run_is_resumed(tmp_path: Path) -> None:
    run = shutil.copytree(KEPT / "run", tmp_path / "run")
    done = script("train.py", "--out", run, "--data", SHARDS, "--resume", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert [entry["epoch"] for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"] == [1, 2]
