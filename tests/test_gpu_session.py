"""Tests that run the commands of a GPU session on the CPU first, at the smallest size."""

import ctypes
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from benchmarks import ceilings, corpus, gpu, nvjpeg, pixels
from benchmarks.__main__ import Command
from benchmarks.decoder_survey import RunsOptions, ending, outcome, run_runs
from benchmarks.gpu import GpuOptions, Line, run_gpu
from benchmarks.harness.children import Child
from benchmarks.harness.machine import result_path
from benchmarks.harness.pixels import compare
from benchmarks.harness.timing import Deadline
from benchmarks.plots.ceilings import draw
from benchmarks.plots.page import page, summary, table
from benchmarks.train import SYNTHETIC, Training
from pipelines import Batch, DataError
from tests.conftest import assert_refused, script, wait_until
from tools import shard_imagenet

BENCHMARKS = "benchmarks/__main__.py"


def parsed(arguments: list[str]) -> Any:
    """Return the options that a command of an item gives, None for pytest."""
    if arguments[:2] == ["-m", "benchmarks"]:
        return tyro.cli(Command, args=arguments[2:])
    if arguments[0] == "tools/shard_imagenet.py":
        return tyro.cli(shard_imagenet.Options, args=arguments[1:])
    if arguments[:2] == ["-m", "benchmarks.corpus"]:
        return tyro.cli(corpus.Options, args=arguments[2:])
    assert arguments[:2] == ["-m", "pytest"]
    return None


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("item", gpu.ITEMS)
def test_no_command_is_refused_for_its_options(item: Any, quick: bool, tmp_path: Path) -> None:
    """Catch wrong options here, because on the machine with the GPU they would waste its minutes."""
    options = GpuOptions(item, tmp_path, tmp_path, quick=quick)
    data = len(options.lines) - len(gpu.ITEMS[item])
    needed = {"correct": 4, "step": 0, "train": 3, "loader": 3, "pieces": 2, "ceilings": 5, "peers": 2, "tuning": 0}
    assert data == needed[item], "photographs, and the shards that it needs"
    assert sum(line.minutes for line in gpu.ITEMS[item]) <= options.minutes <= 8, "an item ends within 8 minutes"
    for line in options.lines:
        found = parsed(gpu.arguments(line, options))
        if quick and hasattr(found, "rounds"):
            assert found.rounds == 1, "what makes it small comes last, and counts"
    tests = gpu.arguments(gpu.ITEMS["correct"][0], GpuOptions("correct", tmp_path, tmp_path))
    assert {"-v", "-rA", "--tb=short", "tests/test_gpu.py", "tests/test_turbo.py"} <= set(tests)
    assert GpuOptions("step", tmp_path, tmp_path, only=(2,)).lines[-1].arguments == "-m benchmarks kernels"


