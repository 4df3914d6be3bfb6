"""The commands with shards in a bucket, on one machine and on several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.bucket import KEYS, upload
from tests.conftest import ROOT, SMALLEST, assert_refused, command, script

URL = "s3://bucket/few"


@pytest.fixture(scope="module")
def few(few_shards: Path, server: str) -> str:
    upload(few_shards, URL)
    return URL


@pytest.mark.slow
def test_a_run_from_a_bucket_from_training_to_the_report(
    few: str, few_shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """It is the run from the folder, and nothing that it leaves tells a credential."""
    run, cache = tmp_path / "run", ("--cache", tmp_path / "cache", "--cache-gb", "0.01")
    done = script("train.py", "--data", few, "--out", run, *SMALLEST, *cache)
    assert done.returncode == 0, done.stderr
    for tool, more in (("evaluate", cache), ("visualize", (*cache, "--searched", 8)), ("report", ())):
        done = script(f"tools/{tool}.py", run, *more)
        assert done.returncode == 0, done.stderr
    steps = [
        [json.loads(line).get("loss") for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (run, uninterrupted)
    ]
    assert steps[0] == steps[1]
    assert json.loads((run / "config.json").read_text())["data"] == few
    assert json.loads((run / "metrics.json").read_text())["data"] == few
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(KEYS[name].encode() in content for name in KEYS if name != "AWS_REGION"), path


def test_a_run_with_a_small_cache_resumes_with_the_same_one_only(few: str, tmp_path: Path) -> None:
    run = ("train.py", "--data", few, "--out", tmp_path / "run", *SMALLEST)
    assert_refused(script(*run, "--cache", tmp_path / "cache", "--cache-gb", "0.0000001"), "two of the shards")
    assert_refused(script(*run, "--cache-gb", "0"), "cache_gb is 0.0", code=2)
    assert_refused(script(*run[:2], "ftp://host/x", *run[3:]), "no URL of a known kind")


def test_dali_reads_from_a_cache_that_holds_all(few: str, few_shards: Path, small_shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from pipelines import Augment, DataError, open_loader
    from tests.bucket import gb, labels

    how = {"augment": Augment(normalise="none"), "backend": "dali", "cache": tmp_path}
    there = open_loader(few, "val", 4, **how)
    assert labels(there) == labels(open_loader(few_shards, "val", 4, **how | {"cache": None}))
    with pytest.raises(DataError, match="does not fit into the cache: give a larger --cache-gb, or use turbo"):
        open_loader("s3://bucket/imagenet", "val", 4, **how | {"cache_gb": gb(small_shards, 4)})


@pytest.mark.slow
def test_two_machines_train_as_one(few: str, tmp_path: Path) -> None:
    """Two agents of torchrun, each with a cache of its own, give the checkpoint's losses of two ranks on one machine.

    One agent gets SIGTERM; the same command then goes on by itself.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = ["train.py", "--data", few, *SMALLEST, "--device", "cpu", "--cache-gb", "0.01"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def machines(run: Path) -> list[subprocess.Popen]:
        agent = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
        where = ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
        lines = [[*agent, *where, *common, "--out", run, "--cache", tmp_path / f"cache{i}"] for i in range(2)]
        start = [sys.executable, "-m", "torch.distributed.run"]
        return [
            subprocess.Popen([*start, *map(str, line)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
            for line in lines
        ]

    def losses(run: Path) -> list[float]:
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["kind"] == "step"]

    two = machines(tmp_path / "two")
    said = [process.communicate()[1] for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    alone = ("--standalone", "--nproc-per-node", "2", *common, "--cache", tmp_path / "cache2")
    done = command("-m", "torch.distributed.run", *alone, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert len(list(tmp_path.glob("cache[01]/*/train-*.tar"))) == 2 * len(list(tmp_path.glob("cache2/*/train-*.tar")))
