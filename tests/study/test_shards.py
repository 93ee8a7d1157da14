"""Parts of a study that are asked apart, and what they come to together."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.files import Rows
from heredity.study.plan import Grid
from heredity.study.spec import StudySpec
from heredity.study.storage import RUNS, RunRecord, run_records
from heredity.study.study import Study
from heredity.study.workers import WORKERS, PartProgress, StudyPart
from tests.support.errors import raises
from tests.support.studies import (
    APPLICATION,
    Recorder,
    by_index,
    drop_circumstances,
    plan,
    probes,
    responses,
    study,
)

MADE = plan(["scripted:mixed", "scripted:flaky"], n=2)
GRID = Grid(MADE)


def test_every_trial_is_in_one_part_and_both_members_of_a_pair_are_in_the_same() -> None:
    parts = [list(StudyPart(i, 5).of(GRID, iter(range(len(GRID))))) for i in range(1, 6)]
    assert sorted(index for part in parts for index in part) == list(range(len(GRID)))
    n = MADE.n_per_model
    assert all(
        {index % n for index in part if index < n} == {i % n for i in part if i >= n} for part in parts
    )
    assert all(parts)


def test_parts_are_a_shuffle_that_the_seed_of_the_plan_decides() -> None:
    other = Grid(msgspec.structs.replace(MADE, seed=1))
    assert list(StudyPart(1, 2).of(GRID, iter(range(50)))) != list(StudyPart(1, 2).of(other, iter(range(50))))


def test_parts_come_to_the_study_of_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for i in (2, 3, 1):
        part = study(folder, MADE).ask_part(StudyPart(i, 3))
        assert part == folder / "shards" / f"{i}-of-3"
    found: list[Recorder] = []

    def loader(grown: object) -> Recorder:
        found.append(Recorder())
        return found[-1]

    study(folder, MADE, loader).run()
    assert found == []  # nothing was left to ask
    study(tmp_path / "one", MADE).run()
    assert by_index(folder) == by_index(tmp_path / "one")
    assert len(responses(folder)) == MADE.n_trials
    assert drop_circumstances(folder) == drop_circumstances(tmp_path / "one")


def test_collecting_shows_the_progress_and_copies_no_row_twice(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    study(folder, MADE).ask_part(StudyPart(1, 2))
    n = len(list(StudyPart(1, 2).of(GRID, iter(range(len(GRID))))))
    assert study(folder, MADE).collect() == [PartProgress(StudyPart(1, 2), n, n)]
    runs = len(list(run_records(folder)))
    study(folder, MADE).ask_part(StudyPart(2, 2))
    for _ in range(2):
        done = study(folder, MADE).collect()
        assert [each.n_done for each in done] == [n, MADE.n_trials - n]
        assert len(responses(folder)) == MADE.n_trials
    assert len(list(run_records(folder))) == 2 * runs


def test_a_part_resumes_and_a_missing_part_is_asked_by_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    part = study(folder, MADE).ask_part(StudyPart(1, 2))
    path = part / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]) + b'{"torn')
    study(folder, MADE).ask_part(StudyPart(1, 2))
    whole = set(StudyPart(1, 2).of(GRID, iter(range(len(GRID)))))
    assert set(by_index(part)) == whole
    study(folder, MADE).run()
    study(tmp_path / "one", MADE).run()
    assert by_index(folder) == by_index(tmp_path / "one")


def test_parts_of_another_number_are_refused(tmp_path: Path) -> None:
    study(tmp_path / "parts", MADE).ask_part(StudyPart(1, 2))
    with raises(UsageError, "bad-usage", [2, 3]):
        study(tmp_path / "parts", MADE).ask_part(StudyPart(1, 3))


def test_a_part_with_another_plan_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    part = study(folder, MADE).ask_part(StudyPart(1, 2))
    shutil.rmtree(part)
    study(part, msgspec.structs.replace(MADE, seed=9)).run()
    with raises(Damaged, "damaged"):
        study(folder, MADE).collect()


def test_parts_that_compute_a_model_differently_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    part = study(folder, MADE).ask_part(StudyPart(1, 2))
    run = next(run_records(part))
    with Rows(part / RUNS, RunRecord) as rows:
        rows.append(msgspec.structs.replace(run, numerics="other", base_numerics="other"))
    with raises(NotComparable, "not-comparable", ["scripted:mixed", part]):
        study(folder, MADE).collect()
    left = folder / WORKERS / "1"  # of a driver that was killed
    shutil.move(part, left)
    with raises(NotComparable, "not-comparable", ["scripted:mixed", left]):
        study(folder, MADE).run()


def test_a_study_that_stops_early_has_no_parts(tmp_path: Path) -> None:
    made = Study(
        StudySpec(
            ["scripted:leaky", "scripted:careful"],
            APPLICATION,
            probes=probes(12),
            until_decided=True,
            out=tmp_path / "x",
        )
    )
    with raises(UsageError, "bad-usage"):
        made.ask_part(StudyPart(1, 2))


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1/99999"])
def test_what_is_not_a_part_is_refused(text: str) -> None:
    with raises(UsageError, "bad-usage"):
        StudyPart.parse(text)


def test_a_part_is_read_from_its_words() -> None:
    assert StudyPart.parse("3/64") == StudyPart(3, 64)


def test_rows_of_a_worker_whose_driver_was_killed_are_collected_and_its_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    part = study(folder, MADE).ask_part(StudyPart(1, 2))
    n = len(responses(part))
    (part / "plan.json").unlink()  # a worker has none
    (folder / "workers").mkdir()
    part.rename(folder / "workers" / "1")
    (folder / "workers" / ".DS_Store").touch()
    assert study(folder, MADE).collect() == []
    assert len(responses(folder)) == n and not (folder / "workers").exists()
    study(folder, MADE).run()
    study(tmp_path / "one", MADE).run()
    assert by_index(folder) == by_index(tmp_path / "one")
