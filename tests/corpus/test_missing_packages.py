"""A library that a corpus needs and that is not installed is named before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts a process

TEXTS = '[[source]]\nname = "docs"\nkind = "text"\npath = "texts"\n'
PAGES = '[[source]]\nname = "pages"\nkind = "html"\npath = "pages"\n'
PICTURES = '[[source]]\nname = "shots"\nkind = "images"\npath = "pictures"\n[picture]\nside = 16\n'


def without(missing: str, tmp_path: Path, recipe: str, workers: int) -> subprocess.CompletedProcess[str]:
    """`heredity corpus build` where a library cannot be imported."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{missing}.py").write_text("raise ImportError('not installed')\n")
    for folder, name, text in (("texts", "a.txt", "A text."), ("pages", "a.html", "<p>A page.</p>")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture: reading it would be told first")
    (tmp_path / "pictures" / "a.txt").write_text("A picture.")
    (tmp_path / "shelf.toml").write_text(recipe)
    path = os.pathsep.join([str(tmp_path / "lib"), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", "heredity", "corpus", "build", "shelf.toml", "--workers", str(workers)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.proof)])
@pytest.mark.parametrize(
    ("missing", "recipe", "extra"),
    [
        ("tokenizers", TEXTS, ".[torch]"),
        ("tokenizers", PICTURES, ".[torch]"),
        ("trafilatura", TEXTS + PAGES, ".[corpus]"),
    ],
)
def test_what_is_missing_is_said_at_once(
    missing: str, recipe: str, extra: str, workers: int, tmp_path: Path
) -> None:
    found = without(missing, tmp_path, recipe, workers)
    assert found.returncode == 2 and f"pip install -e '{extra}'" in found.stderr
    assert len(found.stderr.splitlines()) == 1 and "reading" not in found.stderr
    assert not list(tmp_path.glob(".shelf*")) and not (tmp_path / "shelf").exists()
