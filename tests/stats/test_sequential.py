"""Sequential evidence: published vectors, closed forms against bets, and what holds at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from heredity.stats import holm
from heredity.stats.sequential import (
    DIFFERENCE,
    RATE,
    Bets,
    anytime_p,
    cluster_means,
    clustered_rate_sequence,
    difference_sequence,
    discordant_log_e,
    log_e,
    rate_log_e,
    rate_sequence,
    upper_bound,
)
from tests.support.errors import raises

counts = st.integers(0, 60)


def discordant_log_e_above(only_a: int, only_b: int) -> float:
    """The closed form against "b is not more likely to break": the Beta is truncated below 1/2."""
    share = float(special.betainc(0.5 + only_a, 0.5 + only_b, 0.5))
    return discordant_log_e(only_a, only_b) + math.log(2 * share) if share > 0 else -math.inf


@pytest.mark.parametrize(("only_a", "only_b", "e"), [(7, 0, 26.8), (8, 0, 50.3), (10, 1, 16.4)])
def test_the_discordant_e_value_is_the_published_one(only_a: int, only_b: int, e: float) -> None:
    assert math.exp(discordant_log_e(only_a, only_b)) == pytest.approx(e, abs=0.05)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (1, 21, 0.0001, 0.3184),
        (6, 21, 0.0662, 0.6179),
        (0, 100, 0.0, 0.0570),
        (10, 100, 0.0291, 0.2275),
        (100, 1000, 0.0689, 0.1382),
    ],
)
def test_the_rate_sequence_is_the_published_one(k: int, n: int, low: float, high: float) -> None:
    found = rate_sequence(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    trials = np.arange(n) < k
    bet = clustered_rate_sequence(trials, np.arange(n))
    assert (bet.low, bet.high) == (pytest.approx(found.low, abs=1e-7), pytest.approx(found.high, abs=1e-7))


@given(counts, counts, st.integers(0, 200))
def test_bets_on_differences_are_the_beta_binomial_of_the_discordant_pairs(b: int, c: int, z: int) -> None:
    values = np.repeat([-1, 1, 0], [b, c, z])
    assert log_e(values, 0.0) == pytest.approx(discordant_log_e(b, c), abs=1e-8)
    # one side is a midpoint sum, not exact: a valid bet all the same, so only close
    assert log_e(values, 0.0, side="above") == pytest.approx(discordant_log_e_above(b, c), abs=0.02)


@given(counts, counts, st.floats(0.01, 0.99))
def test_bets_on_rates_are_the_beta_binomial(k: int, rest: int, rate: float) -> None:
    values = np.repeat([1, 0], [k, rest])
    assert log_e(values, rate, RATE) == pytest.approx(rate_log_e(k, k + rest, rate), abs=1e-7)


def test_the_one_sided_e_value_is_the_integral_over_the_upper_half() -> None:
    def bet(u: float) -> float:
        return (2 * u) ** 9 * (2 * (1 - u)) ** 3 * 2 / (math.pi * math.sqrt(u * (1 - u)))

    found, _ = integrate.quad(bet, 0.5, 1)
    assert math.exp(discordant_log_e_above(3, 9)) == pytest.approx(found, rel=1e-6)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), max_size=6), st.floats(-0.9, 0.9))
def test_one_more_value_is_a_fair_bet_where_the_null_is_true(values: list[float], null: float) -> None:
    up = (null + 1) / 2  # the next value is 1 with this chance and -1 otherwise: its mean is the null
    now = math.exp(log_e(values, null))
    then = up * math.exp(log_e([*values, 1.0], null)) + (1 - up) * math.exp(log_e([*values, -1.0], null))
    assert then == pytest.approx(now, rel=1e-6)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), max_size=6), st.floats(-0.9, 0.85))
def test_a_one_sided_bet_loses_where_the_mean_is_on_the_other_side(values: list[float], null: float) -> None:
    up = (null + 1) / 2 + 0.05  # the mean lies above the null
    now = math.exp(log_e(values, null, side="below"))
    then = [math.exp(log_e([*values, v], null, side="below")) for v in (1.0, -1.0)]
    assert up * then[0] + (1 - up) * then[1] <= now * (1 + 1e-9)


@given(st.lists(st.sampled_from([-1.0, -1 / 3, 0.0, 0.5, 1.0]), min_size=1, max_size=80))
def test_the_interval_is_what_is_not_refuted(values: list[float]) -> None:
    a, b = np.zeros(len(values), bool), np.zeros(len(values), bool)
    found = difference_sequence(a, b | (np.array(values) > 0))
    d = (np.array(values) > 0).astype(float)
    for null in np.linspace(-0.98, 0.98, 25):
        inside = found.low <= null <= found.high
        assert (log_e(d, null) < math.log(20)) == inside or min(
            abs(null - found.low), abs(null - found.high)
        ) < 1e-6


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_test_and_the_interval_never_contradict(rows: list[tuple[bool, bool, int]]) -> None:
    a, b, clusters = (np.array(column) for column in zip(*rows, strict=True))
    found = difference_sequence(a, b, clusters)
    assert found.low <= found.value <= found.high and -1 <= found.low < found.high <= 1
    means = cluster_means(b.astype(int) - a, clusters)
    is_refuted = log_e(means, 0.0) >= math.log(20)
    assert is_refuted == (found.low > 0 or found.high < 0) or min(abs(found.low), abs(found.high)) < 1e-6
    mirrored = difference_sequence(b, a, clusters)
    assert (mirrored.low, mirrored.high) == (
        pytest.approx(-found.high, abs=1e-7),
        pytest.approx(-found.low, abs=1e-7),
    )


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=50))
def test_the_upper_bound_is_where_the_one_sided_test_stops_refuting(values: list[float]) -> None:
    bound = upper_bound(values)
    assert np.mean(values) <= bound <= 1
    if bound < 0.99:
        assert log_e(values, bound + 1e-4, side="below") >= math.log(20) - 0.05


def test_a_cluster_counts_as_one_trial_however_many_it_has() -> None:
    a = np.zeros(70, bool)
    b, clusters = ~a, np.repeat(np.arange(7), 10)
    assert log_e(cluster_means(b.astype(int), clusters), 0.0) == pytest.approx(discordant_log_e(0, 7))
    found = difference_sequence(a, b, clusters)
    assert found.n == 70 and "7 clusters" in found.method


def test_values_may_come_in_parts_and_the_highest_stays() -> None:
    bets = Bets(0.0, n_most=60)
    bets.add(np.ones(8))
    at_its_height = bets.highest
    bets.add(-np.ones(12)).add([])
    assert bets.log_e == pytest.approx(discordant_log_e(12, 8))
    assert bets.highest == at_its_height == pytest.approx(math.log(50.3), abs=0.01)


def test_the_mixture_stays_exact_for_many_values() -> None:
    values = np.repeat([-1, 1], [50_000, 51_000])
    assert log_e(values, 0.0) == pytest.approx(discordant_log_e(50_000, 51_000), abs=1e-6)


@given(st.lists(st.floats(-5, 300), min_size=1, max_size=6))
def test_holm_on_e_values_never_lowers_a_p_value(evidence: list[float]) -> None:
    for adjusted, value in zip(holm(list(map(anytime_p, evidence))), evidence, strict=True):
        assert anytime_p(value) <= adjusted <= 1


def test_nothing_seen_says_that_nothing_is_known() -> None:
    for found, edges in (
        (rate_sequence(0, 0), RATE),
        (difference_sequence([], []), DIFFERENCE),
        (clustered_rate_sequence([], []), RATE),
    ):
        assert found.value is None and (found.low, found.high) == edges and found.n == 0
    assert log_e([], 0.0) == pytest.approx(0.0) and upper_bound([]) == 1.0


def test_what_cannot_be_is_refused() -> None:
    with raises(ValueError, "bad-setting"):
        rate_sequence(3, 2)
    with raises(ValueError, "bad-setting"):
        Bets(1.0)
    with raises(ValueError, "bad-setting", mentions=[0.5, 1.5]):
        log_e([0.5, 1.5], 0.0)
    with raises(ValueError, "bad-setting"):
        difference_sequence([True], [])


def test_a_rate_is_missed_even_once_in_no_more_than_one_run_of_twenty() -> None:
    rng = np.random.default_rng(5)
    for rate in (0.03, 0.2, 0.5):
        runs = (rng.random((400, 300)) < rate).cumsum(axis=1)
        n = np.arange(1, 301)
        mixed = special.betaln(0.5 + runs, 0.5 + n - runs) - special.betaln(0.5, 0.5)
        evidence = mixed - runs * math.log(rate) - (n - runs) * math.log1p(-rate)
        missed = (evidence >= math.log(20)).any(axis=1).mean()
        assert missed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
