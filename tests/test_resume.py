"""Tests of resuming: by the command that started the run, and around a change of the augmentation."""

import dataclasses
import itertools
import json
import typing
from pathlib import Path

import pytest
import torch

from alexnet import RECIPES, Recipe, checkpoint
from alexnet.files import write_json
from alexnet.options import ABOUT_A_START, Computation, defaults
from pipelines.terminal import run_command
from tests.conftest import assert_refused, command, script
from train import Options

CHANGING = (
    *("--batch-size", "50", "--learning-rate", "0.005", "--log-steps", "1", "--augment", "crop_flip"),
    *("--schedule", "steps", "--rate-steps", "2", "0.1", "--update", "paper", "--average-decay", "0.5"),
    *("--late-augment", "paper", "--late-augment-epoch", "1"),
)


def run(shards: Path, out: Path, epochs: int) -> Path:
    done = command("train.py", "--data", shards, "--out", out, *CHANGING, "--epochs", epochs)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def uninterrupted(numbered_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(numbered_shards, tmp_path_factory.mktemp("runs") / "whole", 3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_at_the_change_or_after_it_a_run_ends_as_the_uninterrupted_one(
    numbered_shards: Path, uninterrupted: Path, tmp_path: Path, stop: int
) -> None:
    """Check bit-identical weights and EMA, after a new augmentation's loader and the velocity at a drop of the rate.

    The run is stopped by its number of epochs, which this schedule does not depend on.
    """
    out = run(numbered_shards, tmp_path / "stopped", stop)
    config = json.loads((out / "config.json").read_text())
    config["settings"]["epochs"] = 3
    (out / "config.json").write_text(json.dumps(config))
    done = command("train.py", "--out", out, "--resume")
    assert done.returncode == 0 and f"after epoch {stop}" in done.stdout, done.stderr
    resumed, whole = (checkpoint.load(folder / "last.pt") for folder in (out, uninterrupted))
    for kind in ("model", "trained"):
        for name, weights in whole[kind].items():
            assert torch.equal(resumed[kind][name], weights), (kind, name)
    assert any(not torch.equal(whole["model"][name], weights) for name, weights in whole["trained"].items())


@pytest.mark.slow
def test_another_variant_or_an_unknown_field_is_refused_with_what_to_do(uninterrupted: Path) -> None:
    assert_refused(script("train.py", "--out", uninterrupted, "--resume", "--variant", "paper"), "--variant bn")
    config = json.loads((uninterrupted / "config.json").read_text())
    config["settings"]["label_smothing"] = 0.1
    (uninterrupted / "config.json").write_text(json.dumps(config))
    assert_refused(script("train.py", "--out", uninterrupted, "--resume"), "label_smothing", "label_smoothing")


def parsed(arguments: list[str]) -> Options:
    """Return the options that train.py reads from its command line."""
    found: list[Options] = []
    run_command(found.append, Options, None, default=defaults(Options, arguments), arguments=arguments)
    return found[0]


def every_option() -> dict[str, list[list[str]]]:
    """Return, for each option of train.py, the words of each of its choices, or of a value that is not the default."""
    others = {"augment": "modern", "late_augment": "paper", "device": "cpu", "data": "my shards/a"}
    others |= {"init": "my weights.pth", "freeze": "features"}
    found = {}
    for owner in (Options, Computation, Recipe):
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            kind = hints[field.name]
            if field.name in ("settings", "computation", "out", "resume"):
                continue
            if kind is bool:
                values: list[list[str]] = [[]]
            elif typing.get_origin(kind) is typing.Literal:
                values = [[choice] for choice in typing.get_args(kind)]
            elif field.name in others:
                values = [[others[field.name]]]
            elif kind in (int, int | None):
                values = [["3"]]
            elif field.name.endswith("_steps"):
                values = [["1", "0.1", "2", "0.01"]]
            else:
                values = [["0.5"]]
            found[f"--{field.name.replace('_', '-')}"] = values
    return found | {"--lr": [["0.3"]]}


def test_every_command_goes_on_with_resume_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check all options of train.py, in as many commands as one of them has choices."""
    monkeypatch.chdir(tmp_path)
    options = every_option()
    assert ["graphs"] in options["--compile"] and options["--deterministic"] == [[]]
    rounds = itertools.zip_longest(*([[flag, *value] for value in values] for flag, values in options.items()))
    lines = [[word for option in chosen if option for word in option] for chosen in rounds]
    for line in [*lines, ["--out", "my runs/x"], ["--recipe", "paper"], []]:
        started = parsed(line)
        started.out.mkdir(parents=True, exist_ok=True)
        write_json(started.out / "config.json", started.configuration())
        for resuming in ([*line, "--resume"], ["--resume", *line], ["--out", str(started.out), "--resume"]):
            resumed = parsed(resuming)
            assert resumed.resume
            for name, value in vars(started).items():
                assert name in ABOUT_A_START or getattr(resumed, name) == value, (resuming, name)


def test_another_recipe_or_value_than_the_runs_own_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    write_json(
        tmp_path / "config.json", parsed([*out, "--recipe", "paper", "--deterministic", "--lr", "0.3"]).configuration()
    )
    resumed = parsed([*out, "--resume", "--no-deterministic", "--epochs", "91"])
    assert (resumed.computation.deterministic, resumed.settings.epochs, resumed.settings.learning_rate) == (
        False,
        91,
        0.3,
    )
    assert parsed([*out, "--resume", "--recipe", "modern"]).settings == RECIPES["modern"]
