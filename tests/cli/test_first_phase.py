"""On a terminal a verb names a phase before it does anything that may take seconds."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.progress import Progress
from heredity.core.terminal import Display
from heredity.experiments.adapt import run as adapting

TASK = Path(__file__).parents[2] / "examples" / "adapt" / "support.toml"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def phases_of(monkeypatch: pytest.MonkeyPatch, *args: str) -> list[str]:
    """The phases that a command shows on a terminal, in order."""
    seen: list[Progress] = []
    monkeypatch.setattr(Display, "__call__", lambda _, progress: seen.append(progress))
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(Terminal()):
        assert main(list(args)) == 0
    return [each.phase for each in seen if each.phase]


@pytest.mark.parametrize("args", [["judges"], ["judges", "show", "rules"]])
def test_the_judges_name_their_start(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert phases_of(monkeypatch, *args)[0] == "starting"


def test_a_search_of_an_index_says_that_it_searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The heat pump is green.", "utf-8")
    index = str(tmp_path / "index")
    assert phases_of(monkeypatch, "index", str(tmp_path / "docs"), "--out", index)[0] == "reading the folder"
    assert phases_of(monkeypatch, "index", index, "--ask", "heat pump")[0] == "searching"


def test_a_dry_run_of_adapt_says_that_it_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "dry_run", lambda *_: None)
    assert phases_of(monkeypatch, "adapt", str(TASK), "--dry-run") == ["starting", "planning"]
