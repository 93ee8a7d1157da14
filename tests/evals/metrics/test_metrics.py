"""What an answer is worth, against published implementations and the rules that each metric states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core import registry
from heredity.core.errors import UnknownName
from heredity.evals import metrics
from heredity.evals.metrics import ItemAnswer
from heredity.evals.metrics.chrf import chrf
from heredity.evals.metrics.rouge_l import rouge_l
from heredity.evals.tasks import TaskItem
from tests.support.errors import raises

# By sacrebleu 2.6.0 (CHRF().sentence_score / 100) and rouge-score 0.1.2 ("rougeL", no stemmer).
PUBLISHED = [
    ("the cat sat on the mat", "the cat is on the mat", 0.645779, 0.833333),
    ("abc", "abcdefgh", 0.322506, 0.0),
    ("ab", "ab", 1.0, 1.0),
    ("a", "b", 0.0, 0.0),
    ("the the the the", "the cat", 0.178689, 0.333333),
    ("x y z", "z y x", 0.333333, 0.333333),
    ("Je bois du lait", "Il boit du lait.", 0.403498, 0.5),
    ("¿Qué hora es?", "Que hora es", 0.529063, 0.666667),
]
OPTIONS = TaskItem("a", "A question?", ("red",), ("blue", "red", "green"))


def item(*references: str, asked: str = "?") -> TaskItem:
    return TaskItem("a", asked, references)


def score(name: str, it: TaskItem, text: str, logs: tuple[float, ...] = ()) -> float | None:
    return metrics.load(name).score(it, ItemAnswer(text, logs))


@pytest.mark.parametrize(("said", "reference", "by_chrf", "by_rouge"), PUBLISHED)
def test_chrf_and_rouge_l_are_the_published_ones(
    said: str, reference: str, by_chrf: float, by_rouge: float
) -> None:
    assert chrf(said, reference) == pytest.approx(by_chrf, abs=1e-6)
    assert rouge_l(said, reference) == pytest.approx(by_rouge, abs=1e-6)


@pytest.mark.parametrize("name", ["chrf", "rouge_l", "exact", "number"])
def test_the_best_of_several_references_counts(name: str) -> None:
    assert score(name, item("nothing 1", "the 7"), "the 7") == 1.0


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("42", 1.0), ("40 + 2 = 42.", 1.0), ("The answer is 42.0", 1.0), ("42 or 43", 0.0), ("-42", 0.0),
        ("142", 0.0), ("forty-two", None), ("", None), ("x42", None), ("50-42", 1.0), ("4.2", 0.0),
    ],
)  # fmt: skip
def test_the_last_number_is_the_answer(said: str, is_right: float | None) -> None:
    assert score("number", item("42"), said) == is_right


def test_a_comma_groups_three_digits() -> None:
    assert score("number", item("1200"), "It is 1,200.") == 1.0
    assert score("number", item("5"), "3, 4, 5") == 1.0


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("[1, 2]", 1.0), ("`[1, 2]`", 1.0), ("```\n[1,  2]\n```", 1.0), ('"[1, 2]".', 1.0), ("[1,2]", 0.0),
        ("Output: [1, 2]", 0.0), ("```python\n```", None), ("  ", None),
    ],
)  # fmt: skip
def test_exact_match_takes_off_quotes_fences_and_a_full_stop(said: str, is_right: float | None) -> None:
    assert score("exact", item("[1, 2]"), said) == is_right


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("B", 1.0), ("(B) red", 1.0), ("Answer: B.", 1.0), ("A", 0.0), ("red", 1.0), ("Red.", 1.0),
        ("A red one", None), ("It's B", 1.0), ("D", None), ("", None), ("Because", None), ("a red one", None),
    ],
)  # fmt: skip
def test_a_letter_must_stand_alone(said: str, is_right: float | None) -> None:
    assert score("letter", OPTIONS, said) == is_right


@pytest.mark.parametrize(
    ("said", "is_right"),
    [("Red!", 1.0), ("It is red", 1.0), ("blue", 0.0), ("red or blue", None), ("reddish", None), ("", None)],
)
def test_a_label_is_named_as_a_word_and_alone(said: str, is_right: float | None) -> None:
    assert score("label", OPTIONS, said) == is_right


def test_the_likeliest_option_is_by_byte() -> None:
    # "blue" has 4 bytes and "red" 3: -4 / 4 is more than -3.6 / 3, though it is less in sum
    assert score("likelihood", OPTIONS, "", (-4.0, -3.6, -9.0)) == 0.0
    assert score("likelihood", OPTIONS, "", (-5.0, -3.6, -9.0)) == 1.0


def test_a_tie_is_no_choice() -> None:
    assert score("likelihood", OPTIONS, "", (-4.0, -3.0, -9.0)) == 0.0


def test_a_missing_probability_is_unclear() -> None:
    assert score("likelihood", OPTIONS, "", (-4.0, float("nan"), -9.0)) is None
    assert score("likelihood", OPTIONS, "", ()) is None


def test_the_floor_is_a_blind_choice_or_the_input_itself() -> None:
    assert metrics.load("letter").floor(OPTIONS) == pytest.approx(1 / 3)
    assert metrics.load("chrf").floor(item("ab", asked="ab")) == 1.0
    assert metrics.load("number").floor(item("4")) == 0.0


@pytest.mark.parametrize("name", registry.names("evals.metrics"))
@given(text=st.text(), logs=st.lists(st.floats(), max_size=4))
def test_a_metric_never_raises_and_stays_in_its_range(name: str, text: str, logs: list[float]) -> None:
    found = score(name, OPTIONS, text, tuple(logs))
    assert found is None or 0.0 <= found <= 1.0


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with raises(UnknownName, "unknown-name", mentions=["number"]):
        metrics.load("numbr")
