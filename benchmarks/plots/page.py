"""Results as a page to read, and as a picture of the rate of each limit and each stage.

python -m benchmarks.plots.page OUT/*.json --page docs/gpu-results.md --picture docs/ceilings.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.harness.machine import where
from benchmarks.plots.ceilings import draw
from pipelines import DataError
from pipelines.files import write_atomically
from pipelines.terminal import run_command

Items = list[dict[str, Any]]
HIDDEN = {"batch", "memory_mb", "network", "work", "finish", "data"}  # known from the name or the command


@dataclass(frozen=True)
class Options:
    results: tyro.conf.Positional[tuple[Path, ...]]
    """Files that python -m benchmarks gpu wrote."""
    page: Path | None = None
    """Write the tables here, as Markdown."""
    picture: Path | None = None
    """Draw the rates here, as PNG."""
    summary: Path | None = None
    """Write each command, how it ended, its seconds and what it left out here, as JSON."""


def main(options: Options) -> None:
    items = [read(path) for path in options.results]
    machines = {where(result["gpu"], result["torch"]) for item in items for result in results(item)}
    if len(machines) > 1:
        raise DataError(f"these are results of {', '.join(sorted(machines))}: make a page of each, they do not compare")
    if options.page:
        write_atomically(options.page, page(items).encode())
    if options.picture:
        draw(items).savefig(options.picture, dpi=120)
    if options.summary:
        write_atomically(options.summary, json.dumps(summary(items), indent=1).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is no result of python -m benchmarks gpu: {error}") from error


def summary(items: Items) -> dict[str, Any]:
    """Return the machine, and of each command what does not depend on the speed of the machine, with its seconds."""
    first = next((result for item in items for result in results(item)), {})
    about = {name: first.get(name) for name in ("date", "gpu", "cores", "python", "torch", "packages")}
    return about | {
        item["item"]: [
            {name: done.get(name) for name in ("command", "ended", "seconds")}
            | {name: done["result"].get(name) for name in ("partial", "left_out") if "result" in done}
            | {"missing": [one["name"] for one in done.get("result", {}).get("failed", ())]}
            for done in item["commands"]
        ]
        for item in items
    }


def results(item: dict[str, Any]) -> Items:
    return [done["result"] for done in item["commands"] if "result" in done]


def page(items: Items) -> str:
    """Return a page with a heading per item and, under it, each command, how it ended, its lines and its rows."""
    parts = []
    for item in items:
        parts.append(f"# {item['item']}. {item['title']}" + " (smallest sizes: no measurement)" * item["quick"])
        parts.append(machine(item))
        for done in item["commands"]:
            parts.append(f"## `{done['command']}`")
            parts.append(f"Ended {done['ended']}" + (f" after {done['seconds']} s." if "seconds" in done else "."))
            parts.append(described(done["result"]) if "result" in done else "")
            parts.append(fenced(done))
    return "\n\n".join(filter(None, parts)) + "\n"


def machine(item: dict[str, Any]) -> str:
    """Describe date, hardware and versions of the first result."""
    result = next(iter(results(item)), None)
    if not result:
        return ""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    hardware = f"{result['gpu'] or 'no GPU'}, {result['cores']} {result['machine']} cores"
    return f"{result['date']}: {hardware}; Python {result['python']}, torch {result['torch']}, {packages}."


def described(result: dict[str, Any]) -> str:
    said = [*result.get("diagnosis", ())] + [f"left out, no time: {name}" for name in result.get("left_out", ())]
    said += [f"rounds: {result['rounds']} asked"] if result.get("partial") and "rounds" in result else []
    lines = "\n".join(f"- {line}" for line in said)
    return "\n\n".join(filter(None, (lines, f"In {result['unit']}:" * bool(result["unit"]), table(result["rows"]))))


def table(rows: Items) -> str:
    """Return a table with a column per key of the rows. Of several rows, omit keys with the same value in all."""
    names = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict | list))
    kept = [
        name for name in names if name not in HIDDEN and (len({str(r.get(name)) for r in rows}) > 1 or rows[1:] == [])
    ]
    lines = [kept, ["---"] * len(kept)] + [[cell(row.get(name)) for name in kept] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    text = "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")[:200]


def fenced(done: dict[str, Any]) -> str:
    """Return the end of a log, more of it if something went wrong."""
    lines = done.get("log", "").strip().splitlines()[-3 if done["ended"] == "well" else -30 :]
    return "\n".join(("```", *lines, "```")) if lines else ""


if __name__ == "__main__":
    run_command(main, Options, __doc__)
