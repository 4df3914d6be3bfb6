"""Hooks of the documentation site: the changelog as a page, the results of benchmarks as files beside the pages."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add CHANGELOG.md, whose links begin at the root, and the files that tables name as their source."""
    changelog = (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changelog))
    for path in sorted(ROOT.glob(f"{RESULTS}/**/*.json")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links out of docs/, which work in a checkout, into links within the site, or into names of files."""
    markdown = markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")
    return re.sub(r"\[([^][]+)\]\(\.\./[^)]+\)", r"\1", markdown)