def test_an_item_goes_on_after_failures_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command that fails, and one that hangs after it has printed: its three seconds are over at once."""
    lines = [
        Line("-c 'raise SystemExit(\"no such engine\")'", "", 10),
        Line(f'-c \'print(1 + 1); open("{tmp_path}/printed", "w"); import signal; signal.pause()\'', "", 0.05),
        Line("-c 'print(6 * 7)'", "", 10),
    ]
    monkeypatch.setitem(gpu.ITEMS, "correct", lines)
    communicate = subprocess.Popen.communicate

    def over_at_once(process: subprocess.Popen, timeout: float | None = None) -> Any:
        if timeout == 3:
            wait_until((tmp_path / "printed").exists, "the command prints nothing")
            timeout = 0
        return communicate(process, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", over_at_once)
    run_gpu(GpuOptions("correct", tmp_path / "out", tmp_path, minutes=60))
    written = result_path(tmp_path / "out", "correct")
    failed, endless, last = json.loads(written.read_bytes())["commands"]
    assert (failed["ended"], failed["log"].strip()) == ("with 1", "no such engine")
    assert (endless["ended"], endless["log"].strip()) == ("with no end in 3 s", "2")
    assert (last["ended"], last["log"].strip()) == ("well", "42")
    assert "no such engine" in written.with_suffix(".md").read_text()
    run_gpu(GpuOptions("correct", tmp_path / "late", tmp_path, minutes=0.1))
    assert "no time was left" in (tmp_path / "late" / written.name).read_text()


def test_what_a_killed_command_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check with a command that wrote one of three rounds, and one that left a candidate out."""
    rows = [{"name": "paper", "median": 5, "rounds": 1}]
    about = {"benchmark": "step", "unit": "images/s", "rounds": 3, "rows": rows, "gpu": None, "torch": "2.11.0"}
    about |= {"partial": True, "left_out": ["bn"], "date": "", "cores": 1, "machine": "", "python": "", "packages": {}}

    def killed(given: list[str], limit: float) -> tuple[str, str]:
        assert given[given.index("--minutes") + 1] == "1.60" and limit == 120, "time for its start and end"
        Path(given[given.index("--json") + 1]).write_text(json.dumps(about))
        return "no end in 120 s", "the last line"

    monkeypatch.setattr(gpu, "finish", killed)
    monkeypatch.setitem(gpu.ITEMS, "step", [Line("-m benchmarks step", "", 2)])
    run_gpu(GpuOptions("step", tmp_path, tmp_path, minutes=60))
    written = result_path(tmp_path, "step")
    (done,) = json.loads(written.read_bytes())["commands"]
    assert done["result"]["rows"] == rows and done["log"] == "the last line"
    assert done["ended"] == "in part, with no end in 120 s"
    text = written.with_suffix(".md").read_text()
    assert summary([json.loads(written.read_bytes())])["step"][0]["left_out"] == ["bn"]
    without_rounds = {name: value for name, value in about.items() if name != "rounds"}  # as of ``kernels``
    done["result"] = without_rounds | {"partial": False}
    assert "asked" not in page([{"item": "step", "title": "", "quick": False, "commands": [done]}])
    assert "left out, no time: bn" in text and "rounds: 3 asked" in text and "| paper | 5 | 1 |" in text


def test_pixels_under_load_are_compared_image_by_image() -> None:
    right = np.full((4, 4, 3), 100, np.uint8)
    noisy, other, small = right + np.uint8(1), np.full((4, 4, 3), 200, np.uint8), np.zeros((2, 4, 3), np.uint8)
    found = compare([(noisy, right), (other, right), (small, right)])
    assert (found["compared"], found["wrong"], found["max_difference"]) == (3, 2, 255)
    assert found["mean_difference"] == pytest.approx((1 + 100 + 255) / 3, abs=0.001)


