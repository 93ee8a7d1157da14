"""The file of a task and its questions: every mistake has a code and a line, and names the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import BadInput, UsageError
from heredity.lab.task import (
    NEW,
    QUESTIONS,
    SEEN,
    WAYS,
    question_probes,
    read_questions,
    read_task,
    without_places,
)
from tests.lab.adapt.tasks import CODES, N, task_file
from tests.lab.adapt.tasks import SEEN as SEEN_FACTS
from tests.support.errors import raises

MODEL = "scripted:careful"
EXAMPLE = Path(__file__).parents[3] / "examples" / "adapt" / "support.toml"


def changed(folder: Path, old: str, new: str) -> Path:
    path = task_file(folder, model=MODEL)
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    return path


def with_rows(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = task_file(folder, model=MODEL)
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "code", "mentions"),
    [
        ("margin = 0.2", "marginn = 0.2", "unknown-key", ["marginn", "margin"]),
        ('"prompt", "few_shot"', '"promt", "few_shot"', "unknown-name", ["promt", "prompt"]),
        ('"prompt", "few_shot"', '"few_shot", "few_shot"', "name-twice", ["few_shot"]),
        ("margin = 0.2", "margin = 1.5", "bad-setting", ["margin"]),
        ("answer_tokens = 16", "answer_tokens = 0", "bad-setting", ["answer_tokens"]),
        ("answer_tokens = 16", "seeds = [1, 1]", "bad-setting", ["seeds"]),
        ("steps = 2", "steps = 2\nminutes = 1.0", "bad-setting", ["steps", "minutes"]),
        ("steps = 2", "minutes = nan", "bad-setting", ["minutes"]),
        ('manual = "manual"', "", "missing-key", ["manual"]),
        ('text = "Answer by codes."', "", "missing-key", ["prompt"]),
        ('text = "Answer by codes."', 'text = " "', "missing-key", ["prompt"]),
        ("n = 2", "n = 0", "bad-setting", ["n"]),
        ("[few_shot]", "[settings.lora]\nrnk = 2\n\n[few_shot]", "unknown-name", ["rnk", "rank"]),
        ("[few_shot]", "[settings.lora]\nsteps = 2\n\n[few_shot]", "bad-setting", ["steps"]),
        ("[few_shot]", '[settings.lora]\nrank = "x"\n\n[few_shot]', "wrong-type", ["lora"]),
        ("[few_shot]", "[settings.prompt]\nlr = 1.0\n\n[few_shot]", "unknown-name", ["prompt"]),
        ("[few_shot]", '[grading]\nby = "json"\n\n[few_shot]', "bad-setting", ["field"]),
        ("[few_shot]", '[grading]\nby = "luck"\n\n[few_shot]', "unknown-name", ["luck"]),
    ],
)
def test_a_mistake_in_the_file_has_a_code(
    tmp_path: Path, old: str, new: str, code: str, mentions: list[str]
) -> None:
    with raises(BadInput, code=code, mentions=mentions):
        read_task(changed(tmp_path, old, new))


def test_paths_are_relative_to_the_file_and_do_not_name_the_task(tmp_path: Path) -> None:
    here, there = (read_task(task_file(tmp_path / name, model=MODEL)) for name in ("here", "there"))
    assert Path(here.train).parent == tmp_path / "here" and here != there
    assert without_places(here) == without_places(there)
    assert read_task(tmp_path / "here" / "task.toml", "scripted:mixed").model == "scripted:mixed"


def test_a_quick_task_keeps_every_way(tmp_path: Path) -> None:
    task = read_task(changed(tmp_path, "steps = 2", "minutes = 5.0"))
    assert task.ways == WAYS and not task.is_quick and not task.steps
    assert task.quick().is_quick and task.quick().steps == 2 and not task.quick().budget.minutes


def test_the_example_reads_and_its_questions_are_those_of_the_package() -> None:
    task = read_task(EXAMPLE)
    questions = read_questions(task)
    assert task.ways == WAYS and len(questions.test) == 2 * questions.n_seen == len(questions.train)


# --- the questions --------------------------------------------------------------------------------


def test_a_fact_is_seen_if_a_training_row_names_it(tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path, model=MODEL))
    questions = read_questions(task)
    assert [each.is_seen for each in questions.test] == [n % 2 == 0 for n in range(N)]
    assert questions.n_seen == len(SEEN_FACTS) and questions.has_facts
    asked = question_probes(questions, task.grading)
    assert {probe.technique for probe in asked} == {SEEN, NEW} and all(p.is_baseline for p in asked)
    assert len({probe.id for probe in asked}) == N


def test_without_facts_there_is_one_kind_of_question(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "Code of pump 1?", "completion": "It is E101."}]
    path = with_rows(tmp_path, "train", rows)
    questions = read_questions(read_task(path))
    assert not questions.has_facts and {each.is_seen for each in questions.test} == {None}
    task = read_task(path)
    assert {probe.technique for probe in question_probes(questions, task.grading)} == {QUESTIONS}


@pytest.mark.parametrize(
    ("name", "rows", "code", "line"),
    [
        (
            "test",
            [{"question": "a b?", "answer": "E1"}, {"question": " A  b? ", "answer": "E2"}],
            "bad-input",
            2,
        ),
        ("test", [{"question": "Code of  PUMP 0?", "answer": "E1"}], "bad-input", 1),
        ("test", [{"question": "Is it E1?", "answer": "E1"}], "bad-input", 1),
        ("test", [{"question": "a?", "answer": ""}], "missing-key", 1),
        ("test", [{"question": "a?", "answer": []}], "missing-key", 1),
        ("test", [{"answer": "E1"}], "missing-key", 1),
        ("test", [], "bad-input", None),
        ("train", [], "bad-input", None),
        ("train", [{"messages": [{"role": "assistant", "content": "Hi"}]}], "bad-input", 1),
    ],
)
def test_a_mistake_in_the_rows_has_a_code_and_a_line(
    tmp_path: Path, name: str, rows: list[dict[str, object]], code: str, line: int | None
) -> None:
    path = with_rows(tmp_path, name, rows)
    with raises(BadInput, code=code, mentions=[f"{name}.jsonl", *([line] if line else [])]):
        read_questions(read_task(path))


def test_numbers_and_lists_are_answers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": "a?", "answer": 12},
        {"question": "b?", "answers": ["E1", "E2"]},
    ]
    questions = read_questions(read_task(with_rows(tmp_path, "test", rows)))
    assert [each.answers for each in questions.test] == [("12",), ("E1", "E2")]


def test_rows_can_be_limited(tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path, model=MODEL))
    few = read_questions(msgspec.structs.replace(task, examples=3, questions=5))
    assert (len(few.train), len(few.test), few.n_seen) == (3, 5, 3)
    assert few.digest != read_questions(task).digest
    assert len(CODES) == N


def test_the_manual_of_the_package_has_two_sets_of_questions(tmp_path: Path) -> None:
    path = changed(tmp_path, 'train = "train.jsonl"', 'train = "support_manual:all"')
    with raises(UsageError, code="bad-setting", mentions=["support_manual:train"]):
        read_questions(read_task(path))
