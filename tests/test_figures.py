"""The pictures of a run."""

from pathlib import Path

from tests.conftest import script


def test_visualize_draws_a_run(run_folder: Path, numbered_shards: Path) -> None:
    done = script("tools/visualize.py", run_folder / "best.pt", "--data", numbered_shards)
    assert done.returncode == 0, done.stderr
    for name in ("filters", "activations", "curves"):
        assert (run_folder / "pictures" / f"{name}.png").stat().st_size > 10_000
