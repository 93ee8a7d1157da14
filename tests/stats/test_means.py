"""Means of scores: intervals that hold, and a test that keeps its level."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.stats import wilson
from heredity.stats.means import bootstrap_mean, compare_means
from tests.support.errors import raises


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_same_generator_gives_the_same_interval() -> None:
    values = rng(1).random(40)
    assert bootstrap_mean(values, rng()) == bootstrap_mean(values, rng())


def test_scores_that_are_all_nought_have_wilsons_upper_bound() -> None:
    found, share = bootstrap_mean([0.0] * 50, rng()), wilson(0, 50)
    assert (found.value, found.low, found.high) == (share.value, share.low, share.high)


def test_nothing_gives_no_value() -> None:
    assert bootstrap_mean([], rng()).value is None
    assert compare_means([], [], rng()).difference.value is None


def test_a_score_above_one_is_refused() -> None:
    with raises(ValueError, "bad-setting"):
        bootstrap_mean([0.5, 31.2], rng())


def test_the_interval_is_near_students_where_the_values_are_normal() -> None:
    from scipy import stats

    values = np.clip(rng(2).normal(0.5, 0.1, 200), 0, 1)
    low, high = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    found = bootstrap_mean(values, rng())
    assert found.low == pytest.approx(low, abs=0.002)
    assert found.high == pytest.approx(high, abs=0.002)


def test_nine_of_ten_intervals_of_skewed_scores_hold_the_mean() -> None:
    draws = rng(3).beta(1, 4, size=(400, 48))  # its mean is 0.2
    found = [bootstrap_mean(values, rng(), n_draws=1000) for values in draws]
    held = sum(one.low <= 0.2 <= one.high for one in found if one.low is not None and one.high is not None)
    assert 0.90 <= held / 400 <= 0.98


def test_a_difference_is_the_mirror_of_the_other_way_round() -> None:
    a, b = rng(4).random((2, 30))
    there, back = compare_means(a, b, rng()), compare_means(b, a, rng())
    assert there.difference.value == pytest.approx(-(back.difference.value or 0.0))
    assert there.p_value == back.p_value


def test_equal_models_are_called_different_as_rarely_as_the_level_says() -> None:
    draws = rng(5).random((400, 2, 30))
    p = [compare_means(a, b, rng(i), n_draws=500).p_value for i, (a, b) in enumerate(draws)]
    assert sum(each < 0.05 for each in p) / 400 <= 0.08


def test_a_clear_difference_is_found_and_never_with_p_nought() -> None:
    a = rng(6).random(40) / 4
    found = compare_means(a, a + 0.5 + rng(7).random(40) / 8, rng())
    assert 0.0 < found.p_value < 0.001
    assert found.difference.low is not None and found.difference.low > 0.4


def test_equal_answers_differ_by_nothing_with_a_width() -> None:
    found = compare_means([0.2, 0.8], [0.2, 0.8], rng())
    assert (found.difference.value, found.p_value) == (0.0, 1.0)
    assert found.difference.low == -0.5 and found.difference.high == 0.5


def test_what_is_not_paired_is_refused() -> None:
    with raises(ValueError, "bad-setting"):
        compare_means([0.1], [0.1, 0.2], rng())
