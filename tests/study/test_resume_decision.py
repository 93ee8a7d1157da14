"""Which trials a resumed study still has to ask, from the rows of its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import Damaged
from heredity.core.files import Rows
from heredity.core.progress import TimeLeft, TrialMeter, Work
from heredity.core.records import Response
from heredity.study import storage
from heredity.study.plan import Grid
from heredity.study.storage import RESPONSES, RUNS, RunRecord
from tests.support.errors import raises
from tests.support.small_study import MODELS, small_plan, write_rows

PLAN = small_plan()
GRID = Grid(PLAN)


LEFT = TimeLeft({0: Work(24, None, ("ask",))})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A response to each of the 24 trials; those of 2 and 20 are errors."""
    write_rows(tmp_path, PLAN, {2: None, 20: None})
    with Rows(tmp_path / RUNS, RunRecord) as rows:
        rows.extend(RunRecord(model.id, "scripted", "", "", 0.0, 12, 1, 0, {}) for model in MODELS)
    return tmp_path


def left(folder: Path) -> list[int]:
    found = storage.read_earlier_runs(folder, GRID, TrialMeter(None, len(GRID), LEFT, len(GRID)))
    return list(found.still_to_ask(range(len(GRID))))


def test_an_empty_folder_has_everything_to_ask(tmp_path: Path) -> None:
    assert left(tmp_path) == list(range(24))


def test_a_trial_with_a_row_is_not_asked_again_and_an_error_is_a_row(folder: Path) -> None:
    assert left(folder) == []


def test_a_row_that_is_gone_or_torn_is_asked(folder: Path) -> None:
    lines = (folder / RESPONSES).read_bytes().splitlines(keepends=True)
    (folder / RESPONSES).write_bytes(b"".join([*lines[:5], *lines[6:-1], lines[-1][:-9]]))
    assert left(folder) == [5, 23]


def test_errors_are_asked_again_once_they_are_set_aside(folder: Path) -> None:
    storage.set_errors_aside(folder, GRID)
    assert left(folder) == [2, 20]
    assert [row.index for row in Rows(folder / "errors.jsonl", Response)] == [2, 20]


def test_what_a_model_does_not_support_is_no_error_and_stays(folder: Path) -> None:
    path = folder / RESPONSES
    path.write_bytes(path.read_bytes().replace(b'"engine-failure"', b'"unsupported-attack"', 1))
    storage.set_errors_aside(folder, GRID)
    assert left(folder) == [20]


def test_answers_of_an_engine_that_no_run_records_cannot_be_continued(folder: Path) -> None:
    (folder / RUNS).unlink()
    with raises(Damaged, "damaged"):
        left(folder)


def test_a_second_row_of_a_trial_is_damage(folder: Path) -> None:
    path = folder / RESPONSES
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    with raises(Damaged, "damaged"):
        left(folder)
