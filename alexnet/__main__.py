"""The command ``alexnet``: every script of the project under one name.

    alexnet train --data SHARDS         # runs train.py; alexnet shard runs tools/shard_imagenet.py
    torchrun --nproc-per-node 8 -m alexnet train --data SHARDS

A wheel has the scripts in alexnet/_commands, a checkout at its top. Their folder comes first on Python's path in this
process and in those that it starts: a ``tools/`` or ``train.py`` of the user's is never taken for ours, and theirs stay
what their own programs import.
"""

import runpy
import sys
from importlib import metadata
from pathlib import Path

COMMANDS = {  # the script of each, and what it does; pipelines/commands.py has the same names
    "shard": ("tools/shard_imagenet.py", "write a folder of images as shards, or verify and repair them"),
    "train": ("train.py", "train a network on shards; without --data, on the demo's, which it makes"),
    "evaluate": ("tools/evaluate.py", "score a checkpoint on a split"),
    "visualize": ("tools/visualize.py", "draw what a network has learned"),
    "report": ("tools/report.py", "make one HTML page about a run or several"),
    "predict": ("tools/predict.py", "predict the classes of image files"),
    "export": ("tools/export.py", "write a checkpoint as torch.export or ONNX"),
    "bench": ("benchmarks/__main__.py", "measure loaders, sharding, training"),
    "demo": ("tools/make_demo.py", "draw the images of the demo"),
}
EXTRAS = {  # of setup.cfg, by the module that it brings
    "matplotlib": "plots",
    "torchvision": "bench",
    "webdataset": "bench",
    "sklearn": "bench",
    "skimage": "bench",
    "nvidia": "dali",
}
HERE = Path(__file__).parent
SCRIPTS = HERE / "_commands" if (HERE / "_commands").is_dir() else HERE.parent


def main() -> None:
    """Run the command that the first argument names. The process ends with its exit code, or 2 for an unknown one."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print("alexnet-pipelines", metadata.version("alexnet-pipelines"))
    elif name in COMMANDS:
        run(str(SCRIPTS / COMMANDS[name][0]), arguments)
    else:
        stop(f"no command {name!r}, only {', '.join(COMMANDS)}", code=2)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: alexnet COMMAND ...", "", *lines, "", "alexnet COMMAND --help shows its options."])


def run(script: str, arguments: list[str]) -> None:
    """Run a script as python would. If an optional package is missing, end with an error that names its extra."""
    sys.path.insert(0, str(SCRIPTS))
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        stop(f"this command needs {missing}: pip install 'alexnet-pipelines[{EXTRAS[missing]}]'")


def stop(message: str, code: int = 1) -> None:
    print("error:", message, file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
