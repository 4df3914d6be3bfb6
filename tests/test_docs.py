"""Tests of the README and docs/: commands parse, links lead somewhere, tables are those of the results."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

from alexnet.options import defaults
from benchmarks.__main__ import Command
from pipelines.commands import NAMES
from tests.conftest import ROOT
from tests.pages import BLOCKS, FENCE, PAGES, commands_in_text, commands_of

LINKED = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/peers/README.md"))]
MOST_WORDS, MOST_BYTES = 850, 300_000  # of the README, of a picture
OTHERS = {"pip", "pytest", "venv", "http.server"}  # python -m of others


def test_every_block_says_what_it_is() -> None:
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.M)) for page in PAGES)
    assert fences == 2 * len(BLOCKS) > 60
    assert {block.kind for block in BLOCKS} == {"python", "bash", "text"}, "text is what is neither run nor typed"
    for block in BLOCKS:
        if block.kind == "python":
            ast.parse(block.code)


def parse(words: list[str]) -> None:
    """Parse a command as the program itself does. Raises SystemExit or ValueError if it would refuse it."""
    program, *rest = words
    if program == "torchrun":
        script = next((place for place, word in enumerate(rest) if word.endswith("train.py")), None)
        return None if script is None else parse(["python", *rest[script:]])
    if program == "alexnet":
        scripts = {name: script for script, name in NAMES.items()}
        called = ["-m", "benchmarks"] if rest[0] == "bench" else [scripts.get(rest[0], rest[0])]
        if len(rest) == 1:  # a name in a sentence, without what it works on
            assert rest[0] in {*scripts, "--help"}, words
            return None
        return parse(["python", *called, *rest[1:]])
    if program == "make":
        return check_goals(rest)
    assert Path(program).name in ("python", "python3"), words
    if rest[0] != "-m":
        path = ROOT / rest[0]
        assert path.is_file(), words
        parser = importlib.import_module(rest[0].removesuffix(".py").replace("/", ".")).Options
        return parsed(parser, rest[1:], {"default": start_of(parser, rest)} if path.name == "train.py" else {})
    if rest[1] == "alexnet":
        return parse(rest[1:])
    if rest[1] in OTHERS or rest[1:] == ["benchmarks"]:
        return None
    if rest[1] == "benchmarks":
        return parsed(Command, rest[2:])
    return parsed(importlib.import_module(rest[1]).Options, rest[2:])


def check_goals(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        kind = r"^{} \?=" if "=" in word else r"^{}:"
        name = word.partition("=")[0]
        assert word.startswith("-") or re.search(kind.format(re.escape(name)), makefile, re.M), word


def start_of(options: Any, arguments: list[str]) -> Any:
    return defaults(options, [word for word in arguments[1:] if word != "--resume"])  # there is no run to resume


def parsed(options: Any, arguments: list[str], start: dict[str, Any] | None = None) -> None:
    if arguments not in ([], ["--help"]):  # a sentence may name a command alone
        tyro.cli(options, args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **(start or {}))


def all_commands() -> Iterator[tuple[str, list[str]]]:
    for block in BLOCKS:
        if block.kind == "bash":
            yield from ((block.page, words) for words in commands_of(block.code))
    for page in PAGES:
        yield from ((page.name, words) for words in commands_in_text(page))


SETUP = {"export", "pip", "npm", "git", "apt-get", "source"}  # commands of others, which nothing here parses


def test_every_command_has_options_that_exist(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    seen, wrong = 0, []
    for page, words in all_commands():
        if words[0] in SETUP:
            continue
        seen += 1
        try:
            parse(words)
        except (SystemExit, ValueError, AssertionError, ImportError, StopIteration) as error:
            wrong.append(f"{page}: {' '.join(words)}: {error!r} {capsys.readouterr().err[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert seen > 80


@pytest.mark.parametrize("line", ["python tools/evaluate.py runs/a --no-such 1", "alexnet no", "make nothing"])
def test_a_wrong_command_would_be_found(line: str, capsys) -> None:
    with pytest.raises((SystemExit, AssertionError)):
        parse(line.split())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site name them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if not n else f"{slug}-{n}" for slug, most in found.items() for n in range(most + 1)}


def test_every_link_leads_somewhere() -> None:
    wrong, count = [], 0
    for page in LINKED:
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
            count += 1
            path, _, anchor = target.partition("#")
            if re.match(r"https://[\w.-]+/", target):
                continue
            file = page if not path else page.parent / path
            if not file.exists() or (anchor and anchor not in anchors(file)):
                wrong.append(f"{page.name}: {target}")
    assert not wrong and count > 100, wrong


def test_pictures_are_small_and_have_all_colours() -> None:
    pictures = [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.webp")]
    shown = "".join(page.read_text() for page in PAGES)
    assert len(pictures) > 8
    for path in pictures:
        assert path.stat().st_size < MOST_BYTES, path
        assert Image.open(path).mode in ("RGB", "RGBA"), f"{path} has a palette"
        assert f"{path.name})" in shown, f"{path} is on no page"


def messages() -> Iterator[str]:
    """Yield a pattern for each text in the source: what is computed may be anything."""
    for folder in ("alexnet", "pipelines", "tools", "train.py"):
        paths = [ROOT / folder] if folder.endswith(".py") else (ROOT / folder).rglob("*.py")
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.escape(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (re.escape(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
                    yield "".join(parts)


def test_every_message_of_the_troubleshooting_page_is_in_the_source() -> None:
    told = [block.code.strip() for block in BLOCKS if block.page == "troubleshooting.md" and block.kind == "text"]
    patterns = [re.compile(text.replace("\0", ".*")) for text in messages() if len(text.replace("\0", "")) > 25]
    assert len(told) >= 10
    for message in told:
        assert any(p.fullmatch(message) or p.fullmatch(f"{message}x") for p in patterns), f"no source says: {message}"


def rows_of(result: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((ROOT / "benchmarks/results" / result).read_text())["rows"]
    return {row["name"].replace(", 2 threads", "").removeprefix("peer "): row for row in rows}


def cells_of(page: str, first: str) -> list[str]:
    """Return the cells of the table row that begins with ``first``, without emphasis and digits' commas."""
    for line in (ROOT / page).read_text().splitlines():
        cells = [re.sub(r"[*`]|(?<=\d),(?=\d)", "", cell).strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and re.match(rf"{re.escape(first)}(?!\w)", cells[0]):
            return cells
    raise AssertionError(f"{page} has no row {first}")


IN_README = {"turbo": "turbo", "ffcv": "FFCV", "webdataset": "webdataset", "imagefolder": "torchvision's ImageFolder"}


def test_loader_tables_are_those_of_the_result() -> None:
    rows = rows_of("loader-cpu.json")
    loaders = {name.partition(",")[0] for name in rows if name.endswith(", resized")}
    assert len(loaders) >= 11
    for name in loaders:
        crops = [rows.get(f"{name}, {crop}") for crop in ("random", "resized")]
        shown = cells_of("docs/benchmarks.md", name)
        told = [
            text for row in crops for text in ([f"{row['median']:.0f}", f"{row['ratio']:.2f}"] if row else ["", ""])
        ]
        assert shown[1:5] == told, name
        if name in IN_README:
            assert cells_of("README.md", IN_README[name])[1:3] == told[::2]
    reference = f"{rows['reference: decoding whole images']['median']:.0f}"
    assert cells_of("README.md", "decoding whole images")[1] == reference


def percent(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}f}"


