"""Tests of what the GPU's decoder needs before it runs: a header that it can decode, compiled kernels, a GPU."""

import io
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.gpu import compiler
from pipelines.gpu.decoder import PieceDecoder
from pipelines.gpu.layout import read_layout
from tests import jpegs

REFUSED = {
    "no restart": (jpegs.Kind(), "it has no restart markers"),
    "4:1:1": (jpegs.Kind(jpegs.COMMON["4:1:1"], restart_interval=4), "its chroma sampling is 4x1, 1x1, 1x1"),
    "no table": (jpegs.Kind(restart_interval=4, without=(0xC4,)), "it lacks a table"),
    "no frame": (jpegs.Kind(restart_interval=4, without=(0xC0,)), "it is not a baseline JPEG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_headers_are_refused_with_the_reason(name: str) -> None:
    kind, reason = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_layout(jpegs.generate(random.Random(0), kind))


@pytest.mark.parametrize(
    ("options", "reason"), [({"progressive": True}, "it is progressive"), ({"exif": b""}, "it has no restart markers")]
)
def test_encoders_headers_are_refused_with_the_reason(options: dict, reason: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG", **options)
    for cut in (None, 200):
        with pytest.raises(ValueError, match=reason if cut is None else "it is damaged"):
            read_layout(file.getvalue()[:cut])


@pytest.fixture(scope="module")
def has_nvrtc() -> None:
    try:
        compiler.nvrtc_version()
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("has_nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_it_compiles_without_spills(architecture: str) -> None:
    """Check registers too: more than 64 would halve the threads that decode at a time."""
    code, report = compiler.compile_kernels(architecture)
    assert code.startswith(b"\x7fELF")
    kernels = re.findall(r"entry function '(\w+)'", report)
    registers = dict(zip(kernels, map(int, re.findall(r"Used (\d+) registers", report)), strict=True))
    assert set(kernels) == {"find_markers", "decode_pieces", "transform", "finish"}
    assert re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report) == [("0", "0")] * 4
    assert registers["decode_pieces"] < 64 and max(registers.values()) <= 80, registers


@pytest.mark.usefixtures("has_nvrtc")
def test_compiled_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that it is compiled once, again if the file is damaged, and if nothing can be kept."""
    compiled = []

    def compile_kernels(architecture: str) -> tuple[bytes, str]:
        compiled.append(architecture)
        return b"code of " + architecture.encode(), ""

    monkeypatch.setattr(compiler, "compile_kernels", compile_kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [compiler.cubin(name) for name in ("sm_90", "sm_80", "sm_90")] == [
        b"code of sm_90",
        b"code of sm_80",
    ] * 1 + [b"code of sm_90"]
    assert compiled == ["sm_90", "sm_80"]
    for file in (tmp_path / "cache" / "alexnet-pipelines").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert compiler.cubin("sm_90") == b"code of sm_90"
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert compiler.cubin("sm_90") == b"code of sm_90"
    assert compiled == ["sm_90", "sm_80", "sm_90", "sm_90"]


@pytest.mark.usefixtures("has_nvrtc")
def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(OSError, match="cannot compile the GPU's decoder for sm_12: "):
        compiler.compile_kernels("sm_12")
    assert {80, 90, 100} <= set(compiler.known_architectures())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    file = jpegs.generate(random.Random(0), jpegs.Kind(restart_interval=4))
    with pytest.raises(OSError, match="torch finds none"):
        PieceDecoder(
            read_layout(file), torch.device("cuda"), rows=1, size=8, dtype=torch.uint8, mean_image=None, scale=None
        )
