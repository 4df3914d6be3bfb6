"""Tests of a run's folder: what --overwrite deletes, who may write into it, and which earlier files remain."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alexnet import AlexNetError, checkpoint, run_folder, run_reader
from alexnet.figures.saving import save_pictures
from alexnet.ranks import Ranks
from alexnet.run import find_checkpoint
from alexnet.run_reader import find_checkpoint as checkpoint_of
from alexnet.run_reader import find_data, read_run
from pipelines.files import write_atomically
from tests.conftest import ROOT, assert_refused, script
from tools import evaluate, report

CONFIG = {"recipe": "demo", "settings": {}}
EVENTS = "tensorboard/events.out.tfevents.1764000000.host-1.example.4711.0"


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(CONFIG) if name == "config.json" else "here")


def tree(folder: Path) -> dict[str, object]:
    """Return the contents of each file in the folder, except the lock; None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "lock"
    }


@pytest.mark.parametrize("config", [None, "{", "5", '{"name": "my-web-app"}'])
def test_overwrite_deletes_nothing_in_a_folder_that_holds_no_run(tmp_path: Path, config: str | None) -> None:
    put(tmp_path, "pictures/filters.png", "metrics.json", EVENTS, "best.pt", "log.jsonl")
    if config:
        (tmp_path / "config.json").write_text(config)
    before = tree(tmp_path)
    with pytest.raises(AlexNetError, match=r"holds no run of train\.py .*nothing was deleted"):
        run_folder.start(tmp_path, True, CONFIG, {})
    assert tree(tmp_path) == before


def test_overwrite_deletes_only_what_a_run_has_written(tmp_path: Path) -> None:
    others = ("pictures/holiday/only_copy.jpg", "pictures/filters.jpg", "tensorboard/thesis.txt", "last_will.pt.txt")
    others += ("last.pt.txt", "notes.tmp", "last-x.pt", "tensorboard/events.txt", "my.best.pt")
    put(tmp_path, "config.json", "last-12.pt", "pictures/activations-2.png", EVENTS, *others)
    run_folder.start(tmp_path, True, CONFIG, {})
    assert {name for name, content in tree(tmp_path).items() if content is not None} == {
        *("config.json", "env.json"),
        *others,
    }


@pytest.mark.parametrize("odd", ["pictures", "tensorboard", "best.pt", "folder", "file"])
def test_overwrite_clears_all_or_changes_nothing(tmp_path: Path, odd: str) -> None:
    """Check with a link in place of a folder or a file of the run, a folder in place of a file, and the reverse."""
    run, other = tmp_path / "run", tmp_path / "other"
    put(run, "config.json", "env.json", "log.jsonl")
    put(other, "filters.png")
    if odd == "folder":
        (run / "metrics.json").mkdir()
    elif odd == "file":
        (run / "pictures").write_text("no folder")
    else:
        (run / odd).symlink_to(other / "filters.png" if odd == "best.pt" else other)
    before = tree(run), tree(other)
    with pytest.raises(AlexNetError, match="nothing was deleted; move it away"):
        run_folder.start(run, True, CONFIG, {})
    assert (tree(run), tree(other)) == before


def test_overwrite_is_fine_in_new_folders_and_those_without_such_names(tmp_path: Path) -> None:
    for folder in (tmp_path / "empty", tmp_path / "others"):
        folder.mkdir()
    put(tmp_path / "others", "notes.txt", "tensorboard/thesis.txt")
    for folder in (tmp_path / "empty", tmp_path / "others"):
        run_folder.start(folder, True, CONFIG, {})
        assert (folder / "config.json").exists()
    assert (tmp_path / "others/notes.txt").exists() and (tmp_path / "others/tensorboard/thesis.txt").exists()
    others = ("curves", "confusions", "reliability", "mistakes", "thumbnails")
    assert all(run_folder.PICTURE.fullmatch(f"{name}.png") for name in (*report.PICTURES, *others))


@pytest.mark.parametrize("how", ["--resume", "--overwrite", None])
def test_a_second_training_in_a_run_folder_is_refused_and_changes_nothing(
    trained: Path, numbered_shards: Path, tmp_path: Path, how: str | None
) -> None:
    for name in ("config.json", "log.jsonl"):
        put(tmp_path, name)
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    put(tmp_path, "last.pt.0123abcd.tmp")
    (tmp_path / "last.pt").write_bytes(b"damaged")
    before = tree(tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = (
            "train.py",
            "--out",
            tmp_path,
            "--data",
            numbered_shards,
            "--backend",
            "synthetic",
            *([how] * bool(how)),
        )
        assert_refused(script(*line), "another training is writing to", str(tmp_path), "choose another --out")
    assert tree(tmp_path) == before


def test_a_killed_training_leaves_no_lock(tmp_path: Path) -> None:
    code = "import pathlib, signal; from alexnet.run_folder import claim; from alexnet.ranks import Ranks\n"
    code += f"with claim(pathlib.Path({str(tmp_path)!r}), Ranks()): print('held', flush=True); signal.pause()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(AlexNetError, match="another training is writing"), run_folder.claim(tmp_path, Ranks()):
            pass
        process.send_signal(signal.SIGKILL)
    with run_folder.claim(tmp_path, Ranks()):
        pass


def test_what_killed_trainings_left_over_goes_and_nothing_else_does(tmp_path: Path) -> None:
    left_over = ("last.pt.0123abcd.tmp", "best.pt.00000000.tmp", "log.jsonl.12345678.tmp", "last.pt.tmp")
    others = ("last.pt", "notes.tmp", "last.pt.old.tmp", "metrics.json.0123abcd.tmp")
    put(tmp_path, *left_over, *others)
    run_folder.start(tmp_path, False, CONFIG, {})
    assert set(tree(tmp_path)) == {"config.json", "env.json", *others}


def test_a_resume_reads_its_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        checkpoint.save(tmp_path / "last.pt", {"number": number}, keep=2)
    (tmp_path / "last.pt").write_bytes(b"damaged")
    read, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: (read.append(path.name), load(path))[1])
    path, state = find_checkpoint(tmp_path, Ranks())
    assert (path.name, state["number"], read) == ("last-1.pt", 0, ["last.pt", "last-1.pt"])


