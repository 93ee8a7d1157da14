"""How an item is put: as a conversation with examples as turns, or as a text to go on from."""

from __future__ import annotations

import pytest

from heredity.evals import tasks
from heredity.evals.run import answer_text, put
from heredity.evals.tasks import EvalTask

ALL = {task.name: task for task in tasks.load()}


def test_in_a_chat_the_examples_are_earlier_turns_that_are_shared() -> None:
    task = ALL["arithmetic"]
    request = put(task, task.items[0], 2, "chat").request
    assert [message.role for message in request.messages] == ["user", "assistant"] * 2 + ["user"]
    assert request.messages[1].content == task.shots[0].references[0]
    assert request.n_shared == 4
    assert request.decoding.temperature == 0


def test_a_plain_text_ends_where_the_answer_begins() -> None:
    task = ALL["translation"]
    request = put(task, task.items[0], 1, "plain").request
    assert request.messages == ()
    assert request.prefill == (
        "English: The dog is black.\nGerman: Der Hund ist schwarz.\n\n"
        "English: The house is very old.\nGerman:"
    )


def test_examples_are_those_of_the_items_group() -> None:
    task = ALL["translation"]
    last = next(item for item in task.items if item.group == "es-en")
    assert "El gato duerme." in put(task, last, 1, "plain").request.prefill


def test_options_go_on_behind_a_space_from_the_sentence_in_either_form() -> None:
    task = ALL["cloze"]
    item = task.items[0]
    for form in ("plain", "chat"):
        found = put(task, item, 1, form)
        assert found.continuations == tuple(" " + option for option in item.options)
        assert found.request.prefill.endswith(item.input)
    assert found.request.messages[1].content == "The girl kicked the ball."


def test_a_function_body_begins_on_its_own_line() -> None:
    task = ALL["code"]
    found = put(task, task.items[0], 1, "plain")
    assert found.request.prefill.endswith('"""\n')
    assert "\n    return x * 3\n\n" in found.request.prefill
    assert all(option.startswith("    ") for option in found.continuations)


def test_an_example_with_letters_is_answered_by_its_letter() -> None:
    task = ALL["choice"]
    request = put(task, task.items[0], 2, "chat").request
    assert [request.messages[i].content for i in (1, 3)] == ["A", "B"]
    assert "B. a cat" in request.messages[2].content


@pytest.mark.parametrize("task", ALL.values(), ids=lambda task: task.name)
def test_what_is_put_is_known_by_its_key(task: EvalTask) -> None:
    asked = [put(task, item, n, form) for item in task.items for n in (0, 3) for form in ("chat", "plain")]
    assert len({one.key for one in asked}) == len(asked)
    assert asked[0].key == put(task, task.items[0], 0, "chat").key


def test_braces_in_an_item_are_text() -> None:
    task = ALL["code_output"]
    (item,) = [item for item in task.items if '{"k": 1}' in item.input]
    assert '{"k": 1}' in put(task, item, 0, "chat").request.messages[0].content


def test_a_plain_answer_is_its_first_line() -> None:
    assert answer_text("\n 12\nQuestion: more", "plain") == "12"
    assert answer_text(" 12\nand why\n", "chat") == "12\nand why"
    assert answer_text(" \n", "plain") == ""
