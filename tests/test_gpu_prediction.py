"""Tests of the predicted time of decoding on a GPU."""

import pytest

from benchmarks.gpu_decode import DecodeOptions, Kernel, kernels, table
from pipelines import DataError
from tests.conftest import ROOT


def test_bytes_and_instructions_follow_the_shapes() -> None:
    """Check images of 64x64 by hand: 16 MCUs of 6 blocks, all of which a crop of 48 may touch."""
    options = DecodeOptions(side=64, size=48, file_bytes=3200, symbols=1000, pieces=40, longest=1.5)
    found = {kernel.name: kernel for kernel in kernels(options)}
    assert found["find_markers"].bytes == 3200
    assert found["decode_pieces"].bytes == 3200 + 16 * 6 * 128
    assert found["decode_pieces"].instructions == int(2 * 1000 / 40 * 1.5 * 170), "of two warps"
    assert found["transform"].bytes == 16 * 6 * (128 + 64)
    assert found["finish"].bytes == 16 * 6 * 64 + 48 * 48 * 3 * 2
    assert found["finish"].instructions == 48 * 48 * (62 + 168) // 32


def test_a_kernel_takes_the_longer_of_bytes_and_instructions() -> None:
    options = DecodeOptions(reached=0.5, gigahertz=2, terabytes=3)
    assert Kernel("", 3_000_000, 0).microseconds(options) == 1
    assert Kernel("", 0, 132 * 4 * 1000).microseconds(options) == 1


def test_the_docs_hold_the_prediction_of_the_code() -> None:
    """Compare all cells but the measured ones."""
    page = [line.rsplit("|", 2)[0] for line in (ROOT / "docs/gpu.md").read_text().splitlines() if line.count("|") > 2]
    for line in (*table(DecodeOptions()), *table(DecodeOptions(resized=True, size=224))):
        assert line.rsplit("|", 2)[0] in page, f"docs/gpu.md lacks {line}: python -m benchmarks decode"


@pytest.mark.parametrize("wrong", [{"size": 300}, {"reached": 0}, {"pieces": 0}, {"terabytes": 0}])
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises((DataError, ValueError)):
        DecodeOptions(**wrong)
