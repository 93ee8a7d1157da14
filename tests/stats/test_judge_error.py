"""The correction for judge error: its point, its interval, and when it is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heredity.stats import rogan_gladen, wilson
from heredity.stats.judge_error import (
    PredictedShare,
    Spread,
    across,
    combine_strata,
    correct_for_family,
    predict_share,
)
from tests.support.errors import raises

share = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
good = st.integers(20, 200).flatmap(lambda n: st.tuples(st.integers(4 * n // 5, n), st.just(n)))


def test_a_corrected_rate_by_hand() -> None:
    found = rogan_gladen(60, 300, 87, 100, 90, 100)
    assert found.value == pytest.approx((0.2 + 0.9 - 1) / (0.87 + 0.9 - 1))
    # Equations 5 to 7 of 2511.21140, put in by hand with z = 1.959964
    p, q1, q0 = (60 + 1.920729) / 303.841459, 88 / 102, 91 / 102
    th = (p + q0 - 1) / (q0 + q1 - 1)
    v1, v0 = q1 * (1 - q1) / 102, q0 * (1 - q0) / 102
    shift = 2 * 3.841459 * (th * v1 - (1 - th) * v0)
    half = 1.959964 * ((p * (1 - p) / 303.841459 + (1 - th) ** 2 * v0 + th**2 * v1) ** 0.5) / (q0 + q1 - 1)
    assert (found.low, found.high) == pytest.approx((th + shift - half, th + shift + half), abs=1e-6)


def test_a_perfect_judge_with_many_labels_changes_nothing() -> None:
    found, raw = rogan_gladen(40, 200, 10**7, 10**7, 10**7, 10**7), wilson(40, 200)
    assert found.value == pytest.approx(raw.value)
    assert (found.low, found.high) == pytest.approx((raw.low, raw.high), abs=0.01)


def test_a_rate_below_the_false_alarms_is_clipped_to_0_with_its_interval() -> None:
    found = rogan_gladen(17, 100, 80, 100, 80, 100)
    assert found.value == found.low == 0.0
    assert found.high is not None and found.high > 0.0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((10, 50, 55, 100, 60, 100), "near chance"),
        ((10, 50, 40, 100, 50, 100), "near chance"),
        ((10, 50, 1, 1, 2, 5), "too few labels"),
        ((10, 50, 0, 0, 50, 50), "never measured on labelled breaches"),
        ((10, 50, 50, 50, 0, 0), "never measured on labelled safe answers"),
        ((0, 0, 50, 50, 50, 50), "no judged trials"),
    ],
)
def test_a_correction_that_would_be_noise_is_refused_in_words(arguments, why) -> None:
    found = rogan_gladen(*arguments)
    assert found.value is found.low is found.high is None
    assert found.method.startswith("refused: ")
    assert why in found.method


@pytest.mark.parametrize(("k", "said"), [(0, "false alarms alone make"), (1000, "this judge catches")])
def test_a_rate_that_the_labels_do_not_allow_is_widened_and_says_so(k, said) -> None:
    found, raw = rogan_gladen(k, 1000, 400, 500, 400, 500), wilson(k, 1000)
    assert found.value == k / 1000
    assert found.method.startswith("rogan-gladen, widened: a judged rate of")
    assert said in found.method
    assert found.low <= raw.low
    assert found.high >= raw.high


@given(st.integers(1, 200), good, good, st.booleans())
def test_at_0_and_at_1_the_interval_is_no_narrower_than_the_raw_one(n, sens, spec, is_all) -> None:
    """Labels take nothing away from the sampling error of the run."""
    k = n if is_all else 0
    found, raw = rogan_gladen(k, n, *sens, *spec), wilson(k, n)
    if found.value is not None:
        assert found.low <= raw.low + 1e-9
        assert found.high >= raw.high - 1e-9


def test_fewer_labels_of_breaches_widen_a_clipped_interval() -> None:
    many, few = (rogan_gladen(0, 50, 9 * m, 10 * m, 90, 100) for m in (50, 3))
    assert few.high > many.high > wilson(0, 50).high


def test_what_is_not_a_count_is_no_rate() -> None:
    with raises(ValueError, "bad-setting"):
        rogan_gladen(5, 4, 1, 1, 1, 1)


@given(share, share, share)
def test_the_point_lies_in_its_interval_inside_0_and_1_or_is_refused(rate, sens, spec) -> None:
    found = rogan_gladen(*rate, *sens, *spec)
    if found.value is None:
        assert found.low is found.high is None
        assert found.method.startswith("refused: ")
        return
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.high > found.low


@given(share, good, good)
def test_a_judge_better_than_chance_is_corrected(rate, sens, spec) -> None:
    found = rogan_gladen(*rate, *sens, *spec)
    if found.value is None:
        assert "tell the judge from chance" in found.method
    else:
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_fewer_effective_trials_widen_the_interval() -> None:
    full, clustered = (rogan_gladen(60, 300, 87, 100, 90, 100, n_effective=n) for n in (None, 60.0))
    assert clustered.value == full.value
    assert clustered.low < full.low
    assert clustered.high > full.high


def test_families_that_agree_are_worth_all_their_labels_and_one_is_taken_as_it_is() -> None:
    assert across([80, 160], [100, 200]) == (240, 300)
    assert across([87], [100]) == pytest.approx((87, 100))


def test_families_that_differ_are_worth_few_labels() -> None:
    k, n = across([40, 90], [100, 100])
    assert k / n == pytest.approx(0.65)
    assert n == pytest.approx(0.65 * 0.35 / (0.125 * 1.5))  # s^2 = 0.125, and a third family differs as well
    narrow = rogan_gladen(60, 200, 130, 200, 180, 200)
    wide = rogan_gladen(60, 200, k, n, 180, 200)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_families_at_both_ends_are_worth_one_label() -> None:
    assert across([0, 10], [10, 10]) == (0.5, 1.0)


# --- one more family of answers -------------------------------------------------------------------


def family(rng, sens: float, spec: float, n: int = 200) -> tuple[int, int, int, int]:
    return int(rng.binomial(n, sens)), n, int(rng.binomial(n, spec)), n


def shares(families) -> tuple[PredictedShare, PredictedShare]:
    sens_k, sens_n, spec_k, spec_n = zip(*families, strict=True)
    return predict_share(sens_k, sens_n), predict_share(spec_k, spec_n)


def test_a_family_that_no_label_is_of_is_covered_where_pooled_labels_cover_it_in_half_the_runs() -> None:
    """Families' error rates differ; the run is of a fifth one. 400 runs, nominal 0.95."""
    rng = np.random.default_rng(5)
    n_runs, of_family, pooled = 400, 0, 0
    for _ in range(n_runs):
        q1, q0 = rng.beta(8, 2, 5), rng.beta(16, 4, 5)
        labelled = [family(rng, q1[i], q0[i]) for i in range(4)]
        truth = float(rng.uniform(0.02, 0.8))
        n_broke = int(rng.binomial(300, truth))
        k = int(rng.binomial(n_broke, q1[4]) + rng.binomial(300 - n_broke, 1 - q0[4]))
        found = correct_for_family(k, 300, *shares(labelled))
        of_family += found.value is not None and found.low <= truth <= found.high
        counts = [sum(each[j] for each in labelled) for j in range(4)]
        old = rogan_gladen(k, 300, *counts)
        pooled += old.value is not None and old.low <= truth <= old.high
    assert of_family / n_runs >= 0.92
    assert pooled / n_runs < 0.75