@pytest.mark.parametrize(("run", "row"), [("demo", "[ten drawn classes]"), ("solar", "[solar cells")])
def test_accuracies_are_those_of_the_runs(run: str, row: str) -> None:
    result = json.loads((ROOT / f"benchmarks/results/{run}/metrics.json").read_text())
    low, high = (percent(end, 1) for end in result["top1_interval"])
    short, long = cells_of("README.md", row), cells_of("docs/benchmarks.md", row)
    assert short[1] == f"{percent(result['top1'], 1)} % ({low} to {high})"
    assert long[1] == f"{percent(result['top1'], 2)} % ({low} to {high})"
    assert short[2] == f"{percent(result['f1'], 1)} %"
    assert long[2:5] == [f"{percent(result[name], 2)} %" for name in ("precision", "recall", "f1")]
    assert short[3] == long[5] == str(result["samples"])


def test_the_times_and_sizes_of_imagenet_follow_from_results() -> None:
    images = 1_281_167 + 50_000
    rate = rows_of("shard-cpu.json")["shard --resize square"]["median"]
    kilobytes = json.loads((ROOT / "benchmarks/results/loader-cpu.json").read_text())["image"]["mean_kb"]
    second = json.loads((ROOT / "benchmarks/results/demo/metrics.json").read_text())["images_per_second"]
    readme = (ROOT / "README.md").read_text()
    assert f"{images / rate / 60:.0f} minutes on 2 cores; {images * kilobytes / 1e6:.0f} GB" in readme
    assert f"some {50_000 / second / 60:.0f} minutes on 2 cores" in readme
    assert f"[{rate:.0f} images/s]" in (ROOT / "docs/imagenet.md").read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS
