"""Tests of what users install: the command ``alexnet``, the extras, the wheel and the libjpeg-turbo in it."""

import ast
import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from alexnet import __main__ as command_line
from pipelines import commands
from pipelines.gpu.kernels import SOURCES
from tests import test_frameworks
from tests.conftest import PATIENCE, ROOT, command
from wheels import libjpeg

SHADOW = 'raise SystemExit("the user\'s own")'
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
EXTRAS = dict(CONFIG["options.extras_require"])
ENGINES = ("torch", "cv2", "PIL.Image", "simplejpeg", "ours")


def packages_of(text: str) -> set[str]:
    """Return the names of the requirements in lines of setup.cfg or requirements.txt."""
    lines = (line.split(";")[0].strip() for line in text.splitlines())
    return {re.split(r"[ =<>\[]", line)[0] for line in lines if line and not line.startswith("#")}


@pytest.fixture
def as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let hints be as in an installation whose scripts lie in the folder returned."""
    folder = tmp_path / "_commands"
    folder.mkdir()
    monkeypatch.setattr(commands, "INSTALLED", folder)
    return folder


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """Return a user's folder, with files of the names that our scripts have."""
    for name in ("tools/__init__.py", "benchmarks/__init__.py", "train.py"):
        (tmp_path / "user" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "user" / name).write_text(SHADOW)
    return tmp_path / "user"


def test_each_script_that_parses_options_is_a_command_under_one_name() -> None:
    scripts = [path for path in ("train.py", "benchmarks/__main__.py") if (ROOT / path).exists()]
    scripts += [path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").glob("[!_]*.py")]
    assert sorted(commands.NAMES) == sorted(scripts)
    assert {name: script for script, name in commands.NAMES.items()} == {
        name: script for name, (script, _) in command_line.COMMANDS.items()
    }


def test_the_command_runs_the_projects_scripts_beside_the_users_own(users_folder: Path) -> None:
    helped = command("-m", "alexnet", "demo", "--help", cwd=users_folder)
    assert helped.returncode == 0 and "images of 10 classes" in helped.stdout, helped.stderr


def test_the_command_lists_its_commands_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["alexnet"])
    command_line.main()
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in command_line.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["alexnet", "trian"])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert capsys.readouterr().err.startswith("error: no command 'trian', only shard, train,")


