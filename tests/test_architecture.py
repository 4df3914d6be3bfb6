"""The layout that docs/architecture.md describes: every source file has its line, and imports go one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs/architecture.md"
NO_SOURCES = {"build", "data", "runs", "shared", "tests"}  # at the top level
# What each part may import, besides itself. Function bodies count too; nothing but tests imports train or tests.
ARROWS = {
    "alexnet": set(),
    "pipelines": set(),
    "tools": {"alexnet", "pipelines"},
    "benchmarks": {"alexnet", "pipelines", "tools"},
    "train": {"alexnet", "pipelines"},
    "setup": set(),
    "wheels": set(),
    "docs": set(),
}
PARTS = {*ARROWS, "tests"}


def source_files(folder: Path = ROOT) -> Iterator[Path]:
    """Yield the paths of all source files, relative to the root: .py, .c and .h, without tests and hidden folders."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")) or (folder == ROOT and path.name in NO_SOURCES):
            continue
        if path.is_dir():
            yield from source_files(path)
        elif path.suffix in (".py", ".c", ".h"):
            yield path.relative_to(ROOT)


def module_name(path: Path) -> str:
    """Return the dotted name: pipelines/turbo/__init__.py is pipelines.turbo."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in source_files() if path.suffix == ".py"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, at_import_time: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements below a node, without those in ``if TYPE_CHECKING`` (its ``else`` counts).

    ``at_import_time`` leaves out the bodies of functions, which run later; those of classes run at once.
    """
    for child in node.orelse if isinstance(node, ast.If) and is_type_checking(node) else ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from import_nodes(child, at_import_time)


def imported(name: str, at_import_time: bool) -> set[str]:
    """Return the dotted names that a module imports. ``from alexnet import log`` is alexnet.log if that is a module."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in import_nodes(ast.parse((ROOT / path).read_text(), str(path)), at_import_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        start = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*start, *([node.module] if node.module else [])])
        found |= {inner if (inner := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the names along a circle, the first one again at the end, or an empty list."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows[name]):
            if found := search(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in arrows if (found := search(name, []))), [])


def test_every_source_file_has_a_line_and_every_line_a_file() -> None:
    lines = re.findall(r"^- `([^`]+)` — \S", PAGE.read_text(), re.MULTILINE)
    there = [path.as_posix() for path in source_files()]
    assert sorted(set(there) - set(lines)) == [], f"no line in {PAGE.name}: add `- `PATH` — what it is for`"
    assert sorted(set(lines) - set(there)) == [], f"{PAGE.name} names files that are gone: delete their lines"
    assert len(lines) == len(set(lines)), f"{PAGE.name} has two lines for one file"


def test_every_other_path_on_the_page_exists() -> None:
    paths = set(re.findall(r"`((?:alexnet|pipelines|tools|benchmarks|tests|docs)/[\w./]*)`", PAGE.read_text()))
    assert len(paths) > 100
    missing = [path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()]
    assert missing == [], f"{PAGE.name} names what is not there"


def test_imports_go_one_way() -> None:
    wrong = []
    for name, path in MODULES.items():
        part = name.partition(".")[0]
        targets = {target for target in imported(name, False) if target.partition(".")[0] in PARTS}
        allowed = {part, *ARROWS[part]}
        wrong += [f"{path} imports {target}" for target in sorted(targets) if target.partition(".")[0] not in allowed]
    assert wrong == [], f"against the arrows of {PAGE.name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {name: imported(name, True) & MODULES.keys() - {name} for name in MODULES}
    assert sum(map(len, arrows.values())) > 300  # the imports were found at all
    found = circle(arrows)
    assert found == [], "a circle at import time: " + " -> ".join(found)


# Where tests may look at a clock or wait, and why. No result may depend on how long something takes.
CLOCKS = {
    "conftest.py": "wait_until, which fails only what hangs",
    "fuzz.py": "make fuzz takes as many minutes as it is told",
    "test_stops.py": "signals at random moments, each of which must do",
    "test_survival.py": "kills at random moments, each of which must do",
}


def test_no_test_depends_on_time() -> None:
    """Check that only the files of CLOCKS call a clock, sleep, or give a process a number of seconds."""
    clock = re.compile(r"(?:sleep|monotonic|perf_counter|process_time|time\.time)(?:_ns)?\(|timeout=\d")
    using = {path.name for path in (ROOT / "tests").glob("*.py") if clock.search(path.read_text())}
    assert using == CLOCKS.keys(), "count, wait for an event or with conftest.wait_until, or write a benchmark"