def test_families_that_agree_claim_no_spread_and_those_that_differ_do() -> None:
    same, apart = predict_share([80, 81, 79], [100] * 3), predict_share([60, 95, 80], [100] * 3)
    assert same.between == 0.0
    assert apart.between > 0.02 and apart.df == 2
    even = predict_share([900, 900], [1000, 1000])
    narrow, wide = (correct_for_family(60, 200, each, even) for each in (same, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_one_family_takes_the_spread_of_others_and_is_wider_by_it() -> None:
    alone, widened = predict_share([90], [100]), predict_share([90], [100], spread=Spread(0.01, 6.0))
    assert (alone.between, widened.between, widened.df) == (0.0, pytest.approx(0.02), 6.0)


def test_a_spread_of_few_families_is_averaged_with_that_of_other_judges() -> None:
    own = predict_share([60, 95, 80], [100] * 3)
    found = predict_share([60, 95, 80], [100] * 3, spread=Spread(0.01, 3.0))
    assert found.df == 2 + 3
    assert found.between == pytest.approx((2 * own.between + 3 * 0.01 * (1 + 1 / 3)) / 5)


def test_a_perfect_judge_leaves_a_rate_as_it_is() -> None:
    perfect = predict_share([10**6], [10**6])
    found, raw = correct_for_family(40, 200, perfect, perfect), wilson(40, 200)
    assert (found.value, found.low, found.high) == pytest.approx((raw.value, raw.low, raw.high), abs=0.01)


@pytest.mark.parametrize(
    ("k", "sens", "spec", "code"),
    [
        (10, 55, 60, "near-chance"),
        (200, 60, 99, "rate-outside-labels"),  # all judged broken, by a judge that finds 60 of 100
        (0, 99, 60, "rate-outside-labels"),
    ],
)
def test_a_rate_that_no_family_allows_is_refused_with_a_code(k, sens, spec, code) -> None:
    found = correct_for_family(k, 200, predict_share([sens], [100]), predict_share([spec], [100]))
    assert (found.value, found.code) == (None, code)
    assert correct_for_family(0, 0, predict_share([9], [10]), predict_share([9], [10])).code == "no-trials"


@given(share, good, good)
@example((5, 98), (16, 20), (83, 98))  # one true rate fits, 0: an interval of no width
def test_the_corrected_point_lies_in_its_interval_or_is_refused(rate, sens, spec) -> None:
    found = correct_for_family(
        *rate, predict_share([sens[0]], [sens[1]]), predict_share([spec[0]], [spec[1]])
    )
    if found.value is None:
        assert found.code
    else:
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0
        assert found.high > found.low


def test_strata_are_weighted_and_a_refused_one_refuses_the_whole() -> None:
    a, b = wilson(10, 100), wilson(50, 100)
    found = combine_strata([a, b], [0.5, 0.5], "strata")
    assert found.value == pytest.approx(0.3) and found.n == 200
    assert found.low < 0.3 < found.high
    assert found.high - found.low < (a.high - a.low + b.high - b.low) / 2  # independent errors average out
    alone = combine_strata([a], [1.0], "strata")
    assert (alone.low, alone.high) == pytest.approx((a.low, a.high))
    lost = correct_for_family(0, 0, predict_share([9], [10]), predict_share([9], [10]))
    assert combine_strata([a, lost], [0.5, 0.5], "strata").code == "no-trials"
