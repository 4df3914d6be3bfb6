"""Tests that the report of a run, in a real browser, is whole, is readable on a phone, and fetches nothing."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from alexnet import AlexNet
from alexnet.mistakes import MOST, Mistake, write_mistakes
from alexnet.report.charts import Line, line_chart, ticks
from alexnet.report.page import page
from alexnet.tables import write_csv
from tests.conftest import assert_refused, script

PHONE = 390  # pixels wide
# Measure the page in a frame as wide as a phone, after two clicks on a heading and one in the confusion matrix.
# Append the result to the page around the frame, so that --dump-dom prints it.
PROBE = """addEventListener("load", () => {
  const heading = [...document.querySelectorAll("th button")].find(button => button.textContent === "images");
  const table = heading.closest("table");
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const before = column();
  for (let click = 0; click < 2; click++) table.tHead.rows[0].cells[0].querySelector("button").click();
  const cell = document.querySelector(".matrix td a");
  if (cell) location.hash = cell.hash;
  setTimeout(() => parent.postMessage({
    pictures: [...document.images].map(image => image.naturalWidth),
    charts: [...document.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect().width),
    hovers: document.querySelectorAll("svg title").length,
    axis: getComputedStyle(document.querySelector("svg text")).fill,
    before, sorted: column(),
    opened: cell ? [...document.querySelectorAll(".pair")].filter(pair => pair.offsetHeight > 0).map(p => p.id) : null,
    tiles: document.querySelectorAll(".tile").length,
    broken: [...document.querySelectorAll("nav a")].filter(link => !document.querySelector(link.hash)).length,
    fetched: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
    wide: document.documentElement.scrollWidth, window: innerWidth,
    back: getComputedStyle(document.body).backgroundColor,
  }, "*"), 100);
});"""
FRAME = """<iframe src="probed.html" width="390" height="900" style="border: 0"></iframe><script>
addEventListener("message", event => document.body.append("PROBE" + JSON.stringify(event.data) + "PROBED"));
</script>"""


@pytest.fixture
def seen_run(run_folder: Path, numbered_shards: Path) -> Path:
    """Return the folder of a run with its metrics and pictures."""
    for tool in ("evaluate", "visualize"):
        more = ("--searched", 20) if tool == "visualize" else ()
        done = script(f"tools/{tool}.py", run_folder / "best.pt", "--data", numbered_shards, *more)
        assert done.returncode == 0, done.stderr
    return run_folder


def open_page(page: Path, *options: str, policy: bool = True) -> dict:
    """Return what headless Chromium measures. Without its policy, the page could fetch, and that would be noticed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    kept = rf"\g<1> 'sha256-{digest}'\g<2>" if policy else ""
    text, found = re.subn(r'(<meta http-equiv="Content-Security-Policy"[^>]*)(">)', kept, page.read_text())
    assert found == 1
    page.with_name("probed.html").write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME)
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1000", *options]
    line += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    measured = re.findall(r"PROBE(\{.*\})PROBED", unescape(done.stdout))
    assert measured, done.stderr[-1000:]
    return json.loads(measured[-1])


