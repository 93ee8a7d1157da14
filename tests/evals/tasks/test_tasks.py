"""The tasks that ship: enough items, all original in the file, and right."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName
from heredity.evals import metrics, tasks
from heredity.evals.metrics import ItemAnswer
from heredity.evals.tasks import EvalTask
from heredity.redteam.text import last_number
from tests.support.errors import raises

FOLDER = Path(tasks.__file__).parent
ALL = tasks.load()
MINE = """
title = "Mine"
description = "Mine."
edition = "1"
metric = "letter"
prompt = "{input} {options}"
plain = "{input}"

[[shot]]
input = "Shown?"
reference = "yes"
wrong = ["no"]

[[item]]
id = "one"
input = "Right?"
reference = "yes"
wrong = ["no"]
"""


def mine(folder: Path, old: str = "", new: str = "") -> Path:
    path = folder / "mine.toml"
    assert old in MINE
    path.write_text(MINE.replace(old, new) if old else MINE)
    return path


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_a_task_has_forty_items_that_differ_and_three_examples(task: EvalTask) -> None:
    assert len(task.items) >= 40
    assert len({(item.group, item.input) for item in task.items}) == len(task.items)
    assert task.n_shots >= 3


@pytest.mark.parametrize("name", ["choice", "cloze"])
def test_the_right_option_stands_at_every_place_equally_often(name: str) -> None:
    (task,) = tasks.load([name])
    places = Counter(item.options.index(item.references[0]) for item in task.items)
    assert set(places.values()) == {len(task.items) // 4}


def test_labels_are_equally_frequent() -> None:
    (task,) = tasks.load(["classification"])
    for group in ("sentiment", "topic"):
        labels = Counter(item.references[0] for item in task.items if item.group == group)
        assert len(set(labels.values())) == 1


def test_no_end_of_a_sentence_stands_in_it() -> None:
    (task,) = tasks.load(["cloze"])
    for item in task.items:
        assert item.references[0].strip(".").lower() not in re.findall(r"\w+", item.input.lower()), item.id


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_every_reference_is_right_and_every_other_option_is_wrong(task: EvalTask) -> None:
    metric = metrics.load(task.metric)
    for item in task.items:
        for reference in item.references if metric.ASKS == "reply" else ():
            assert metric.score(item, ItemAnswer(reference)) == 1.0, (item.id, reference)
        for place, option in enumerate(item.options):
            logs = tuple(
                -1.0 * len(other.encode()) * (1 + (i != place)) for i, other in enumerate(item.options)
            )
            assert metric.score(item, ItemAnswer(option, logs)) == (option in item.references), (
                item.id,
                option,
            )


def test_every_function_of_the_code_task_is_right_and_its_rivals_are_wrong() -> None:
    """Our own code is run here, to prove it; what a model writes is never run anywhere."""
    rows = tomllib.loads((FOLDER / "code.toml").read_text())["item"]
    for row in rows:
        head = row["input"].strip("\n")
        assert is_proved(f"{head}\n{row['reference']}", row["proof"]), row["id"]
        for body in row["wrong"]:
            assert not is_proved(f"{head}\n{body}", row["proof"]), (row["id"], body)


def is_proved(program: str, proof: str) -> bool:
    names: dict[str, object] = {}
    exec(program, names)
    try:
        return bool(eval(proof, names))  # noqa: S307 (our own file)
    except Exception:
        return False


def test_every_program_prints_what_its_item_says() -> None:
    (task,) = tasks.load(["code_output"])
    for item in task.items:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(item.input, {})
        assert told.getvalue().strip("\n") == item.references[0], item.id


def test_every_sum_is_right() -> None:
    (task,) = tasks.load(["arithmetic"])
    signs = {"times": "*", "divided by": "/", "+": "+", "-": "-"}
    n = 0
    for item in task.items:
        found = re.fullmatch(r"What is (\d+) (times|divided by|\+|-) (\d+)\?", item.input)
        if found:
            n += 1
            a, sign, b = found.groups()
            value = {"*": int(a) * int(b), "/": int(a) / int(b), "+": int(a) + int(b), "-": int(a) - int(b)}
            assert last_number(item.references[0]) == value[signs[sign]], item.id
    assert n >= 40


def test_a_file_of_ones_own_is_a_task(tmp_path: Path) -> None:
    (task,) = tasks.load([str(mine(tmp_path))])
    assert task.name == "mine"
    assert task.items[0].options == ("yes", "no")


def test_a_changed_word_is_another_digest(tmp_path: Path) -> None:
    (before,) = tasks.load([str(mine(tmp_path))])
    (after,) = tasks.load([str(mine(tmp_path, "Right?", "Wrong?"))])
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("{input} {options}", "{inptu}", 6, ("unknown-name", ["{input}"])),
        ('metric = "letter"', 'metric = "leter"', 5, ("unknown-name", ["letter"])),
        ('id = "one"', 'idd = "one"', 15, ("unknown-key", ["idd", "id"])),
        ('input = "Right?"', 'input = "Shown?"', 14, ("bad-input", ["one"])),
        ('input = "Right?"', 'input = "Right?"\ngroup = "x"', 14, ("unknown-name", ["group.x"])),
        ('id = "one"', 'id = "One!"', 14, ("bad-input", [])),
        ('plain = "{input}"', 'plain = "?"', 7, ("missing-key", ["input"])),
    ],
)
def test_a_mistake_names_its_line(
    tmp_path: Path, old: str, new: str, line: int, said: tuple[str, list[str]]
) -> None:
    path = mine(tmp_path, old, new)
    with raises(BadInput, *said) as caught:
        tasks.load([str(path)])
    assert caught.value.line == line


def test_an_option_task_needs_wrong_options(tmp_path: Path) -> None:
    path = mine(tmp_path, 'reference = "yes"\nwrong = ["no"]', 'reference = "yes"')
    with raises(BadInput, "missing-key", mentions=["wrong"]):
        tasks.load([str(path)])


def test_a_name_of_heredity_s_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "cloze.toml"
    path.write_text(MINE)
    with raises(BadInput, "name-twice"):
        tasks.load([str(path)])


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with raises(UnknownName, "unknown-name", mentions=["translation"]):
        tasks.load(["translaton"])


def test_every_metric_is_used_by_a_task() -> None:
    assert {task.metric for task in tasks.load(has_pictures=True)} == set(registry.names("evals.metrics"))
