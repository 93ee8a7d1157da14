"""Two models on the same trials: published vectors, statsmodels, brute force, and the mirror."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from heredity.stats import (
    Table,
    compare,
    mcnemar_exact,
    tabulate,
    tango,
    wilson,
)
from heredity.stats.paired import Comparison, sign_flip
from tests.support.errors import raises

tables = st.tuples(*[st.integers(0, 60)] * 4).map(lambda cells: Table(*cells)).filter(lambda t: t.n > 0)
trials = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=1, max_size=60)

AIRWAY = Table(1, 7, 1, 12)  # Bentur et al. 2009, by way of Fagerland, Lydersen and Laake 2013 and 2014


@pytest.mark.parametrize(
    ("table", "low", "high", "places"),
    [
        (AIRWAY, -0.517, -0.026, 3),
        (Table(0, 2, 25, 75), 0.139, 0.321, 3),  # Duffy and Rothwell, table 2: b = 2, c = 25, n = 102
    ],
)
def test_intervals_are_the_published_ones(table, low, high, places) -> None:
    found = tango(table)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.51 * 10**-places)


def test_p_values_are_the_published_ones() -> None:
    assert mcnemar_exact(7, 1) == pytest.approx(0.0703, abs=5e-5)  # Fagerland, Lydersen and Laake 2013


def test_exact_mcnemar_is_that_of_statsmodels() -> None:
    for only_a, only_b in product(range(0, 40, 3), range(0, 40, 4)):
        theirs = mcnemar([[5, only_a], [only_b, 9]], exact=True).pvalue
        assert mcnemar_exact(only_a, only_b) == pytest.approx(theirs, abs=1e-12), (only_a, only_b)


@pytest.mark.slow
@given(tables)
def test_tango_solves_its_own_score_equation(table) -> None:
    """At each end the score statistic, with the nuisance share found by brute force, is z."""
    found, n = tango(table), table.n
    for d, side in ((found.low, 1), (found.high, -1)):
        if abs(d) > 1 - 1e-9:
            continue
        share = np.linspace(max(0.0, -d), (1 - d) / 2, 200_001)[1:-1]  # of "only a"; "only b" has share + d
        likelihood = (
            table.only_a * np.log(share)
            + table.only_b * np.log(share + d)
            + (n - table.n_discordant) * np.log1p(-2 * share - d)
        )
        if not np.isfinite(likelihood).any():
            continue
        q = share[np.nanargmax(likelihood)]
        score = (table.only_b - table.only_a - n * d) / np.sqrt(n * (2 * q + d - d * d))
        assert side * score == pytest.approx(1.96, abs=0.02)


@given(tables)
def test_a_difference_lies_in_its_interval_and_never_at_zero_width(table) -> None:
    found = tango(table)
    assert -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.high > found.low


@given(tables)
def test_changing_a_and_b_over_mirrors_the_interval(table) -> None:
    other = Table(table.both, table.only_b, table.only_a, table.neither)
    assert tango(other).low == pytest.approx(-tango(table).high, abs=1e-9)
    assert tango(other).high == pytest.approx(-tango(table).low, abs=1e-9)


def test_no_discordant_pair_still_leaves_an_interval() -> None:
    found = tango(Table(10, 0, 0, 40))
    assert (found.low, found.high) == pytest.approx((-wilson(0, 50).high, wilson(0, 50).high))


@given(st.lists(st.integers(-5, 5), max_size=10))
def test_the_sign_flip_test_is_exact(sums) -> None:
    steps = [abs(s) for s in sums]
    seen = abs(sum(sums))
    totals = [
        abs(sum(f * s for f, s in zip(flips, steps, strict=True)))
        for flips in product((-1, 1), repeat=len(sums))
    ]
    assert sign_flip(sums) == pytest.approx(np.mean([t >= seen for t in totals]), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 200))
def test_with_one_pair_a_cluster_the_sign_flip_test_is_mcnemars(only_a, only_b) -> None:
    assert sign_flip([-1] * only_a + [1] * only_b) == pytest.approx(mcnemar_exact(only_a, only_b), abs=1e-12)


def test_a_p_value_is_never_zero() -> None:
    assert 0.0 < sign_flip([3] * 400) < 1e-12


def test_pairs_are_tabulated_by_who_broke() -> None:
    a, b = [True, True, False, False, True], [True, False, True, False, False]
    assert tabulate(a, b) == Table(both=1, only_a=2, only_b=1, neither=1)
    assert compare(a, b).difference.value == pytest.approx(-0.2)


def test_clusters_of_one_are_no_clusters() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(80) < 0.2, rng.random(80) < 0.4
    plain, labelled = compare(a, b), compare(a, b, rng.permutation(80))
    assert plain == labelled
    assert plain.test == "exact McNemar"
    assert plain.difference == tango(tabulate(a, b))


def test_repeating_each_trial_ten_times_adds_no_evidence() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(40) < 0.1, rng.random(40) < 0.3
    once = compare(a, b)
    tenfold = compare(np.repeat(a, 10), np.repeat(b, 10), np.repeat(np.arange(40), 10))
    assert tenfold.p_value == pytest.approx(once.p_value)
    assert tenfold.test == "exact cluster sign-flip"
    assert tenfold.difference.low == pytest.approx(once.difference.low, abs=1e-6)
    assert tenfold.difference.high == pytest.approx(once.difference.high, abs=1e-6)
    assert tenfold.detectable == pytest.approx(once.detectable, abs=1e-3)
    assert (
        mcnemar_exact(10 * once.table.only_a, 10 * once.table.only_b) < 1e-3 < once.p_value
    )  # what naive says


@given(trials)
def test_compare_is_the_mirror_of_itself(rows) -> None:
    a, b, clusters = zip(*rows, strict=True)
    forward, back = compare(a, b, clusters), compare(b, a, clusters)
    assert forward.p_value == back.p_value
    assert forward.detectable == back.detectable
    assert back.difference.value == pytest.approx(-forward.difference.value)
    assert back.difference.low == pytest.approx(-forward.difference.high, abs=1e-9)
    mirrored = forward.mirrored()
    assert mirrored.table == back.table
    assert mirrored.difference.high == pytest.approx(back.difference.high, abs=1e-9)


@given(trials)
def test_clusters_never_narrow_a_difference_and_never_close_it(rows) -> None:
    a, b, clusters = zip(*rows, strict=True)
    found, plain = compare(a, b, clusters).difference, tango(tabulate(a, b))
    assert -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low <= plain.low + 1e-9
    assert found.high >= plain.high - 1e-9
    assert 0.0 < compare(a, b, clusters).p_value <= 1.0


def test_no_shared_trial_is_no_comparison() -> None:
    found = compare([], [])
    assert found.difference.value is None
    assert (found.difference.low, found.difference.high) == (-1.0, 1.0)
    assert (found.p_value, found.detectable, found.test) == (1.0, None, "no pairs")


@pytest.mark.parametrize(
    "ask", [lambda: compare([True], [True, False]), lambda: tabulate([[True]], [[True]])]
)
def test_trials_that_do_not_pair_are_refused(ask) -> None:
    with raises(ValueError, "bad-setting"):
        ask()


@pytest.mark.parametrize("ask", [lambda: mcnemar_exact(-1, 3), lambda: tango(Table(1, -1, 0, 5))])
def test_negative_counts_are_refused(ask) -> None:
    with raises(ValueError, "bad-setting"):
        ask()


@pytest.mark.slow
def test_a_million_trials_in_uneven_clusters_are_compared() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(10**6) < 0.1, rng.random(10**6) < 0.11
    found = compare(a, b, rng.integers(0, 300, 10**6) ** 2 // 300)
    assert found.p_value < 1e-6
    assert found.difference.low < 0.01 < found.difference.high


def test_clusters_too_few_for_any_flip_to_be_rare_could_have_shown_nothing() -> None:
    a, b = np.zeros(180, bool), np.arange(180) % 10 < 8
    five, six = (compare(a, b, np.arange(180) % n) for n in (5, 6))
    assert five.p_value > 0.05 and five.detectable is None  # 2 of 2^5
    assert six.p_value < 0.05 and six.detectable is not None


@pytest.mark.parametrize(("n_clusters", "alike"), [(12, 1.0), (30, 0.5), (53, 1.0)])
def test_what_clusters_could_have_shown_they_show_four_times_in_five(n_clusters: int, alike: float) -> None:
    rng, size, discordance = np.random.default_rng(0), 4, 0.2

    def drawn(difference: float) -> Comparison:
        """Trials of a cluster share their luck with the chance `alike`."""
        n, share = n_clusters * size, max(discordance, difference)
        shared = np.repeat(rng.random(n_clusters), size)
        luck = np.where(rng.random(n) < alike, shared, rng.random(n))
        only_a = (share - difference) / 2
        return compare(luck > 1 - only_a, luck < only_a + difference, np.repeat(np.arange(n_clusters), size))

    said = float(np.median([drawn(0.0).detectable or 1.0 for _ in range(20)]))
    assert np.mean([drawn(said).p_value < 0.05 for _ in range(150)]) > 0.68
