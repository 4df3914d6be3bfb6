"""Tests that the benchmarks measure the work that they name; the size of their figures is not tested."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet import RECIPES
from benchmarks import __main__ as benchmarks
from benchmarks import loader
from benchmarks.evaluate import EvaluateOptions, run_evaluate
from benchmarks.harness.children import Child
from benchmarks.harness.diagnosis import diagnose
from benchmarks.harness.peer_data import extract_images
from benchmarks.harness.timing import MADE_AHEAD, Deadline, Missing, interleave, summarise, too_short
from benchmarks.loader import LoaderOptions, run_loader
from benchmarks.plots.loaders import draw_loaders
from benchmarks.shuffle import Options, epochs, figures, numbered_shards
from benchmarks.small import (
    TEST_SHARE,
    VARIATIONS,
    SmallOptions,
    held_out_groups,
    recipe_of,
    summary,
)
from benchmarks.small_forest import features
from pipelines import AUGMENTS, DataError, load_manifest
from pipelines.images.picture import read_picture
from pipelines.turbo.batches import AHEAD
from tests.conftest import ROOT, assert_refused, command, script


def test_rounds_are_interleaved_and_the_first_is_not_counted() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) or 10 for name in ("limit", "other")}
    *_, rates = interleave(candidates, 3, Deadline())
    assert calls == ["limit", "other"] * 4
    assert [len(values) for values in rates.values()] == [3, 3]


@pytest.mark.parametrize("native", [True, False])
def test_a_loader_benchmark_says_and_keeps_which_decoder_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, native: bool
) -> None:
    monkeypatch.setattr("pipelines.turbo.native.native_library", lambda: object() if native else None)
    monkeypatch.setitem(benchmarks.MEASURES, LoaderOptions, lambda _: iter([{"benchmark": "loader", "rows": []}]))
    benchmarks.main(LoaderOptions(json=tmp_path / "loader.json"))
    expected = "turbo, compiled decoder" if native else "turbo without its compiled part: two thirds of the speed"
    assert expected in capsys.readouterr().out
    assert json.loads((tmp_path / "loader.json").read_text())["decoder"].startswith(expected)


def test_ratios_are_taken_round_by_round() -> None:
    """Check that a machine that halves its speed between rounds changes no ratio."""
    limit, other = summarise({"limit": [100.0, 50.0, 200.0], "other": [80.0, 40.0, 160.0]}, "limit")
    assert limit["ratio"] == 1 and other["ratio"] == 0.8
    assert (other["median"], other["least"], other["most"]) == (80, 40, 160)


def test_a_round_of_the_batches_made_ahead_is_refused(demo_shards: Path) -> None:
    """Check the images needed: 5 batches, 4 of which are made before the clock starts, looked twice as fast."""
    line = ("benchmarks/__main__.py", "loader", "--data", demo_shards)
    assert_refused(script(*line, "--batch-size", "16", "--batches", "5"), "20 batches", "320 images", code=2)
    assert MADE_AHEAD > AHEAD and too_short(5 * MADE_AHEAD, "a round", 16) is None


def test_a_round_of_a_peer_is_an_epoch_which_must_be_long_enough(demo_shards: Path) -> None:
    with pytest.raises(DataError, match=r"has 12 batches.*needs 20 batches, which is 640 images"):
        next(run_loader(LoaderOptions(data=demo_shards, batch_size=32, peers=True)))


def test_the_diagnosis_names_the_slowest_stage_and_a_network_that_is_slower_still() -> None:
    rates = {"read": 50_000.0, "decode": 5_000.0, "pixels": 4_500.0, "batches": 3_000.0, "training": 10_000.0}
    lines = diagnose(rates)
    assert "read 20 us (6%), decode 200 us (60%), crop and batch 2 us (1%), normalise 111 us (33%)" in lines[0]
    assert lines[2].startswith("What bounds training here is decoding") and len(lines) == 3
    assert "the network" in diagnose(rates | {"training": 40.0})[2]
    assert "What bounds training here is copying raw pixels" in diagnose(rates, raw=True)[2]


def test_the_diagnosis_of_a_loader_that_decodes_only_parts() -> None:
    rates = {"read": 50_000.0, "decode": 5_000.0, "pixels": 10_000.0, "batches": 10_000.0, "training": 90_000.0}
    assert "read 20 us (20%), decode 80 us (80%), crop and batch 0 us (0%), normalise 0 us (0%)" in diagnose(rates)[0]


def test_shuffle_figures_tell_a_permutation_from_an_order() -> None:
    rng, images, batch = np.random.default_rng(1), 20_000, 200
    mixed = figures(rng.permutation(images), rng.permutation(images), images, batch)
    assert abs(mixed["moved"] - 1 / 3) < 0.01 and abs(mixed["repeated"]) < 4 / np.sqrt(images)
    assert 0.8 < mixed["neighbours"] < 1.2 and 0.9 < mixed["unevenness"] < 1.1
    ordered = figures(np.arange(images), np.arange(images), images, batch)
    assert ordered["moved"] == 0 and ordered["repeated"] == pytest.approx(1) and ordered["neighbours"] > 50


def test_peers_get_the_files_of_the_shards(demo_shards: Path, tmp_path: Path) -> None:
    manifest = load_manifest(demo_shards)
    images = extract_images(manifest, tmp_path / "work")
    files = sorted(images.rglob("*.jpg"))
    assert len(files) == manifest.split("train").samples
    assert read_picture(files[0].read_bytes(), ".jpg").pixels.shape == (256, 256, 3)
    assert extract_images(manifest, tmp_path / "work") == images, "they are there already"
    (tmp_path / "work" / "images.json").write_text("{}")
    with pytest.raises(DataError, match="made from other shards"):
        extract_images(manifest, tmp_path / "work")


def test_a_child_that_ends_early_is_an_error_with_its_last_words() -> None:
    with pytest.raises(DataError, match=r"toy ended with 1: .*no such module"):
        Child("toy", ["-c", "import sys; sys.exit('no such module')"])


def test_a_child_answers_each_round_whatever_else_it_prints() -> None:
    """Check with a clock that only the toy moves: five seconds of warming up do not count, the epoch's three do."""
    toy = """
import time; from benchmarks.peers.serve import Rounds, answer
now = [0]; time.perf_counter = lambda: now[0]
def pass_time(seconds): now[0] += seconds; print("noise"); return 7
answer(lambda: Rounds(lambda: pass_time(3), "uint8", lambda: pass_time(5)))
"""
    with Child("toy", ["-c", toy]) as child:
        assert child.batch == "uint8" and [child(), child()] == [(7, 3), (7, 3)] and len(child.memory_mb) == 2


