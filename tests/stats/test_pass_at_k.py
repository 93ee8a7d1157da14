"""Success within k tries: against counting every choice of tries, and what any such curve must hold."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.stats import intervals
from tests.support.errors import raises

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@pytest.mark.parametrize("n", range(1, 9))
def test_it_is_the_share_of_all_choices_of_k_tries_that_hold_a_breach(n) -> None:
    for c in range(n + 1):
        tries = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            choices = list(combinations(tries, k))
            assert intervals.success_at(k, n, c) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(counts)
def test_more_tries_never_help_less(nck) -> None:
    n, c, k = nck
    assert (
        0.0
        <= intervals.success_at(1, n, c)
        <= intervals.success_at(k, n, c)
        <= intervals.success_at(n, n, c)
        <= 1
    )
    assert intervals.success_at(1, n, c) == pytest.approx(c / n)
    assert intervals.success_at(n, n, c) == (1.0 if c else 0.0)


def test_ten_thousand_tries_are_no_overflow() -> None:
    assert intervals.success_at(5_000, 10_000, 3) == pytest.approx(1 - 0.5**3, abs=1e-3)


@pytest.mark.parametrize(("k", "n", "c"), [(0, 5, 1), (6, 5, 1), (1, 5, 6), (1, 5, -1)])
def test_what_the_tries_cannot_say_is_refused(k, n, c) -> None:
    with raises(ValueError, "bad-setting"):
        intervals.success_at(k, n, c)


def test_it_is_unbiased_where_the_share_of_lucky_tries_is_not() -> None:
    stream, p, n, k = np.random.default_rng(5), 0.2, 6, 3
    c = stream.binomial(n, p, size=4_000)
    unbiased = np.mean([intervals.success_at(k, n, int(x)) for x in c])
    plugged_in = np.mean(1 - (1 - c / n) ** k)
    truth = 1 - (1 - p) ** k
    assert unbiased == pytest.approx(truth, abs=0.02)
    assert abs(plugged_in - truth) > 2 * abs(unbiased - truth)


def test_at_one_try_it_is_the_rate() -> None:
    broke, tries, clusters = [1, 0, 4, 2], [4, 4, 4, 4], [0, 0, 1, 2]
    found = intervals.asr_at(1, broke, tries, clusters)
    assert found.value == pytest.approx(7 / 16)
    assert found.n == 4
    assert found.method.startswith("unbiased at 1 of 4 tries; wilson")


def test_probes_with_too_few_tries_are_left_out_and_counted() -> None:
    found = intervals.asr_at(3, [1, 3, 0], [4, 2, 3], [0, 1, 2])
    assert found.n == 2
    assert found.value == pytest.approx((1 - 1 / 4 + 0) / 2)
    nothing = intervals.asr_at(9, [1, 3, 0], [4, 2, 3], [0, 1, 2])
    assert nothing.value is None and nothing.n == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 5))
def test_an_interval_holds_its_value_and_has_a_width(broke, k) -> None:
    found = intervals.asr_at(k, broke, [5] * len(broke), range(len(broke)))
    assert found.value is not None and found.low is not None and found.high is not None
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.high > found.low


def test_intervals_hold_what_a_bootstrap_over_prompts_finds() -> None:
    """The share of new draws of prompts whose mean lies inside is about the confidence, or more."""
    stream = np.random.default_rng(7)
    broke = stream.binomial(8, stream.beta(0.6, 2.0, size=200))
    found = intervals.asr_at(4, broke, [8] * 200, range(200))
    shares = np.array([intervals.success_at(4, 8, int(c)) for c in broke])
    means = shares[stream.integers(0, 200, size=(2_000, 200))].mean(axis=1)
    assert found.low is not None and found.high is not None
    assert np.mean((means >= found.low) & (means <= found.high)) > 0.94


@pytest.mark.parametrize(("n", "ks"), [(0, ()), (1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_a_curve_doubles_its_tries_and_ends_at_all_of_them(n, ks) -> None:
    assert intervals.k_steps(n) == ks
