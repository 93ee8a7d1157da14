"""The forecast of a task: what is trained and asked except the probes, and what the questions can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from heredity.lab import task as ways
from heredity.lab.adapt import AdaptFile, read_adapt_file
from heredity.lab.runner import Task, tasks
from heredity.lab.task import (
    DISCORDANCE,
    AdaptTask,
    ManualIndex,
    Questions,
    TaskForecast,
    forecast_task,
    lines,
    read_questions,
    read_task,
)
from heredity.stats.power import POWER, paired_power
from tests.lab.adapt.tasks import SEEN, N, task_file


def given(folder: Path, more: str = "seeds = [0, 1]") -> tuple[AdaptTask, Questions, Sequence[Task]]:
    task = read_task(task_file(folder, more=more, model="scripted:careful"))
    questions = read_questions(task)
    guards = ways.guards_of(task, questions, ManualIndex("", "", 0.0, 0, 0))
    return task, questions, tasks(ways.lineage_plan(task, guards, {}))


def test_training_lessons_and_answers_are_counted(tmp_path: Path) -> None:
    task, questions, possible = given(tmp_path)
    found = forecast_task(task, questions, possible)
    # Four trained ways with two seeds, three ways behind guards, and the untouched model.
    assert (found.n_trained, found.n_ways, found.n_answers, found.n_lessons) == (8, 7, 12 * N, len(SEEN))
    said = lines(found)
    assert said[0] == "Training: 8 models, 2 steps of 4 rows each, 64 rows."
    assert said[1].startswith("Answers except to probes: 288 to test questions, 12 of the teacher; ")
    one = msgspec.structs.replace(found, n_trained=1, steps=1, batch_size=1)
    assert lines(one)[0] == "Training: 1 model, 1 step of 1 row each, 1 row."
    assert f"{len(SEEN)} about {len(SEEN)} facts" in " ".join(said)
    guards = [each for each in possible if each.child.name in ("prompt", "retrieval")]
    bare = forecast_task(task, questions, guards)
    assert (bare.n_trained, bare.n_lessons, bare.n_answers) == (0, 0, 3 * N)
    assert not any("Training" in line or "teacher" in line for line in lines(bare))
    assert 0 < bare.seconds[0] < found.seconds[0] < found.seconds[1]


def test_minutes_of_training_are_told_where_they_are_the_budget(tmp_path: Path) -> None:
    task, questions, possible = given(tmp_path)
    timed = msgspec.structs.replace(task, budget=msgspec.structs.replace(task.budget, steps=0, minutes=5.0))
    assert lines(forecast_task(timed, questions, possible))[0] == "Training: 8 models, 5 min each."


def test_the_least_difference_is_that_of_the_exact_test_over_the_ways(tmp_path: Path) -> None:
    task, questions, possible = given(tmp_path)
    found = {each.scope: each for each in forecast_task(task, questions, possible).scopes}
    assert [each.n_questions for each in found.values()] == [N, len(SEEN), N - len(SEEN)]
    least = found["all"].detectable
    assert least is not None
    for difference, is_shown in ((least, True), (least - 0.01, False)):
        power = paired_power(N, DISCORDANCE + difference, difference, 0.05 / 7)
        assert (power >= POWER) == is_shown
    alone = forecast_task(task, questions, [each for each in possible if each.child.name == "prompt"])
    assert alone.scopes[0].detectable is not None and alone.scopes[0].detectable < least
    few = questions._replace(test=questions.test[:4])
    assert forecast_task(task, few, possible).scopes[0].detectable is None
    assert any(
        "all questions" in line and "no difference" in line
        for line in lines(forecast_task(task, few, possible))
    )


def test_questions_about_one_fact_count_less_and_rows_without_facts_have_one_scope(tmp_path: Path) -> None:
    task, questions, possible = given(tmp_path)
    twice = questions._replace(test=(*questions.test, *questions.test))
    once, both = (forecast_task(task, each, possible).scopes[0] for each in (questions, twice))
    assert (both.n_questions, both.n_clusters) == (2 * N, N)
    apart = twice._replace(test=tuple(each._replace(fact="", is_seen=None) for each in twice.test))
    (whole,) = forecast_task(task, apart, possible).scopes
    assert (whole.scope, whole.n_clusters) == ("all", 2 * N)
    assert whole.detectable is not None and both.detectable is not None and once.detectable is not None
    assert whole.detectable < both.detectable < once.detectable


@pytest.mark.parametrize("is_of_now", [True, False])
def test_a_folder_of_an_earlier_release_has_no_such_forecast(tmp_path: Path, is_of_now: bool) -> None:
    task, questions, possible = given(tmp_path / "task")
    forecast: TaskForecast = forecast_task(task, questions, possible)
    held = msgspec.to_builtins(AdaptFile("0" * 32, "", task, None, {}, None, forecast))
    if not is_of_now:
        del held["forecast"]
    (tmp_path / "adapt.json").write_bytes(msgspec.json.encode(held))
    assert read_adapt_file(tmp_path).forecast == (forecast if is_of_now else None)
