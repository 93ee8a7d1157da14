"""`heredity eval`, by the real command: what a user sees, and what comes of a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Run
from tests.support.errors import check_refused


def test_two_models_are_a_table_and_a_comparison(run: Run, place: Path) -> None:
    args = (
        "eval",
        "scripted:helpful",
        "scripted:refuser",
        "--tasks",
        "arithmetic,translation",
        "--limit",
        "6",
    )
    done = run(*args, "--out", "graded")
    assert done.returncode == 0, done.stderr
    assert "0 % [0, 39] n 6" in done.stdout
    assert "points above scripted:helpful, item by item; p after Holm over 2 comparisons" in done.stdout
    assert "not shown" in done.stdout
    assert done.stdout.rstrip().endswith("graded/grades.json")
    again = run(*args, "--out", "graded")
    assert again.stdout == done.stdout


def test_a_dry_run_counts_what_is_open_and_asks_nothing(run: Run, place: Path) -> None:
    asked = ("eval", "scripted:helpful", "--tasks", "choice", "--limit", "3", "--out", "dry")
    done = run(*asked, "--dry-run")
    assert done.returncode == 0 and done.stdout.split()[4:7] == ["scripted:helpful", "3", "3"], done.stdout
    assert not (place / "dry").exists()
    graded = run(*asked)
    assert "a part: at most 3 items of each task" in " ".join(graded.stdout.split())
    assert run(*asked, "--dry-run").stdout.split()[4:] == ["scripted:helpful", "3", "0"]


def test_a_task_that_a_model_cannot_be_asked_is_refused_in_words(run: Run) -> None:
    done = run("eval", "scripted:helpful", "--tasks", "cloze", "--tasks", "choice", "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
    assert "scripted:helpful is not asked cloze: the engine 'scripted' tells no" in " ".join(
        done.stdout.split()
    )


def test_json_is_the_file_of_grades(run: Run, place: Path) -> None:
    done = run("eval", "scripted:helpful", "--tasks", "choice", "--limit", "3", "--out", "raw", "--json")
    assert json.loads(done.stdout) == json.loads((place / "raw" / "grades.json").read_text())


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (("--tasks", "cloz"), "unknown-name", ["cloze"]),
        (("--shots", "x"), "", ["--shots", "x"]),
        (("--shots", "9"), "bad-usage", [5, 9]),
        (("--limit", "0"), "bad-usage", [0]),
        (("--tasks", "arithmetic", "--no-chat-template"), "bad-usage", ["--no-chat-template"]),
        (("--tasks", "code"), "bad-usage", ["scripted:helpful"]),
    ],
)
def test_a_mistake_is_one_line(run: Run, args: tuple[str, ...], code: str, named: list[object]) -> None:
    done = run("eval", "scripted:helpful", *args, "--out", "mistakes")
    check_refused(done, code, mentions=named)