def test_a_stopped_measurement_leaves_no_timer_that_keeps_the_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    class CtrlC:
        @staticmethod
        def readline() -> str:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with Child("toy", ["-c", 'print(\'{"batch": ""}\', flush=True); input()']) as child, monkeypatch.context() as patch:
        patch.setattr(child._process, "stdout", CtrlC())
        with pytest.raises(KeyboardInterrupt):
            child()
    timers = [thread for thread in set(threading.enumerate()) - before if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers), "cancelled"


def test_evaluating_is_compared_with_loading(demo_shards: Path) -> None:
    *_, result = run_evaluate(EvaluateOptions(demo_shards, batch_size=200, rounds=1, device="cpu"))
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["loading alone", "evaluating"] and rows[0]["ratio"] == 1
    assert all(row["median"] > 0 for row in rows)


@pytest.mark.slow
def test_each_backend_shuffles_as_the_docs_say(tmp_path: Path) -> None:
    """Check within four deviations of a permutation's figures. DALI's buffer leaves neighbours together."""
    images, batch = 5000, 50
    options = Options(images, batch)
    shards = numbered_shards(tmp_path, images)
    for backend, together in (("turbo", 1.3), ("dali", 4.0)):
        found = figures(*epochs(shards, backend, options), images, batch)
        assert abs(found["moved"] - 1 / 3) < (0.02 if backend == "turbo" else 0.1), (backend, found)
        assert abs(found["repeated"]) < (0.06 if backend == "turbo" else 0.3), (backend, found)
        assert 0.6 < found["neighbours"] < together and 0.9 < found["unevenness"] < 1.1, (backend, found)