def test_what_tools_write_replaces_the_earlier_file_whole_or_not_at_all(small_disk: Path) -> None:
    """Check on a disk that fills up: pictures, tables, the run's files, and the log that a resume rewrites."""
    from matplotlib.figure import Figure

    from alexnet.log import RunLog

    names = ("x.png", "classes.csv", "config.json", "log.jsonl")
    line = json.dumps({"kind": "step", "step": 1, "text": "x" * 50_000}) + "\n"
    for name in names:
        (small_disk / name).write_text(line if name == "log.jsonl" else "earlier")
    (small_disk / "filling").write_bytes(bytes(3 * 2**20 - 5 * 4096 - 60_000))
    figure = Figure()
    figure.subplots().imshow(torch.rand(400, 400).numpy(), interpolation="none")
    writes = {
        "x.png": lambda: save_pictures({"x": figure}, small_disk),
        "classes.csv": lambda: evaluate.write_csv(small_disk / "classes.csv", [["x" * 100_000]]),
        "config.json": lambda: run_folder.start(small_disk, False, {"recipe": "x" * 100_000}, {}),
        "log.jsonl": lambda: RunLog(small_disk / "log.jsonl", step=1),
    }
    for name, write in writes.items():
        with pytest.raises(OSError, match="No space left on device") as error:
            write()
        assert (small_disk / name).read_bytes() == (line if name == "log.jsonl" else "earlier").encode(), name
        assert error.value.filename == str(small_disk / name)
    assert {path.name for path in small_disk.iterdir()} == {*names, "filling"}


def test_a_new_name_is_flushed_to_the_disk_after_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard against a loss of power, which must leave the old file or the new one and not undo a checkpoint."""
    seen, flush, replace = [], os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        flush(descriptor)

    def replaced(path: Path, target: Path) -> None:
        seen.append("renamed")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    for write in (lambda path: checkpoint.save(path, {}), lambda path: write_atomically(path, b"x")):
        seen.clear()
        write(tmp_path / "file")
        assert seen[0].parent == tmp_path and seen[-2:] == ["renamed", tmp_path]


def test_names_are_no_formulas_in_a_spreadsheet_and_are_read_back_as_they_were(run_folder: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "＝1", "'=1", "'tis", "tench, Tinca tinca", "o=o"]
    rows = [["name", "images", "precision", "recall", "f1"], *([name, 1, -0.5, 0.0, 0.0] for name in names)]
    evaluate.write_csv(run_folder / "classes.csv", rows)
    lines = (run_folder / "classes.csv").read_text().splitlines()
    assert lines[1:6] == [f"'{name},1,-0.5,0.0,0.0" for name in names[:5]], "numbers stay numbers"
    assert lines[8] == "'tis,1,-0.5,0.0,0.0" and lines[10].startswith("o=o")
    assert [row.name for row in read_run(run_folder).classes] == names


def test_two_writers_of_one_checkpoint_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = tmp_path / "last.pt", torch.save

    def interrupted(state: dict, file: object) -> None:
        if state["number"] == 1:
            checkpoint.save(path, {"number": 2})
        save(state, file)

    monkeypatch.setattr(torch, "save", interrupted)
    checkpoint.save(path, {"number": 1})
    assert checkpoint.load(path)["number"] == 1 and [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_run_folder_stands_for_its_best_checkpoint_and_else_for_its_last(tmp_path: Path) -> None:
    with pytest.raises(AlexNetError, match=r"no checkpoint in .*neither best\.pt nor last\.pt"):
        checkpoint_of(tmp_path)
    for name in ("last.pt", "best.pt"):
        put(tmp_path, name)
        assert checkpoint_of(tmp_path) == tmp_path / name
    assert checkpoint_of(tmp_path / "last.pt") == tmp_path / "last.pt"


def test_a_checkpoint_knows_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check paths from the working directory and from the checkout; and a run, a checkpoint alone, data that moved."""
    here, checkout, run = tmp_path / "here", tmp_path / "checkout", tmp_path / "run"
    for folder in (here, checkout / "typed", run):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(run_reader, "ROOT", checkout)
    state = {"config": {"data": "typed"}}
    assert find_data(run / "best.pt", state) == checkout / "typed"
    (here / "typed").mkdir()
    assert find_data(run / "best.pt", state) == Path("typed")
    (run / "config.json").write_text(json.dumps(CONFIG | {"data": str(tmp_path)}))
    assert find_data(run / "best.pt", state) == tmp_path, "a resume may have given another place"
    (run / "config.json").write_text(json.dumps(CONFIG | {"data": "moved"}))
    with pytest.raises(AlexNetError, match=r"best\.pt was trained on moved, which is not here: .*--data"):
        find_data(run / "best.pt", {"config": {"data": "moved too"}})
    with pytest.raises(AlexNetError, match=r"does not say what it was trained on: .*--data"):
        find_data(tmp_path / "best.pt", {"config": 5})