def test_hints_of_an_installation_name_the_command(as_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = as_installed.parent / "venv/bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(folder.parents[1])
    assert commands.command("train.py", "--resume") == "venv/bin/python -m alexnet train --resume"
    for name in ("python", "alexnet"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    assert commands.command("tools/shard_imagenet.py", "my pictures") == "venv/bin/alexnet shard 'my pictures'"
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert commands.command("tools/evaluate.py", "runs/a") == "alexnet evaluate runs/a"
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    line = "python -m torch.distributed.run --nproc-per-node 2 -m alexnet train"
    assert commands.command("train.py", launcher=ranks) == line
    monkeypatch.setattr(sys, "argv", [str(as_installed / "benchmarks/__main__.py"), "loader"])
    assert commands.program() == "alexnet bench"
    for script in (as_installed / "benchmarks/corpus.py", ROOT / "train.py"):
        monkeypatch.setattr(sys, "argv", [str(script)])
        assert commands.program() is None


def test_help_of_an_installation_names_the_command(as_installed: Path) -> None:
    text = (
        "    cat cat.jpg | python tools/predict.py runs/demo -\n"
        "    torchrun --nproc-per-node 8 train.py --data SHARDS   # train.py's own\n"
        "    python -m benchmarks loader [--json FILE]; python -m benchmarks.corpus; python other.py"
    )
    assert commands.as_typed(text) == (
        "    cat cat.jpg | alexnet predict runs/demo -\n"
        "    torchrun --nproc-per-node 8 -m alexnet train --data SHARDS   # train.py's own\n"
        "    alexnet bench loader [--json FILE]; python -m benchmarks.corpus; python other.py"
    )
    as_installed.rmdir()
    assert commands.as_typed(text) == text


@pytest.mark.parametrize("module", command_line.EXTRAS)
def test_a_missing_package_is_an_error_that_names_its_extra(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(f"import {module}.part")
    for name in (module, f"{module}.part"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit):
        command_line.run(str(tmp_path / "script.py"), [])
    extra = command_line.EXTRAS[module]
    assert capsys.readouterr().err == f"error: this command needs {module}: pip install 'alexnet-pipelines[{extra}]'\n"
    assert extra in EXTRAS


def test_extras_that_errors_name_exist_and_all_has_them() -> None:
    sources = "".join(
        path.read_text()
        for part in ("alexnet", "pipelines", "tools", "benchmarks")
        for path in (ROOT / part).rglob("*.py")
    )
    named = set(re.findall(r"alexnet-pipelines\[(\w+)\]", sources))
    assert {"dali", "board", "export", "cluster", "bench"} <= named <= EXTRAS.keys()
    every = re.search(r"\[(.*)\]", EXTRAS["all"])
    assert every and set(every[1].split(",")) == EXTRAS.keys() - {"all", "docs", "solar", "test"}


def test_the_tested_environment_has_every_package_of_the_project() -> None:
    wanted = packages_of("\n".join([CONFIG["options"]["install_requires"], *EXTRAS.values()]))
    pinned = packages_of((ROOT / "requirements.txt").read_text())
    assert wanted - {"alexnet-pipelines", "elpv-dataset"} <= pinned


def test_required_packages_are_those_that_modules_import_at_the_top() -> None:
    """Check that what the loader and the networks import is required, and no more than the commands need besides."""
    here = {"alexnet", "pipelines"}
    found = set()
    for path in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "alexnet").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names} - here - sys.stdlib_module_names
    modules = {"pillow": "PIL", "opencv-python-headless": "cv2"}
    required = {modules.get(name, name) for name in packages_of(CONFIG["options"]["install_requires"])}
    assert required - found == {"psutil"}  # of the benchmarks' processes
    assert found - required == {"triton"}  # torch brings it where there is a GPU


def test_without_a_gpu_the_environment_takes_builds_for_the_cpu() -> None:
    shown = subprocess.run(["make", "-nB", "env", "TORCH=cpu"], cwd=ROOT, capture_output=True, text=True).stdout
    filtering = next(line for line in shown.splitlines() if line.startswith("sed ")).partition(">")[0]
    chosen = subprocess.run(shlex.split(filtering), cwd=ROOT, capture_output=True, text=True).stdout
    changed = set(chosen.splitlines()) ^ set((ROOT / "requirements.txt").read_text().splitlines())
    assert sorted(re.split("[=;]", line)[0] for line in changed) == [
        *("nvidia-dali-cuda130", "torch", "torch", "torchvision", "torchvision")
    ]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in shown
    assert len(re.findall(r"^torch(?:vision)?==[\d.]+\+cpu$", chosen, re.MULTILINE)) == 2


def test_a_source_of_libjpeg_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"libjpeg-turbo-{libjpeg.VERSION}.tar.gz"
    path.write_bytes(b"cut short")

    def unreachable(_: Path) -> None:
        raise OSError("no network")

    monkeypatch.setattr(libjpeg, "from_upstream", unreachable)
    monkeypatch.setattr(libjpeg, "from_debian", lambda path: path.write_bytes(b"another file"))
    with pytest.raises(libjpeg.BuildError, match=f"cannot fetch .*put the file there as {path}"):
        libjpeg.archive(tmp_path)
    assert not path.exists()


@pytest.fixture(scope="module")
def static_libjpeg() -> Path:
    """Return the folder of the static libjpeg-turbo, built if it is missing; its source stays beside it."""
    try:
        libjpeg.main(ROOT / "build/libjpeg")
    except libjpeg.BuildError as error:
        pytest.skip(str(error).splitlines()[0])
    return ROOT / "build/libjpeg"


@pytest.fixture(scope="module")
def wheel(static_libjpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    done = subprocess.run(["make", "wheel", f"WHEELS={folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return an environment with the wheel: this one's packages, no compiler on the path, nothing of the checkout.

    ``run`` runs a program of it, ``python`` is its interpreter, ``folder`` its site-packages.
    """
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    folder = next(home.glob("lib/python3*/site-packages"))
    (folder / "shared.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": str(home / "bin"), "OMP_NUM_THREADS": "1", "CC": "/nonexistent"}

    def run(*line: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        words = [str(home / "bin" / str(line[0])), *map(str, line[1:])]
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)

    before = {path.name for path in folder.iterdir()}
    done = run("python", "-m", "pip", "install", "--no-deps", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    new = {path.name for path in folder.iterdir()} - before
    return SimpleNamespace(run=run, python=home / "bin/python", folder=folder, new=new)


@pytest.mark.slow
def test_the_wheel_holds_two_packages_and_two_libraries_for_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"alexnet_pipelines-[\d.]+-py3-none-manylinux_2_28_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < 2 << 20
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    version = CONFIG["metadata"]["version"]
    assert {name.partition("/")[0] for name in names} == {
        *("alexnet", "pipelines", f"alexnet_pipelines-{version}.dist-info")
    }
    libraries = {"pipelines/turbo/_native.abi3.so", "pipelines/gpu/_emulated.abi3.so"}
    assert {name for name in names if name.endswith(".so")} == libraries
    assert {f"pipelines/gpu/{name}" for name in SOURCES} <= set(names), "compiled where they run"
    scripts = {name.removeprefix("alexnet/_commands/") for name in names if "_commands/" in name}
    assert scripts >= set(commands.NAMES) and all(name.endswith(".py") for name in scripts)
    assert {"alexnet/py.typed", "pipelines/py.typed"} <= set(names)
    assert any(name.endswith("libjpeg/README.ijg") for name in names)


@pytest.mark.slow
def test_the_library_shows_and_asks_for_nothing_of_libjpeg(wheel: Path, tmp_path: Path) -> None:
    library = zipfile.ZipFile(wheel).extract("pipelines/turbo/_native.abi3.so", tmp_path)
    symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout.split()
    assert "render_samples" in symbols
    assert [name for name in symbols if re.match("_?(jpeg|jsimd|jpeg_|j[cd]|Py)", name)] == []


@pytest.mark.slow
def test_a_libjpeg_whose_private_struct_differs_stops_the_build(static_libjpeg: Path, tmp_path: Path) -> None:
    source = libjpeg.unpacked(libjpeg.archive(static_libjpeg), tmp_path)
    header = source / "src/jpegint.h"
    shutil.copy(static_libjpeg / "include/jconfig.h", source / "src")
    (source / "src/jconfigint.h").write_text("#define SIZEOF_SIZE_T 8\n#define INLINE inline\n#define THREAD_LOCAL\n")
    libjpeg.check_struct(source, source)
    member = "boolean (*decode_mcu) (j_decompress_ptr cinfo, JBLOCKROW *MCU_data);"
    for changed in ("int more; void *pointer; " + member, member.replace("boolean", "float")):
        text = header.read_text()
        assert member in text
        header.write_text(text.replace(member, changed))
        with pytest.raises(libjpeg.BuildError, match=r"decode_mcu .* in this libjpeg"):
            libjpeg.check_struct(source, source)
        header.write_text(text)


@pytest.mark.slow
def test_the_wheel_works_beside_the_users_tools_without_a_compiler(
    installed: SimpleNamespace, users_folder: Path
) -> None:
    assert installed.new == {"alexnet", "pipelines", f"alexnet_pipelines-{CONFIG['metadata']['version']}.dist-info"}
    checked = installed.run("python", "-m", "pip", "check", cwd=users_folder)
    assert checked.returncode == 0, checked.stdout

    def run(*line: object, code: int = 0) -> str:
        done = installed.run(*line, cwd=users_folder)
        assert done.returncode == code, done.stderr[-2000:]
        return done.stderr if code else done.stdout

    assert not run("alexnet", "demo", "pictures", "--train", "70", "--val", "20")
    hint = run("alexnet", "bench", "loader", "--data", "shards", code=1)
    line = re.search(r"make them: (.*?);", hint)
    assert line and line[1] == "alexnet shard SOURCE shards"
    run(*line[1].replace("SOURCE", "pictures").split(), "--workers", "2")
    small = (
        "--rounds",
        "1",
        "--batches",
        "2",
        "--short",
        "--batch-size",
        "8",
        "--crops",
        "random",
        "--backends",
        "turbo",
    )
    assert "turbo, compiled decoder" in run("alexnet", "bench", "loader", "--data", "shards", *small)
    assert "\n    alexnet evaluate runs/demo " in run("python", "-m", "alexnet", "evaluate", "--help")
    assert "usage: alexnet evaluate " in run("alexnet", "evaluate", "--help")
    assert "the user's own" in run("python", "-c", "import tools.mine", code=1)


@pytest.mark.slow
def test_ranks_of_the_installed_command_train_beside_the_users_own_train(
    installed: SimpleNamespace, few_shards: Path, users_folder: Path
) -> None:
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--data", few_shards, "--out", "runs/two", "--epochs", "1", "--batch-size", "4", "--keep", "1")
    done = installed.run("python", *ranks, "-m", "alexnet", "train", *options, cwd=users_folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "alexnet evaluate runs/two" in done.stdout
    kept = json.loads((users_folder / "runs/two/env.json").read_text())
    assert kept["commit"] is None and kept["native"] and kept["ranks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["## Several ranks", "## Lightning"])
def test_other_peoples_training_loops_run_with_the_wheel(
    installed: SimpleNamespace, numbered_shards: Path, tmp_path: Path, heading: str
) -> None:
    code = test_frameworks.block(heading).replace('"shards/imagenet"', repr(str(numbered_shards)))
    program = [
        *("from typing import Any", "from torch.nn.functional import cross_entropy", test_frameworks.IMPORTS),
        *("SEEN = []", inspect.getsource(test_frameworks.Network), "make_network, resume_from = Network, None"),
        *(code.replace("batch_size=64", "batch_size=8"), "import pipelines", "from pipelines.turbo import native"),
        f"assert pipelines.__file__.startswith({str(installed.folder)!r}) and native.has_native()",
    ]
    (tmp_path / "loop.py").write_text("\n".join(program))
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = installed.run("python", *(ranks if "ranks" in heading else ()), "loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_library_lives_beside_every_other_libjpeg(installed: SimpleNamespace, tmp_path: Path) -> None:
    """Check in one process, in several orders, that each decoder gives the same pixels as when it was loaded alone."""
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "a.jpg", quality=90)
    (tmp_path / "orders.py").write_text(ORDERS)
    orders = [*permutations(ENGINES)][::40]
    answers = {installed.run("python", "orders.py", *order, cwd=tmp_path).stdout for order in orders}
    assert len(answers) == 1 and len(json.loads(answers.pop())) == len(ENGINES)


ORDERS = """
import hashlib, importlib, json, sys
import numpy as np

data = open("a.jpg", "rb").read()


def load(name):
    if name == "ours":
        from pipelines.turbo import native
        assert native.has_native()
        return lambda: (native.is_whole(data), native.is_whole(data[:-90]))
    module = importlib.import_module(name)
    if name == "torch":
        from torchvision.io import decode_jpeg
        return lambda: decode_jpeg(module.frombuffer(bytearray(data), dtype=module.uint8)).numpy().tobytes()
    if name == "cv2":
        return lambda: module.imdecode(np.frombuffer(data, np.uint8), 1).tobytes()
    if name == "PIL.Image":
        return lambda: module.open("a.jpg").tobytes()
    return lambda: module.decode_jpeg(data).tobytes()


decoders = {name: load(name) for name in sys.argv[1:]}
once = {name: decode() for name, decode in decoders.items()}
assert once == {name: decoders[name]() for name in reversed(decoders)}
assert once["ours"] == (True, False)
print(json.dumps({name: hashlib.sha256(repr(once[name]).encode()).hexdigest() for name in sorted(once)}))
"""


@pytest.mark.slow
def test_a_users_program_passes_strict_type_checks(installed: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from alexnet import RECIPES, AlexNet\n"
        "from pipelines import Augment, open_loader\n"
        "\n"
        "\n"
        "def count(folder: str) -> int:\n"
        '    network = AlexNet(RECIPES["paper"].variant, 1000)\n'
        '    with open_loader(folder, "val", 64, Augment(crop="center"), device="cpu") as loader:\n'
        "        return sum(int(network(batch.images).argmax(1).eq(batch.labels).sum()) for batch in loader)\n"
        "\n"
        "\n"
        'wrong: str = count("shards")\n'
    )
    line = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed.python), "mine.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.findall("error: .*", done.stdout) == [
        'error: Incompatible types in assignment (expression has type "int", variable has type "str")  [assignment]'
    ], done.stdout
