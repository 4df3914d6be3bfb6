"""What docs/cluster.md describes: the SLURM script, tried with stand-ins for SLURM's commands, and the Dockerfile."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until

SRUN = """#!/bin/sh
echo "$@" >> calls
echo $$ > srun.pid
trap 'kill $!; exit 0' TERM
read line < forever &
wait
"""
SCANCEL = """#!/bin/sh
echo scancel "$@" >> calls
kill -TERM "$(cat srun.pid)"
"""
SCONTROL = """#!/bin/sh
echo scontrol "$@" >> calls
echo machine-a
"""


@pytest.fixture
def job(tmp_path: Path) -> subprocess.Popen:
    """Start the script with stand-ins: srun waits until scancel signals it."""
    os.mkfifo(tmp_path / "forever")
    stand_ins = {
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": '#!/bin/sh\necho scontrol "$@" >> calls\necho machine-a\n',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "machine-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "8"}
    (tmp_path / "runs/modern").mkdir(parents=True)
    (tmp_path / "runs/modern/config.json").write_text("{}")
    return subprocess.Popen(["bash", str(ROOT / "cluster/train.sbatch")], cwd=tmp_path, env=environment)


def test_a_slurm_job_stops_and_goes_back_into_the_queue(job: subprocess.Popen, tmp_path: Path) -> None:
    wait_until(lambda: (tmp_path / "srun.pid").exists() and (tmp_path / "srun.pid").read_text(), "srun never started")
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    train = next(line for line in calls if "train.py" in line)
    assert "--rdzv-endpoint machine-a:29500" in train and "--nnodes 2 --nproc-per-node 8" in train
    assert train.endswith("--out runs/modern --resume")
    assert calls[-2:] == ["scancel --signal=TERM 7.0", "scontrol requeue 7"]


def test_the_image_has_what_the_decoder_needs() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    capabilities = re.search(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", text)
    assert capabilities and {"compute", "utility", "video"} <= set(capabilities[1].split(","))
    assert re.search(r"^FROM \S+:\d\S+$", text, re.MULTILINE)  # a version, which does not move
    assert "USER 1000" in text and "libjpeg62-turbo-dev" in text
