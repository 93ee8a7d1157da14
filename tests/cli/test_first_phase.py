"""On a terminal a verb names a phase before it does anything that may take seconds."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.progress import Progress
from heredity.core.terminal import Display
from heredity.lab import adapt as adapting

TASK = Path(__file__).parents[2] / "examples" / "adapt" / "support.toml"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def phases_of(monkeypatch: pytest.MonkeyPatch, *args: str, code: int = 0) -> list[str]:
    """The phases that a command shows on a terminal, in order."""
    seen: list[Progress] = []
    monkeypatch.setattr(Display, "__call__", lambda _, progress: seen.append(progress))
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(Terminal()):
        assert main(list(args)) == code
    return [each.phase for each in seen if each.phase]


@pytest.mark.parametrize("args", [["judges"], ["judges", "show", "rules"]])
def test_the_judges_name_their_start(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert phases_of(monkeypatch, *args)[0] == "starting"


@pytest.mark.parametrize(
    ("args", "work", "code"),
    [
        (["demo", "--out", "."], "judging the answers", 2),  # the folder holds another file
        (["studies"], "reading the studies", 0),
        (["gate", "."], "reading the study", 2),
    ],
)
def test_a_verb_of_some_seconds_names_its_start_and_its_work(
    args: list[str], work: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").touch()
    assert phases_of(monkeypatch, *args, code=code) == ["starting", work]


def test_a_search_of_an_index_says_that_it_searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The heat pump is green.", "utf-8")
    index = str(tmp_path / "index")
    assert phases_of(monkeypatch, "index", str(tmp_path / "docs"), "--out", index)[0] == "reading the folder"
    assert phases_of(monkeypatch, "index", index, "--ask", "heat pump")[0] == "searching"


def test_a_dry_run_of_adapt_says_that_it_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "dry_run", lambda *_: None)
    assert phases_of(monkeypatch, "adapt", str(TASK), "--dry-run") == ["starting", "planning"]