def test_a_page_shows_the_run_and_two_runs_beside_each_other(seen_run: Path, tmp_path: Path) -> None:
    done = script("tools/report.py", seen_run)
    assert done.returncode == 0, done.stderr
    page = seen_run / "report.html"
    metrics = json.loads((seen_run / "metrics.json").read_text())
    text = page.read_text()
    assert f"{100 * metrics['top1']:.2f} %" in text and "settings.learning_rate" in text and "packages.torch" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text), "everything is within the page"
    assert text.count("<script") == 1 and "licence of the data" in text and "Most often confused: " in text

    seen = open_page(page, policy=False)
    assert len(seen["pictures"]) == 7 and min(seen["pictures"]) > 300
    assert len(seen["charts"]) == 7 and seen["hovers"] > 20 and seen["tiles"] > 10
    assert seen["fetched"] == [] and seen["broken"] == 0
    assert seen["wide"] <= seen["window"] == PHONE, "a phone need not scroll sideways"
    assert seen["sorted"] == sorted(seen["before"], reverse=True) != seen["before"], (
        "the second click turned them round"
    )

    dark = open_page(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert dark["sorted"] == seen["sorted"], "the page's policy lets its own script run"
    assert (seen["back"], dark["back"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")
    assert seen["axis"] != dark["axis"], "charts follow the colours"

    other = tmp_path / "other"
    other.mkdir()
    for name in ("log.jsonl", "env.json"):
        (other / name).symlink_to(seen_run / name)
    config = json.loads((seen_run / "config.json").read_text())
    config["settings"]["learning_rate"] = 0.125
    (other / "config.json").write_text(json.dumps(config))
    done = script("tools/report.py", other, seen_run, "--out", tmp_path / "both.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "both.html").read_text()
    marked = re.findall(r"<tr class=differs><td>([^<]*)</td>", text)
    assert marked == ["settings.learning_rate"] and "0.125" in text
    assert "Not evaluated yet: python tools/evaluate.py" in text


HOSTILE = '"><script>alert(1)</script>'


def write_results(folder: Path, names: Sequence[str]) -> None:
    """Write what tools/evaluate.py and tools/visualize.py would: three images of each class, predicted as class 0."""
    wnids = [f"{name}{i}" for i, name in enumerate(names)]
    (folder / "metrics.json").write_text(json.dumps({"confused": [[names[1], names[0], 3]], "top1": 0.5}))
    classes = [[i, wnid, name, 3, 0.5, 0.5, 0.5] for i, (wnid, name) in enumerate(zip(wnids, names, strict=True))]
    write_csv(folder / "classes.csv", [["class", "wnid", "name", "images", "precision", "recall", "f1"], *classes])
    rows = [[f"{wnid}/{i}", wnid, wnids[0], int(wnid != wnids[0]), 0.75] for wnid in wnids for i in range(3)]
    write_csv(folder / "predictions.csv", [["key", "true", "predicted", "rank", "confidence"], *rows])
    mistakes = [Mistake(row[0], row[1], row[2], 0.75) for row in rows if row[3]]
    write_mistakes(folder, mistakes[:MOST], [np.full((224, 224, 3), 99, np.uint8)] * len(mistakes[:MOST]))


def test_what_comes_from_files_is_escaped(run_folder: Path) -> None:
    write_results(run_folder, ["fine", HOSTILE, HOSTILE])
    Image.new("RGB", (600, 300)).save(run_folder / "pictures" / "answers.png", pnginfo=told(HOSTILE))
    assert script("tools/report.py", run_folder).returncode == 0
    text = (run_folder / "report.html").read_text()
    assert text.count("<script") == 1 and "alert(1)</script>" not in text and text.count("&lt;script&gt;") > 10


def told(description: str) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", description)
    return text


def test_the_policy_allows_the_page_its_own_script_and_nothing_else() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page("", []))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert len(policy.split("; ")) == 4 and len(policy.split("; ")[3].split()) == 2


def test_a_confusion_opens_its_images(run_folder: Path) -> None:
    write_results(run_folder, ["cat", "dog", "hen"])
    assert script("tools/report.py", run_folder).returncode == 0
    seen = open_page(run_folder / "report.html")
    assert seen["opened"] == ["pair-0-1-0"], "the cell of dogs predicted as cats opens their images, and no others"
    assert seen["tiles"] == 6 + 6, "in the gallery and in the two cells"
    assert seen["wide"] <= PHONE
    text = (run_folder / "report.html").read_text()
    assert "Most often confused: dog with cat, 3 times." in text
    variant = json.loads((run_folder / "config.json").read_text())["settings"]["variant"]
    assert f"{sum(p.numel() for p in AlexNet(variant, 3).parameters()):,}" in text


def test_of_many_classes_the_most_confused_pairs_open_their_images(run_folder: Path) -> None:
    write_results(run_folder, [f"class {i}" for i in range(40)])
    assert script("tools/report.py", run_folder).returncode == 0
    text = (run_folder / "report.html").read_text()
    assert "class 1, predicted class 0: 3 of 3" in text and text.count("<details>") == 20 + 1


def test_results_of_other_files_are_left_out_or_refused(run_folder: Path) -> None:
    write_results(run_folder, ["cat", "dog"])
    (run_folder / "mistakes.csv").write_text("key,true,predicted,probability\na,other,cat0,0.5\n")
    (run_folder / "predictions.csv").write_text("key,true,predicted,rank,confidence\na,other,cat0,1,0.5\n")
    assert script("tools/report.py", run_folder).returncode == 0
    text = (run_folder / "report.html").read_text()
    assert 'class="tile' not in text and "matrix" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
    (run_folder / "mistakes.csv").write_text("key,true\na\n")
    assert_refused(script("tools/report.py", run_folder), "mistakes.csv is damaged")


def test_ticks_are_round_and_few() -> None:
    assert ticks(1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and ticks(0.27) == [0, 0.1, 0.2]
    for end in (1e-9, 0.003, 7.0, 90.0, 123_456.0):
        assert 3 <= len(ticks(end)) <= 6 and ticks(end)[-1] <= end * 1.0001


def test_a_chart_marks_single_points_and_escapes_names() -> None:
    chart = line_chart("<b>", [Line("<i>", [1.0], [0.5]), Line("b", [1.0, 2.0], [0.5, 0.25], 1, "dashed")])
    assert "<title>&lt;i&gt; epoch 1: 0.5</title>" in chart and 'class="dot c0"' in chart
    assert "<i>" not in chart and "<title>b epoch 2: 0.25</title>" in chart
    assert line_chart("nothing", [Line("a", [], [])]) == ""


def test_what_is_no_run_is_refused(tmp_path: Path, run_folder: Path) -> None:
    assert_refused(script("tools/report.py", tmp_path / "none"), "no run at", "log.jsonl is missing")
    (run_folder / "metrics.json").write_text("{")
    assert_refused(script("tools/report.py", run_folder), "metrics.json is damaged")
    assert_refused(script("tools/report.py", run_folder, run_folder), "given twice", code=2)
