"""Word problems are varied, and every worked answer is right."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

import pytest

from heredity.core.errors import UsageError
from heredity.lab.examples import Problem, problems, stories, word_problems
from tests.support.errors import raises

ALL = problems(640)
EQUATION = re.compile(r"((?:\d+ [-+*/] )+\d+) = (\d+)")
CONSTANTS = {"2", "3", "5", "10", "100"}  # half and double, three days, coins, percent


def calculate(formula: str) -> Fraction:
    """The value of a formula by the rules of arithmetic, products before sums."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case _:
                return left / right

    return value(ast.parse(formula, mode="eval").body)


def test_there_are_forty_stories_evenly_and_no_question_twice() -> None:
    assert len({each.story for each in ALL}) == len(stories()) >= 40
    counts = [sum(each.story == story.id for each in ALL) for story in stories()]
    assert max(counts) - min(counts) <= 1
    assert len({each.question for each in ALL}) == len(ALL) == 640
    assert all(len(story.asked) >= 2 for story in stories())


def test_every_equation_is_right_and_the_last_one_is_the_answer() -> None:
    for each in ALL:
        found = EQUATION.findall(each.worked)
        assert len(found) >= 2, each
        for formula, result in found:
            assert calculate(formula) == int(result), each
        assert int(found[-1][1]) == each.answer >= 2
        assert each.worked.endswith(f"\nAnswer: {each.answer}")


def test_every_number_of_an_answer_is_given_or_calculated() -> None:
    for each in ALL:
        known = set(re.findall(r"\d+", each.question)) | CONSTANTS
        for formula, result in EQUATION.findall(each.worked):
            assert set(re.findall(r"\d+", formula)) <= known, each
            known.add(result)
        assert set(re.findall(r"\d+", each.worked)) <= known, each


def test_every_number_that_a_story_draws_stands_in_each_of_its_wordings() -> None:
    for story in stories():
        calculated = {name for step in story.steps for name in re.findall(r"\{(\w+) =", step)}
        assert not calculated & set(story.numbers), story.id
        for wording in story.asked:
            assert {f"{{{name}}}" for name in story.numbers} <= set(re.findall(r"\{\w+\}", wording)), wording


def test_answers_have_two_to_five_sentences_and_operations_vary() -> None:
    lengths = [len(re.findall(r"[.](?=\s)", each.worked.split("\n")[0] + " ")) for each in ALL]
    assert min(lengths) >= 2 and max(lengths) <= 5
    operators = "".join(re.sub(r"[^-+*/]", "", f) for each in ALL for f, _ in EQUATION.findall(each.worked))
    assert all(operators.count(each) >= 0.1 * len(operators) for each in "+-*/")
    assert len({len(EQUATION.findall(each.worked)) for each in ALL}) >= 3


def recomputed(each: Problem) -> int:
    """The answer from the numbers of the question alone, for three stories."""
    numbers = [int(found) for found in re.findall(r"\d+", each.question)]
    if each.story == "choir":
        return numbers[0] + numbers[1] + numbers[2] - numbers[3]
    if each.story == "chocolate":
        first = {True: (numbers[0], numbers[1], numbers[2]), False: (numbers[2], numbers[0], numbers[1])}
        bars, rows, across = first[each.question.split()[1] == "has"]
        return bars * rows * across - numbers[3]
    start, removed = (numbers[0], numbers[1])
    return start * 4 - removed


@pytest.mark.parametrize("story", ["choir", "chocolate", "lilies"])
def test_the_answer_is_that_of_the_question(story: str) -> None:
    found = [each for each in ALL if each.story == story]
    assert found and [recomputed(each) for each in found] == [each.answer for each in found]


def test_the_same_seed_gives_the_same_data_and_another_seed_others() -> None:
    first, again, other = word_problems(80), word_problems(80), word_problems(80, seed=1)
    assert first == again and first.digest != other.digest
    assert first.dialogues == word_problems(640).dialogues[:80]
    assert [message.role for message in first.dialogues[0].messages] == ["user", "assistant"]


def test_four_thousand_problems_are_different() -> None:
    assert len({each.question for each in problems(4000)}) == 4000


def test_no_problems_are_an_error() -> None:
    with raises(UsageError, "bad-setting", ["0"]):
        word_problems(0)
