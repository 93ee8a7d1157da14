"""Three verdicts, in a word and in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.stats import Comparison, Table, compare, tango, upper_bound, verdict, verdict_words
from tests.support.errors import raises


def pairs(both: int, only_a: int, only_b: int, neither: int) -> Comparison:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return compare(a, b)


WORSE = pairs(2, 1, 17, 30)
BETTER = pairs(2, 17, 1, 30)
ALIKE = pairs(20, 5, 5, 470)
UNKNOWN = pairs(2, 3, 6, 39)
HIGHER_WITHIN = pairs(20, 5, 25, 1950)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (WORSE, "worse"),
        (BETTER, "not worse"),
        (ALIKE, "not worse"),
        (UNKNOWN, "not enough evidence"),
        (HIGHER_WITHIN, "not worse"),
        (compare([], []), "not enough evidence"),
    ],
)
def test_each_verdict_is_reached(found, word) -> None:
    assert verdict(found, margin=0.05) == word


def test_the_bound_is_one_sided() -> None:
    assert upper_bound(ALIKE, 0.05) == pytest.approx(tango(ALIKE.table, 0.90).high)
    assert upper_bound(ALIKE, 0.05) < ALIKE.difference.high


def test_a_significant_difference_within_the_margin_is_said_to_be_both() -> None:
    assert HIGHER_WITHIN.p_value < 0.05
    assert verdict(HIGHER_WITHIN, margin=0.05) == "not worse"
    assert "measurably more often" in verdict_words("A", "B", HIGHER_WITHIN, margin=0.05)
    assert "less than the margin" in verdict_words("A", "B", HIGHER_WITHIN, margin=0.05)
    assert verdict(HIGHER_WITHIN, margin=0.0) == "worse"


def test_correction_for_many_pairs_can_take_a_verdict_away() -> None:
    found = pairs(2, 3, 14, 31)
    assert verdict(found, p_adjusted=found.p_value) == "worse"
    assert verdict(found, p_adjusted=min(1.0, 10 * found.p_value)) == "not enough evidence"


def test_better_than_a_is_not_worse_whatever_the_margin() -> None:
    assert verdict(BETTER, margin=0.0) == "not worse"
    assert "B is better than A" in verdict_words("A", "B", BETTER, margin=0.0)


def test_not_finding_a_difference_says_what_could_have_been_found() -> None:
    words = verdict_words("parent", "child", UNKNOWN)
    assert UNKNOWN.detectable is not None
    assert "Not enough evidence to call child worse or not worse than parent" in words
    assert f"50 trials could have shown is {100 * UNKNOWN.detectable:.1f} points (80 % power)" in words
    assert "no difference" not in words


def test_too_few_trials_could_have_shown_nothing() -> None:
    assert "5 trials could not have shown any difference" in verdict_words("A", "B", pairs(1, 1, 1, 2))


def test_words_carry_counts_interval_test_and_correction() -> None:
    words = verdict_words("parent", "child", WORSE, p_adjusted=0.004, verb="refused")
    assert words.startswith("child refused in 19 of 50 trials, parent in 3 of the same 50: ")
    assert "a difference of +32.0 points (+17.9 to +46.4; exact McNemar p < 0.001, 0.004 after Holm)" in words
    assert words.endswith("child is worse than parent.")


def test_clusters_are_named_in_the_words() -> None:
    found = compare([True, False, False, False] * 4, [True, True, False, False] * 4, list(range(4)) * 4)
    assert "16 trials in 4 clusters" in verdict_words("A", "B", found)


def test_no_shared_trial_says_so() -> None:
    assert "share no decided trial" in verdict_words("A", "B", compare([], []))


@pytest.mark.parametrize("margin", [-0.1, 1.0, 5.0])
def test_a_margin_that_is_no_share_is_refused(margin) -> None:
    with raises(ValueError, "bad-setting", mentions=["margin"]):
        verdict(ALIKE, margin=margin)


@given(st.tuples(*[st.integers(0, 40)] * 4), st.floats(0, 0.5))
def test_no_pair_is_worse_both_ways(cells, margin) -> None:
    found = pairs(*Table(*cells))
    assert {verdict(found, margin), verdict(found.mirrored(), margin)} != {"worse"}
    assert verdict_words("A", "B", found, margin).endswith(".")
