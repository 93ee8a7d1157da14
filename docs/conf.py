"""The site: the Markdown of this repository, linked as it is on disk. Build it with `make docs`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

project = "heredity"
author = copyright = PROJECT["authors"][0]["name"]
version = release = PROJECT["version"]

extensions = ["myst_parser"]
root_doc = "docs/index"
# The source is the repository itself, so a link that works there works here; only these are pages.
include_patterns = ["docs/**", "*.md"]
exclude_patterns = [".*", "build", "runs", "src", "tests", "bench", "examples", "studies"]
myst_heading_anchors = 4
myst_links_external_new_tab = True

html_theme = "furo"
html_title = f"heredity {release}"
html_show_sphinx = False
html_extra_path = ["site"]  # index.html, which leads to docs/index.html


def add_sidebar(app: Any, name: str, source: list[str]) -> None:  # noqa: ARG001
    """Make the sidebar from the sections of docs/index.md, which on GitHub stays a plain page of links."""
    if name != root_doc:
        return
    for part in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption = part.partition("\n")[0]
        pages = "\n".join(re.findall(r"\]\(([\w./-]+\.md)\)", part))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_sidebar)