def test_a_loader_that_mixes_images_up_is_found(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check turbo's batches first, then with two of their images exchanged, or their labels."""
    options = pixels.PixelsOptions((demo_shards,), ("turbo",), batch_size=16, batches=1, rounds=2, device="cpu")
    *_, result = pixels.run_pixels(options)
    assert [row["compared"] for row in result["rows"]] == [32] * 4 and "wrong" not in result
    assert max(row["max_difference"] for row in result["rows"]) <= 0.1, "float32 of a normalised byte"
    opened = pixels.open_loader

    def mixed_up(*given: Any, **options: Any) -> Any:
        loader = opened(*given, **options)
        if options.get("device") is None:
            return loader  # the reference
        loader_copies = pixels.copies

        def swapped(batches: Any, device: Any) -> Any:
            found = loader_copies(batches, device)
            return [(images.flip(0), labels) for images, labels in found] if device is not None else found

        monkeypatch.setattr(pixels, "copies", swapped)
        return loader

    monkeypatch.setattr(pixels, "open_loader", mixed_up)
    first = replace(options, rounds=1, batches=1)
    assert "wrong pixels or labels: shards: turbo, none, in order" in next(pixels.run_pixels(first))["wrong"]


class FakeNvjpeg:
    """nvJPEG's functions, which note their calls and write each JPEG's first byte to its image."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[str] = []
        self._refuses = refuses

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "nvjpegDecodeBatched":
                data, lengths, targets = arguments[2:5]
                for jpeg, length, target in zip(data, lengths, targets, strict=True):
                    assert length == len(jpeg) and target.pitch[0] == 3
                    ctypes.memmove(target.channel[0], jpeg, 1)
            return 7 if name == self._refuses else 0

        return call


def test_nvjpeg_is_called_as_its_header_says() -> None:
    library = FakeNvjpeg()
    decoder = nvjpeg.Decoder(library, "hybrid", threads=2)
    images = [ctypes.create_string_buffer(3) for _ in range(3)]
    targets = [(ctypes.addressof(image), 3) for image in images]
    decoder.decode([b"a", b"b", b"c"], targets, [0, 0])
    assert [image.raw[:1] for image in images] == [b"a", b"b", b"c"] and decoder.workers == 2
    assert library.calls.count("nvjpegDecodeBatchedInitialize") == library.calls.count("nvjpegDecodeBatched") == 2
    assert library.calls[:2] == ["nvjpegCreateEx", "nvjpegJpegStateCreate"]
    with pytest.raises(DataError, match="nvjpegCreateEx ended with status 7"):
        nvjpeg.Decoder(FakeNvjpeg("nvjpegCreateEx"), "hardware", threads=2)


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(DataError, match="toy ended with -9"):
        Child("toy", ["-c", "import signal; signal.pause()"], patience=0.1)


def test_decoders_are_tried_on_odd_pictures() -> None:
    """Check that DALI's CPU decoders give Pillow's pixels and refuse half a file."""
    *_, result = run_runs(
        RunsOptions(("image", "image_crop"), ("CMYK", "EXIF orientation", "cut off"), 2, device="cpu")
    )
    found = {row["name"]: row for row in result["rows"]}
    for name in ("image: CMYK", "image: EXIF orientation", "image_crop: EXIF orientation"):
        assert (found[name]["ended"], found[name]["difference"]) == ("well", 0), found[name]
    assert found["image: EXIF orientation"]["shape"] == [320, 240, 3]
    assert found["image: cut off"]["ended"] == "with an error" and "decode" in found["image: cut off"]["said"]


def test_a_decoder_that_crashes_or_hangs_is_a_row() -> None:
    work = {"decoder": "image", "picture": "large", "gpu": False, "backend": ""}
    assert outcome(work, patience=0, deadline=Deadline())["ended"] == "never"
    assert outcome(work, patience=60, deadline=Deadline(0, 0))["ended"] == "not tried"
    assert (ending(-11), ending(0), ending(1)) == ("SIGSEGV", "well", "with an error")


@pytest.mark.slow
def test_ceilings_say_which_decoder_failed(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Check with nvImageCodec, which has no GPU here: only its row is missing."""
    monkeypatch.setattr(ceilings, "NVIMGCODEC", {"cpu": ("GPU_ONLY",)})
    small: dict[str, Any] = {"batch_sizes": (8,), "threads": (2, 1), "prefetch": (2,), "batches": 2, "rounds": 1}
    options = ceilings.CeilingsOptions((demo_shards,), **small, decoders=("image",), device="cpu")
    *_, result = ceilings.run_ceilings(options)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "shards: reference: decoding whole images",
        "shards: DALI image",
        "shards: DALI image, 1 threads",
        "shards: torchvision decode_jpeg, cpu",
        *(f"shards: {name}, {n} threads" for n in (2, 1) for name in ("libjpeg-turbo", "turbo's crops")),
    ]
    for name, row in rows.items():
        if name != "shards: reference: decoding whole images":
            assert row["compared"] >= 16 and row["wrong"] == 0 and row["max_difference"] == 0, "all are libjpeg-turbo's"
    assert all(row["median"] > 0 for row in rows.values()) and rows["shards: DALI image, 1 threads"]["threads"] == 1
    assert [row["name"] for row in result["failed"]] == ["shards: nvImageCodec GPU_ONLY"]
    assert result["limits"]["fp32"]["flops_per_second"] > 1e9 and result["limits"]["host"]["bytes_per_second"] is None
    assert any("failed: shards: nvImageCodec GPU_ONLY" in line for line in result["diagnosis"])


