"""The difference of two models from pairs that people read: unbiased, as wide as its draw, and simulated."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats as scipy

from heredity.stats.edges import EQUAL, EdgeDifference, allocate_pairs, read_pairs_difference
from tests.support.bench_modules import load

RUNS = 300  # of the simulation: its Monte Carlo error is 0.013 at 0.05 and 0.026 at 0.7
STRATA = np.array([-1] * 4 + [0] * 5 + [1] * 3)
TRUTH = np.array([-1.0, -1, 0, 1, 0, 0, 1, 0, -1, 1, 1, 0])


def difference(strata: ArrayLike, labels: ArrayLike, clusters: ArrayLike | None = None) -> EdgeDifference:
    every = np.arange(np.size(labels)) if clusters is None else clusters
    pairs = read_pairs_difference(strata, labels, every)
    assert pairs is not None
    return pairs


def variance(pairs: EdgeDifference) -> float:
    return sum(part.variance for part in pairs.sources)


def p_value(pairs: EdgeDifference) -> float:
    return 2 * min(pairs.p_above(0), pairs.p_below(0))


def draws(m: tuple[int, int, int]) -> list[np.ndarray]:
    """The labels of every draw of m pairs from each stratum."""
    places = [np.flatnonzero(h == STRATA) for h in (-1, 0, 1)]
    chosen = product(*(combinations(at, n) for at, n in zip(places, m, strict=True)))
    labels = []
    for each in chosen:
        at = np.concatenate([np.array(part) for part in each])
        labels.append(np.full(TRUTH.size, np.nan))
        labels[-1][at] = TRUTH[at]
    return labels


def test_the_estimate_is_unbiased_over_all_draws_and_its_variance_that_of_the_draw() -> None:
    m = (2, 3, 2)
    values, drawing = [], []
    for labels in draws(m):
        pairs = difference(STRATA, labels)
        values.append(pairs.value)
        squares = sum(np.nanmean(labels[h == STRATA] ** 2) * np.mean(h == STRATA) for h in (-1, 0, 1))
        n = TRUTH.size
        drawing.append(variance(pairs) - ((n * squares + 2) / (n + 2) - values[-1] ** 2) / n)
    assert np.mean(values) == pytest.approx(TRUTH.mean())
    of_draw = sum(
        np.mean(h == STRATA) ** 2 * np.var(TRUTH[h == STRATA], ddof=1) / k * (1 - k / np.sum(h == STRATA))
        for h, k in zip((-1, 0, 1), m, strict=True)
    )
    assert np.var(values) == pytest.approx(of_draw)  # of all draws, each as likely
    assert np.mean(drawing) > of_draw  # the floor only adds


def test_with_every_pair_read_it_is_the_t_test_of_their_mean_with_a_pair_of_each_sign_added() -> None:
    t = np.repeat([1.0, -1.0, 0.0], [20, 8, 172])
    pairs = difference(np.arange(200) % 2, t)
    by_hand = (30 / 202 - 0.06**2) / 200
    assert variance(pairs) == pytest.approx(by_hand)
    whole = scipy.t(199, 0.06, np.sqrt(by_hand))
    assert pairs.bounds(0.95) == pytest.approx(whole.interval(0.95))
    assert p_value(pairs) == pytest.approx(2 * whole.cdf(0))
    assert pairs.p_above(0.02) == pytest.approx(whole.cdf(0.02))
    assert pairs.p_below(0.1) == pytest.approx(whole.sf(0.1))


def test_few_discordant_pairs_are_no_surer_than_mcnemars_exact_test() -> None:
    for gained in (4, 5, 6, 8):
        t = np.repeat([1.0, 0.0], [gained, 200 - gained])
        p = p_value(difference(np.zeros(200), t))
        assert p == pytest.approx(scipy.binomtest(gained, gained).pvalue, rel=0.5)
        assert (p < 0.05) == (gained > 5)


def test_equal_answers_need_no_reading_and_an_identical_copy_differs_by_nothing() -> None:
    copy = difference(np.full(200, EQUAL), np.zeros(200))
    assert copy.value == 0 and p_value(copy) == 1 and copy.p_below(0.05) < 0.001
    strata = np.repeat([EQUAL, 0, 1], [150, 40, 10])
    labels = np.where(strata == EQUAL, 0.0, np.where(np.arange(200) % 5, 0.0, 1.0))
    labels[160:190] = np.nan
    assert difference(strata, labels).value == pytest.approx(0.2 * 0.2 + 0.05 * 0.2)


def test_behaviours_that_repeat_widen_it_as_their_sums_vary() -> None:
    rng = np.random.default_rng(1)
    t = np.repeat(rng.choice([-1.0, 0.0, 1.0], 40, p=[0.1, 0.5, 0.4]), 5)
    clusters, strata = np.repeat(np.arange(40), 5), rng.integers(-1, 2, 200)
    pairs = difference(strata, t, clusters)
    sums = np.array([np.sum(t[clusters == c] - t.mean()) / 200 for c in range(40)])
    assert variance(pairs) == pytest.approx(np.sum(sums**2) * 40 / 39)
    assert pairs.sources[0].df <= 39 and pairs.n_clusters == 40
    assert variance(pairs) > 4 * variance(difference(strata, t))


def test_without_a_pair_of_a_stratum_there_is_no_estimate() -> None:
    labels = np.where(STRATA == 1, np.nan, 0.0)
    assert read_pairs_difference(STRATA, labels, np.arange(12)) is None
    assert read_pairs_difference([], [], []) is None


@pytest.mark.parametrize(
    ("sizes", "n", "read"),
    [
        ((40, 140, 60), 100, (24, 40, 36)),
        ((10, 160, 30), 100, (10, 60, 30)),  # all discordant pairs fit
        ((90, 20, 90), 100, (40, 20, 40)),  # all concordant pairs fit
        ((1, 150, 49), 50, (1, 20, 29)),
        ((2, 150, 98), 50, (2, 20, 28)),  # in proportion it would be one
        ((3, 0, 4), 100, (3, 0, 4)),
        ((0, 9, 0), 5, (0, 5, 0)),
    ],
)
def test_most_pairs_that_are_read_are_discordant(
    sizes: tuple[int, int, int], n: int, read: tuple[int, int, int]
) -> None:
    assert allocate_pairs(sizes, n) == read


@pytest.mark.parametrize("n", [60, 100, 200])
def test_a_judge_that_errs_differently_with_each_model_makes_no_difference(n: int) -> None:
    bench = load("pairs")
    cell = bench.simulate(bench.World(0.0, 0.07), n, RUNS)
    assert cell.by_judge > 0.2  # by its verdicts alone a difference would be shown
    assert cell.shown <= 0.07
    assert 0.94 <= cell.covered <= 1


@pytest.mark.parametrize(("spread", "power"), [(0.04, 0.7), (0.07, 0.65)])
def test_a_hundred_pairs_show_ten_points_and_cover_the_truth(spread: float, power: float) -> None:
    bench = load("pairs")
    cell = bench.simulate(bench.World(0.1, spread), 100, RUNS)
    assert cell.shown >= power
    assert 0.94 <= cell.covered <= 0.99
    assert cell.shown > bench.simulate(bench.World(0.1, spread), 100, RUNS, by_strata=False).shown + 0.08
