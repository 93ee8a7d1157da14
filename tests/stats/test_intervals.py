"""One rate: against published vectors, statsmodels, and what any interval must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from heredity.stats import clustered_rate, wilson
from heredity.stats.intervals import clopper_pearson, cluster_sums, rate_effective_n, wilson_bounds
from tests.support.errors import raises

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
GRID = [(k, n) for n in (1, 2, 5, 10, 25, 50, 144, 1000) for k in sorted({0, 1, n // 3, n // 2, n - 1, n})]


def test_zero_of_fifty_has_an_upper_bound() -> None:
    assert wilson(0, 50).high == pytest.approx(0.0713, abs=5e-5)
    assert wilson(0, 50).low == 0.0


def test_nothing_asked_is_not_a_rate_of_zero() -> None:
    for found in (wilson(0, 0), clustered_rate([], [])):
        assert found.value is None
        assert (found.low, found.high, found.n) == (0.0, 1.0, 0)
        assert "nothing to estimate from" in found.method


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_intervals_are_those_of_statsmodels(confidence) -> None:
    for k, n in GRID:
        low, high = proportion_confint(k, n, 1 - confidence, "wilson")
        found = wilson(k, n, confidence)
        assert found.low == pytest.approx(low, abs=1e-9), (k, n)
        assert found.high == pytest.approx(high, abs=1e-9), (k, n)


@given(counts)
def test_an_interval_contains_its_value_inside_0_and_1(kn) -> None:
    k, n = kn
    found = wilson(k, n)
    assert 0.0 <= found.low <= k / n <= found.high <= 1.0
    assert found.high > found.low


@given(counts.filter(lambda kn: kn[0] < kn[1]))
def test_one_more_breach_never_lowers_a_bound(kn) -> None:
    k, n = kn
    less, more = wilson(k, n), wilson(k + 1, n)
    assert less.low <= more.low
    assert less.high <= more.high


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_what_is_not_a_count_is_refused(k, n) -> None:
    with raises(ValueError, "bad-setting"):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_0_and_1_is_refused(confidence) -> None:
    with raises(ValueError, "bad-setting", mentions=["confidence"]):
        wilson(1, 5, confidence)


def test_a_cluster_for_each_trial_is_plain_wilson() -> None:
    assert clustered_rate([1, 0, 0, 1, 0, 0, 0], range(7)) == wilson(2, 7)


def test_the_clustered_spread_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    values = (rng.random(len(clusters)) < np.repeat(rng.random(40), np.bincount(clusters))).astype(float)
    fit = OLS(values, np.ones_like(values)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    variance = float(fit.bse[0]) ** 2 * 40 / 39
    rate = values.mean()
    assert rate_effective_n(cluster_sums(values, clusters)).estimated == pytest.approx(
        rate * (1 - rate) / variance
    )


def test_clusters_that_always_agree_count_once_each() -> None:
    found = clustered_rate(np.repeat([1, 0, 0, 0, 1, 0, 0, 0, 1, 0], 10), np.repeat(np.arange(10), 10))
    assert (found.low, found.high) == pytest.approx((wilson(3, 10).low, wilson(3, 10).high))
    assert found.n == 100
    assert "effective n 10.0 (10 clusters, each cluster counted as one trial)" in found.method


def test_zero_of_fifty_in_ten_clusters_is_bounded_as_zero_of_ten() -> None:
    found = clustered_rate(np.zeros(50), np.repeat(np.arange(10), 5))
    assert found.high == pytest.approx(wilson(0, 10).high)


def test_a_single_cluster_says_as_much_as_a_single_trial() -> None:
    found = clustered_rate([1, 1, 0, 0], [3, 3, 3, 3])
    assert (found.low, found.high) == pytest.approx(tuple(wilson_bounds(0.5, 1)))


def test_shares_may_stand_for_repeated_samples() -> None:
    assert clustered_rate([0.25, 0.5, 0.0, 0.75], [0, 0, 1, 1]).value == pytest.approx(0.375)
    with raises(ValueError, "bad-setting"):
        clustered_rate([0.5, 1.5], [0, 1])


def test_values_and_clusters_of_different_length_are_refused() -> None:
    with raises(ValueError, "bad-setting"):
        clustered_rate([1, 0, 1], [0, 1])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=80))
def test_clusters_never_narrow_the_interval_and_never_close_it(trials) -> None:
    values, clusters = zip(*trials, strict=True)
    found, plain = clustered_rate(values, clusters), wilson(sum(values), len(values))
    assert found.low is not None and found.high is not None and plain.high is not None
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low <= plain.low + 1e-12
    assert found.high >= plain.high - 1e-12
    assert found.high > found.low


@pytest.mark.parametrize("k", [0, 1, 12, 39, 40])
def test_clopper_pearson_is_that_of_scipy(k: int) -> None:
    expected = binomtest(k, 40).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, 40) == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 40).high == pytest.approx(0.0881, abs=1e-4)