def test_a_loader_that_is_waited_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check with a clock that only the loader and the step move."""
    images, labels, now = torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def batches(seconds: float) -> Any:
        while True:
            now[0] += seconds
            yield Batch(images, labels, 4)

    def step(*_: torch.Tensor) -> torch.Tensor:
        now[0] += 1
        return torch.tensor(0.5)

    for seconds, share in ((9, 0.9), (0, 0)):
        training = Training(step, batches(seconds), 5, torch.device("cpu"))  # type: ignore[arg-type]
        assert [training() for _ in range(3)] == [(20, 5 * (1 + seconds))] * 3
        assert training.measured()["data_wait"] == pytest.approx(share)


@pytest.mark.slow
def test_training_is_measured_end_to_end_and_shown(demo_shards: Path, tmp_path: Path) -> None:
    small = ("--batch-sizes", "2", "--images", "2", "--rounds", "1", "--backends", "turbo", "--device", "cpu")
    out = tmp_path / "train.json"
    done = script(BENCHMARKS, "train", "--data", demo_shards, *small, "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_bytes())
    synthetic, turbo = result["rows"]
    assert synthetic["name"] == f"{SYNTHETIC}, 2" and turbo["name"] == "turbo, shards, 2"
    assert synthetic["ratio"] == 1 and 0 <= turbo["data_wait"] <= 1 and turbo["memory_gib"] > 0
    assert turbo["hours_90_epochs"] == pytest.approx(90 * 1_281_167 / turbo["median"] / 3600, rel=0.01)
    item = {"item": "train", "title": "End to end", "quick": True, "commands": [{"command": "c", "ended": "well"}]}
    item["commands"] = [{"command": "python -m benchmarks train", "ended": "well", "seconds": 1.5, "result": result}]
    text = page([item])
    assert f"torch {torch.__version__}" in text and f"| turbo, shards, 2 | {turbo['median']:,} |" in text
    assert "no measurement" in text
    figure = draw([item])
    assert [label.get_text().strip() for label in figure.axes[0].get_yticklabels()].count(
        "training: turbo, shards, 2"
    ) == 1
    assert_refused(script(BENCHMARKS, "train", "--data", tmp_path / "none"), "no shards at")
    assert_refused(script(BENCHMARKS, "train", "--augment", "papper"), "--augment is 'papper'", code=2)


def test_copies_of_a_view_take_no_room(tmp_path: Path) -> None:
    (tmp_path / "train" / "c0").mkdir(parents=True)
    corpus.save_view(corpus.Options(tmp_path, width=32, height=32, copies=3), corpus.photographs(), 0)
    names = ["000000.JPEG", "000000_1.JPEG", "000000_2.JPEG"]
    assert sorted(path.name for path in tmp_path.rglob("*.JPEG")) == names
    assert len({path.stat().st_ino for path in tmp_path.rglob("*.JPEG")}) == 1


def test_a_table_leaves_out_what_is_the_same_in_all_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a|b", "median": 1234.5, "rounds": 5},
        {"name": "c", "median": None, "rounds": 5},
    ]
    assert table(rows).splitlines() == ["| name | median |", "| --- | --- |", "| a\\|b | 1,234.5 |", "| c |  |"]


def test_the_kernels_of_a_step_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    done = script(BENCHMARKS, "kernels", "--batch-size", "2", "--steps", "1", "--device", "cpu", "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_bytes())
    times = [row["ms"] for row in result["rows"]]
    assert times == sorted(times, reverse=True) and 0.5 < sum(row["share"] for row in result["rows"]) <= 1.001
    assert any("convolution" in row["name"] for row in result["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("item", gpu.ITEMS)
def test_each_item_runs_whole(item: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    work = tmp_path_factory.getbasetemp() / "gpu-data"  # made by the first item
    out = tmp_path_factory.mktemp("out")
    done = script(BENCHMARKS, "gpu", item, out, "--quick", "--work", work, "--minutes", "15")
    assert done.returncode == 0, done.stderr
    written = result_path(out, f"{item}-quick")
    commands = json.loads(written.read_bytes())["commands"]
    assert [c["ended"] for c in commands] == ["well"] * len(commands), written.with_suffix(".md").read_text()
    assert all(c["result"]["rows"] for c in commands if "result" in c)
