"""Tests that the report of a run, in a real browser, is whole, is readable on a phone, and fetches nothing."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from tests.conftest import NUMBERED_IMAGES, PATIENCE, assert_refused, script

# Measure the page in the browser and append the result, so that --dump-dom prints it
PROBE = """<script>addEventListener("load", () => document.body.append(JSON.stringify({
  pictures: [...document.images].map(image => image.naturalWidth),
  rows: document.querySelectorAll("tbody tr").length,
  fetched: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  wide: document.documentElement.scrollWidth, window: innerWidth,
  back: getComputedStyle(document.body).backgroundColor,
}) + "PROBED"))</script>"""


@pytest.fixture
def seen_run(seen: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a run with its metrics and pictures."""
    return shutil.copytree(seen, tmp_path / "run", symlinks=True)


def open_page(page: Path, *options: str) -> dict:
    """Return what headless Chromium measures. The page's policy is removed, so that a fetch would be noticed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    probed = page.with_name("probed.html")
    text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert removed == 1
    probed.write_text(text.replace("</body>", PROBE + "</body>"))
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", *options]
    line += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    found = re.findall(r"(\{[^{}]*\})PROBED", unescape(done.stdout))
    assert found, done.stderr[-1000:]
    return json.loads(found[-1])


def test_a_page_shows_the_run_and_two_runs_beside_each_other(seen_run: Path, tmp_path: Path) -> None:
    done = script("tools/report.py", seen_run)
    assert done.returncode == 0, done.stderr
    page = seen_run / "report.html"
    metrics = json.loads((seen_run / "metrics.json").read_text())
    text = page.read_text()
    assert f"{100 * metrics['top1']:.2f} %" in text and "settings.learning_rate" in text and "packages.torch" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "everything is within the page"
    assert "<script" not in text

    seen = open_page(page)
    assert len(seen["pictures"]) == 10 and min(seen["pictures"]) > 300
    assert seen["rows"] > NUMBERED_IMAGES and seen["fetched"] == []
    assert seen["wide"] <= seen["window"], "a phone need not scroll sideways"

    dark = open_page(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert (seen["back"], dark["back"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")

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


def test_what_comes_from_files_is_escaped(run_folder: Path) -> None:
    (run_folder / "metrics.json").write_text(json.dumps({"confused": [["<script>alert(1)</script>", "<b>", 1]]}))
    assert script("tools/report.py", run_folder).returncode == 0
    text = (run_folder / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


def test_what_is_no_run_is_refused(tmp_path: Path, run_folder: Path) -> None:
    assert_refused(script("tools/report.py", tmp_path / "none"), "no run at", "log.jsonl is missing")
    (run_folder / "metrics.json").write_text("{")
    assert_refused(script("tools/report.py", run_folder), "metrics.json is damaged")
    assert_refused(script("tools/report.py", run_folder, run_folder), "given twice", code=2)
