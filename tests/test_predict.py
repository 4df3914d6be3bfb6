"""Tests of predictions for pictures from outside the dataset."""

import errno
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import DataError, open_loader
from pipelines.commands import command
from pipelines.images.picture import read_file
from pipelines.preprocess import Preparation
from pipelines.sharding.sources import find_images
from pipelines.terminal import run_command
from tests.conftest import PATIENCE, ROOT, assert_refused, script
from tools.predict import expand
from train import mean_image


def test_predict_answers_for_good_pictures_and_names_bad_ones(trained: Path, demo_images: Path, tmp_path: Path) -> None:
    picture, broken = next((demo_images / "val").rglob("*.JPEG")), tmp_path / "broken.jpg"
    broken.write_text("not a picture")
    done = script("tools/predict.py", trained / "best.pt", picture, broken)
    assert_refused(done, f"{broken}: it is not an image", "1 of 2 pictures")
    lines = done.stdout.splitlines()
    assert lines[0] == str(picture) and len(lines) == 6, "the good one is answered all the same"
    probabilities = [float(line.split()[0]) for line in lines[1:]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 100.1


def test_folders_and_batches_give_each_picture_its_own_answer(trained: Path, demo_images: Path) -> None:
    """Check that predictions, a JSON line each, do not depend on the batch: seven pictures in batches of three."""
    folder = min((demo_images / "val").iterdir())
    pictures = sorted(folder.iterdir())[:7]
    line = ("tools/predict.py", trained / "best.pt", "--json", "--top", 2)
    together = script(*line, "--batch-size", 3, *pictures)
    assert together.returncode == 0, together.stderr
    answers = [json.loads(text) for text in together.stdout.splitlines()]
    assert [answer["picture"] for answer in answers] == [str(path) for path in pictures]
    whole = [json.loads(text) for text in script(*line, folder).stdout.splitlines()]
    assert [a["picture"] for a in whole] == [str(path) for path in sorted(folder.iterdir())]
    for answer, other in zip(answers, whole, strict=False):
        assert len(answer["answers"]) == 2 and answer["answers"][0]["wnid"] == other["answers"][0]["wnid"]
        assert answer["answers"][0]["probability"] == pytest.approx(other["answers"][0]["probability"], abs=1e-4)


def test_standard_input_is_a_picture_too(trained: Path, demo_images: Path) -> None:
    picture = next((demo_images / "val").rglob("*.JPEG"))
    line = [sys.executable, ROOT / "tools/predict.py", trained / "best.pt", "-"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, input=picture.read_bytes(), capture_output=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    named = script("tools/predict.py", trained, picture)
    assert done.stdout.decode().splitlines()[1:] == named.stdout.splitlines()[1:]


def test_a_folder_is_walked_and_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["a.JPG", "b/c.tiff", "b/d/e.jfif", "gone.jpg"]
    others = ["__MACOSX/._a.jpg", "@eaDir/a.jpg/b.jpg", "._a.jpg", ".cache/f.png", "notes.txt", "b/more.TXT", "README"]
    for name in (*wanted, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    assert list(expand([tmp_path, Path("-")])) == [*(tmp_path / name for name in wanted), Path("-")]
    assert sorted(capsys.readouterr().err.strip().removeprefix("left out: ").split(", ")) == sorted(
        ["2 .txt", "1 in .cache/", "1 in @eaDir/", "1 in __MACOSX/", "1 hidden", "1 without a suffix"]
    )
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is one a link to a folder above it"):
        list(expand([tmp_path]))


def test_a_folder_without_pictures_is_refused(trained: Path, tmp_path: Path) -> None:
    assert_refused(script("tools/predict.py", trained / "best.pt", tmp_path), "no pictures in", ".jpeg")
    assert_refused(script("tools/predict.py", trained / "best.pt"), "picture", code=2)


@pytest.mark.parametrize(("augment", "deviation"), [("crop_flip", 1), ("paper", 60)])
def test_predict_prepares_a_picture_as_the_loader_does(
    demo_shards: Path, demo_images: Path, augment: str, deviation: float
) -> None:
    loader = open_loader(demo_shards, "val", 8, augment)
    preparation = Preparation(augment, 256, vars(loader.manifest.statistics), mean_image(loader.manifest))
    images = next(iter(loader)).images
    for sample, image in zip(find_images(demo_images, ("val",), 0).splits["val"], images, strict=False):
        ours = preparation.tensor(preparation.crop(read_file(demo_images / sample.source).pixels))
        assert (ours - image).abs().mean() < 0.1 * deviation, "what JPEG at quality 90 loses"
    with pytest.raises(DataError, match="lacks the mean image"):
        Preparation("paper", 256, vars(loader.manifest.statistics), None)


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """Check that ``--help | head -1`` prints no error."""
    line = f"{sys.executable} tools/predict.py --help"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line.split(), cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@dataclass(frozen=True)
class NoOptions:
    """The options of a command that has none."""


def broken(*_: object) -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_broken_pipe_other_than_the_output_is_an_error_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(broken, NoOptions, None, arguments=[])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: Broken pipe: a process or a connection")


@pytest.mark.parametrize("words", [10, 100_000])
def test_a_closed_output_is_quiet_however_much_is_written(
    words: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check lines that fit into Python's buffer, which fail at the end, and longer ones, which fail at once."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            run_command(lambda _: print("x" * words), NoOptions, None, arguments=[])
        monkeypatch.undo()
    assert end.value.code == 1 and capsys.readouterr().err == ""


def test_an_error_is_said_even_if_nobody_reads_the_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        print("begun")
        raise DataError("no shards")

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            run_command(fails, NoOptions, None, arguments=[])
        monkeypatch.undo()
    assert end.value.code == 1 and capsys.readouterr().err == "error: no shards\n"


def test_a_printed_command_runs_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a path with a space and a quote, from the checkout and from elsewhere."""
    folder = "my runs/o'clock"
    for here in (ROOT, tmp_path):
        monkeypatch.chdir(here)
        python, script_path, *rest = shlex.split(command("train.py", "--out", Path(folder), "--resume"))
        assert rest == ["--out", folder, "--resume"] and Path(script_path).samefile(ROOT / "train.py")
        found = subprocess.run([python, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
        assert found.stdout.strip() == sys.executable