@pytest.mark.slow
def test_the_loader_benchmark_measures_and_explains(demo_shards: Path, tmp_path: Path) -> None:
    sizes = ("--batch-size", "16", "--batches", "2", "--rounds", "2", "--threads", "1", "2", "--short")
    written = ("--json", tmp_path / "loader.json", "--picture", tmp_path / "loader.png")
    done = command("-m", "benchmarks", "loader", "--data", demo_shards, "--crops", "random", *sizes, *written)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "loader.json").read_text())
    names = {row["name"] for row in result["rows"]}
    assert {f"{backend}, random, {n} threads" for backend in ("turbo", "dali") for n in (1, 2)} < names
    assert all(row["median"] > 0 and row["memory_mb"] > 0 for row in result["rows"])
    assert "No measurement: --batches has 2 batches" in done.stdout and result["too_short"]
    assert (tmp_path / "loader.png").stat().st_size > 10_000
    assert_refused(command("-m", "benchmarks", "loader", "--data", tmp_path), "no shards at")


def test_a_peer_that_lacks_one_crop_is_measured_with_the_other(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str, *_: object) -> str:
        if "turboloader, random" in name or "ffcv" in name:
            raise DataError(f"{name} ended with 1: Traceback\nno crop" if "turbo" in name else "no module ffcv")
        return name

    monkeypatch.setattr(loader, "Child", start)
    monkeypatch.setattr(loader, "extract_images", lambda manifest, work: work)
    missing = Missing()
    options = LoaderOptions(data=demo_shards, work=tmp_path)
    started = list(loader.start_peers(options, load_manifest(demo_shards), 2, Deadline(), missing))
    assert "peer turboloader, resized, 2 threads" in started and "peer webdataset, random, 2 threads" in started
    assert missing.failed == {"peer ffcv": "no module ffcv", "peer turboloader, random": "no crop"}


def test_the_picture_of_loaders_has_the_fastest_first_and_both_crops() -> None:
    result = json.loads((ROOT / "benchmarks/results/loader-cpu.json").read_text())
    axes = draw_loaders(result).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]  # from the bottom up
    assert names[-2:] == ["turbo, normalised", "turbo"] and names[0] == "imagefolder" and len(names) == 13
    drawn = sorted(bar.get_width() for bar in axes.patches)
    assert drawn == sorted(row["median"] for row in loader.loader_rows(result)[1:])


def test_views_of_one_surface_are_on_one_side_of_a_split() -> None:
    """Check groups of one class, and groups that hold two: each class gives its share of the groups."""
    own = [(label, f"{label}{group}") for label in "ab" for group in range(10) for _ in range(4)]
    mixed = [("c" if number % 3 else "d", f"row {number // 30}") for number in range(300)]
    held_out = held_out_groups(own + mixed, np.random.default_rng(1))
    counts = [sum(group.startswith(start) for group in held_out) for start in ("a", "b", "row")]
    assert counts == [round(TEST_SHARE * 10)] * 3
    assert held_out != held_out_groups(own + mixed, np.random.default_rng(2))


def test_hand_made_features_tell_textures_apart_and_not_their_place() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[::8] = stripes[1::8] = 255
    across, moved, turned = (features(pixels) for pixels in (stripes, np.roll(stripes, 8, 0), stripes.swapaxes(0, 1)))
    assert np.isfinite(across).all() and np.abs(across - moved).max() < 0.05 < np.abs(across - turned).max()


def test_a_summary_compares_with_the_forest_on_the_same_seed() -> None:
    tops = {"forest": {0: 0.5, 1: 0.7, 2: 0.1}, "small": {0: 0.6, 1: 0.82}}
    rows = [
        {"set": "cells", "side": 224, "seed": seed, "method": method, "epochs": None, "top1": top1}
        for method, by_seed in tops.items()
        for seed, top1 in by_seed.items()
    ]
    forest, small = summary(rows)
    assert forest == "cells, 224 pixels, forest: top1 43.3 +- 17.6; 3 seeds"
    assert small == "cells, 224 pixels, small: top1 71.0 +- 11.0, top1 less the forest's 11.0 +- 1.0; 2 seeds"


def test_every_variation_of_the_small_recipe_can_be_trained() -> None:
    for method in VARIATIONS:
        assert recipe_of(method, SmallOptions()) != replace(RECIPES["small"], precision="bf16")
        recipe = recipe_of(method, SmallOptions(epochs=3))
        assert recipe.epochs == 3
        assert recipe.augment in AUGMENTS
