"""Which interval and test each estimate of a study gets; every number by hand or from a published table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heredity.core.records import Estimate
from heredity.redteam.judges import Calibration
from heredity.stats import rogan_gladen
from heredity.stats.paired import TEST
from heredity.study.estimates import ALL, JUDGE_FREE, Rate
from heredity.study.intervals import Intervals, per_breach
from heredity.study.labels import LabelledTrials
from tests.support.small_study import small_plan

FIXED, SEQUENTIAL = Intervals(0.95), Intervals(0.95, is_sequential=True)


def broke(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


def test_a_plan_gives_its_confidence_and_level() -> None:
    assert Intervals.of(small_plan()) == FIXED
    assert FIXED.alpha == 0.05 and Intervals(0.9).alpha == 0.1


# --- one rate -------------------------------------------------------------------------------------


def test_independent_trials_get_wilsons_interval() -> None:
    # centre (0.3 + z2 / 20) / (1 + z2 / 10) = 0.35551, half 0.24772, with z2 = 3.8415
    found = FIXED.rate(broke(3, 10), np.arange(10))
    assert (found.value, found.n, found.method) == (0.3, 10, "wilson")
    assert (found.low, found.high) == pytest.approx((0.10779, 0.60322), abs=1e-5)


def test_two_behaviours_count_as_two_trials_however_often_they_are_asked() -> None:
    # Wilson of 0.5 on n = 2: half = z sqrt(0.125 + z2 / 16) / (1 + z2 / 2) = 0.40547
    found = FIXED.rate(broke(3, 6), np.array([0, 0, 0, 1, 1, 1]))
    assert (found.n, found.n_clusters, found.is_at_floor) == (6, 2, True)
    assert (found.low, found.high) == pytest.approx((0.09453, 0.90547), abs=1e-5)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(1, 21, 0.0001, 0.3184), (6, 21, 0.0662, 0.6179), (0, 100, 0.0, 0.0570)]
)
def test_a_study_that_stops_early_gets_the_anytime_valid_interval(
    k: int, n: int, low: float, high: float
) -> None:
    """The beta-binomial mixture of Robbins 1970: {p: B(1/2 + k, 1/2 + n - k) / (pi p^k (1-p)^(n-k)) < 20}."""
    found = SEQUENTIAL.rate(broke(k, n), np.arange(n))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_count_of_one_probe_is_taken_as_independent() -> None:
    for study in (FIXED, SEQUENTIAL):
        found = study.rate_of_counts(0, 50)
        assert (found.low, found.high) == pytest.approx((0.0, 0.07135), abs=1e-5)


def test_retention_is_over_the_trials_that_the_parent_held() -> None:
    parent, child = np.array([False] * 10 + [True] * 5), np.array([True, True] + [False] * 13)
    found = FIXED.retention(parent, child, np.arange(15))
    assert (found.value, found.n) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    early = SEQUENTIAL.retention(parent, child, np.arange(15))
    assert early.low is not None and early.low < 0.49 and early.value == 0.8


# --- two models -----------------------------------------------------------------------------------


def test_two_models_get_the_exact_test_of_mcnemar() -> None:
    a, b = np.array([True] + [False] * 9), np.array([False] + [True] * 9)
    found = FIXED.compare(a, b, np.arange(10))
    assert found.p_value == pytest.approx(2 * 11 / 1024) and found.test == "exact McNemar"
    assert found.difference.value == pytest.approx(0.8) and found.uppers is None


def test_in_a_study_that_stops_early_they_get_the_bet_on_discordant_trials() -> None:
    # Eight discordant trials, all of b: B(1/2 + 8, 1/2) / B(1/2, 1/2) * 2^8 = 50.3; p is its inverse.
    a, b = np.zeros(8, np.bool_), np.ones(8, np.bool_)
    found = SEQUENTIAL.compare(a, b, np.arange(8), np.zeros(8, np.intp))
    e = math.gamma(8.5) * math.gamma(0.5) / math.gamma(9) / math.pi * 2**8
    assert e == pytest.approx(50.3, abs=0.05) and found.p_value == pytest.approx(1 / e, rel=1e-6)
    assert found.test == TEST and found.uppers is not None


def test_kappa_has_the_confidence_that_is_asked_for() -> None:
    from heredity.stats import Table

    wide, narrow = FIXED.kappa(Table(20, 5, 10, 15)), Intervals(0.8).kappa(Table(20, 5, 10, 15))
    assert wide.value == narrow.value == pytest.approx(0.4)  # Cohen's example: (0.7 - 0.5) / (1 - 0.5)
    assert wide.low is not None and narrow.low is not None and wide.low < narrow.low < 0.4


# --- a judge, and a person ------------------------------------------------------------------------

LABELS = Calibration(90, 100, 80, 100, "labels")


def test_a_correction_counts_behaviours_and_not_trials() -> None:
    trials, clusters = broke(6, 12), np.repeat([0, 1], 6)
    raw = FIXED.rate(trials, clusters)
    found = FIXED.corrected(trials, clusters, raw, LABELS)
    assert found.value == pytest.approx((0.5 - 0.2) / (0.9 - 0.2)) and found.n == 12
    two = rogan_gladen(6, 12, 90, 100, 80, 100, n_effective=2.0)
    assert (found.low, found.high) == (two.low, two.high)


def test_after_an_early_stop_a_correction_is_as_wide_as_the_raw_interval() -> None:
    # The raw interval is Wilson's of 0.5 on n = 10 trials: so are the effective ones, whatever the clusters.
    raw = Estimate(0.5, 0.23659, 0.76341, 40, "anytime")
    found = SEQUENTIAL.corrected(broke(20, 40), np.repeat([0, 1], 20), raw, LABELS)
    ten = rogan_gladen(20, 40, 90, 100, 80, 100, n_effective=10.0)
    assert (found.low, found.high) == pytest.approx((ten.low, ten.high), abs=1e-4)


def test_labels_give_no_rate_where_answers_decided_how_many_there_are() -> None:
    truth = np.full(40, np.nan, np.float32)
    truth[:30] = np.arange(30) < 6
    labels, everything = LabelledTrials(truth, np.ones(40, np.float32)), np.arange(40)
    refused = SEQUENTIAL.from_labels(labels, broke(8, 40), everything)
    assert (refused.value, refused.low, refused.n) == (None, None, 30) and refused.note
    found = FIXED.from_labels(labels, broke(8, 40), everything)
    assert found.value is not None and found.low is not None and found.low < found.value


def test_labels_of_one_behaviour_count_together() -> None:
    truth = np.full(80, np.nan, np.float32)
    truth[::2] = np.repeat(np.arange(8) % 2, 5)
    labels, everything = LabelledTrials(truth, np.ones(80, np.float32)), np.arange(80)
    alone = FIXED.from_labels(labels, broke(40, 80), everything)
    clustered = FIXED.from_labels(labels, broke(40, 80), everything, np.repeat(np.arange(8), 10))
    assert clustered.value == alone.value and clustered.n_clusters == 8
    assert clustered.high - clustered.low > 1.3 * (alone.high - alone.low)


# --- several tries, and their cost ----------------------------------------------------------------


def test_success_within_k_tries_is_a_mean_over_probes() -> None:
    # Of two tries one broke, of two none: one draw breaks with (1/2 + 0) / 2, two with (1 + 0) / 2.
    counts = np.array([1, 0]), np.array([2, 2]), np.array([0, 1])
    assert FIXED.success_within(1, *counts).value == 0.25
    assert FIXED.success_within(2, *counts).value == 0.5


def rate(n_held: int, n_broke: int, estimate: Estimate) -> Rate:
    return Rate("m", JUDGE_FREE, ALL, "breach", estimate, None, None, n_held, n_broke, 0, 0, True)


def test_the_cost_of_a_breach_has_the_bounds_of_the_rate_inverted() -> None:
    # 20 queries over 10 trials: 2 a trial, so 2 / 0.5 to 2 / 0.2 a breach.
    found = per_breach(20, rate(6, 4, Estimate(0.4, 0.2, 0.5, 10, "wilson")))
    assert (found.value, found.low, found.high, found.n) == (5.0, 4.0, 10.0, 10)


def test_without_a_breach_its_cost_has_a_lower_bound_alone() -> None:
    found = per_breach(20, rate(10, 0, Estimate(0.0, 0.0, 0.25, 10, "wilson")))
    assert (found.value, found.low, found.high) == (None, 8.0, None)
    nothing = per_breach(0, rate(0, 0, Estimate(None, 0.0, 1.0, 0, "wilson")))
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, 0.0, None, 0)
