"""Behaviours crossed with attacks: the two variances, their agreement, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special
from statsmodels.stats.sandwich_covariance import cov_cluster

from heredity.core.records import Estimate
from heredity.stats import clustered_rate
from heredity.stats.paired import crossed_difference, crossed_rate, pigeonhole
from tests.support.clock import computing_within
from tests.support.errors import raises


def drawn(
    rng: np.random.Generator, attacks: int, samples: int, sigma: float, shift: float = 0.0
) -> tuple[np.ndarray, ...]:
    """Two models, alike but for `shift`: 30 behaviours (deviation 1 on the logit scale) by attacks (sigma).

    The two models share what makes a behaviour hard; each attack works on each model in its own way.
    """
    rows, columns = (x.ravel().repeat(samples) for x in np.mgrid[:30, :attacks])
    hard, cell = rng.normal(0, 1, 30)[rows], rng.normal(0, 0.5, (30, attacks))[rows, columns]
    logits = [hard + cell + rng.normal(0, sigma, attacks)[columns] - 1 + x for x in (0.0, shift)]
    a, b = (rng.random(rows.size) < special.expit(x) for x in logits)
    return a, b, rows, columns


def truth(sigma: float) -> float:
    z = np.random.default_rng(0).normal(0, np.sqrt(1 + 0.25 + sigma**2), 400_000)
    return float(special.expit(z - 1).mean())


def holds(found: Estimate, value: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= value <= found.high


def test_the_two_way_variance_is_that_of_statsmodels() -> None:
    a, _, rows, columns = drawn(np.random.default_rng(1), 6, 2, 1.0)
    found = crossed_rate(a, rows, columns, np.random.default_rng(0))
    fitted = sm.OLS(a.astype(float), np.ones(a.size)).fit()
    levels = {30: rows, 6: columns, 180: rows * 6 + columns}
    parts = [
        float(np.squeeze(cov_cluster(fitted, of, use_correction=False))) * g / (g - 1)
        for g, of in levels.items()
    ]
    expected = parts[0] + parts[1] - parts[2]
    rate = a.mean()
    n_eff = rate * (1 - rate) / expected
    assert f"effective n {n_eff * (1.959964 / special.stdtrit(5, 0.975)) ** 2:.1f}" in found.method


def test_the_pigeonhole_bootstrap_has_the_variance_that_owen_derives() -> None:
    """With one trial a cell: V is near (rows' + columns' + 3 x cells' variance component) / their numbers."""
    rng = np.random.default_rng(2)
    r, c, e = rng.normal(0, 1, (60, 1)), rng.normal(0, 2, (1, 40)), rng.normal(0, 3, (60, 40))
    draws = pigeonhole(r + c + e, np.ones((60, 40)), rng, 6000)
    expected = r.var() / 60 + c.var() / 40 + 3 * 9 / 2400
    assert draws.var() == pytest.approx(expected, rel=0.1)
    assert draws.mean() == pytest.approx((r + c + e).mean(), abs=0.03)


def test_many_levels_are_bootstrapped_and_the_seed_decides() -> None:
    a, b, rows, columns = drawn(np.random.default_rng(3), 12, 1, 1.0)
    one, two = (crossed_rate(a, rows, columns, np.random.default_rng(s)) for s in (0, 0))
    assert one == two and "pigeonhole" in one.method
    assert "pigeonhole" in crossed_difference(a, b, rows, columns, np.random.default_rng(0)).difference.method
    few = crossed_rate(a[columns < 4], rows[columns < 4], columns[columns < 4], np.random.default_rng(0))
    assert "two-way" in few.method and few.high - few.low > one.high - one.low


def test_one_attack_is_refused_and_two_give_a_wide_interval() -> None:
    rng = np.random.default_rng(4)
    a, b, rows, columns = drawn(rng, 2, 3, 0.5)
    alone = columns == 0
    assert crossed_rate(a[alone], rows[alone], columns[alone], rng).value is None
    assert crossed_difference(a[alone], b[alone], rows[alone], columns[alone], rng).p_value == 1.0
    found = crossed_rate(a, rows, columns, rng)
    assert found.high - found.low > 2 * np.diff(
        [getattr(clustered_rate(a, rows), x) for x in ("low", "high")]
    )


def test_no_breach_has_an_upper_bound_that_counts_attacks() -> None:
    rows, columns = (x.ravel() for x in np.mgrid[:30, :3])
    none = np.zeros(90)
    found = crossed_rate(none, rows, columns, np.random.default_rng(0))
    assert found.value == 0.0 and found.is_at_floor and 0.5 < found.high < 0.6  # as zero of three
    pair = crossed_difference(none, none, rows, columns, np.random.default_rng(0))
    assert (pair.difference.value, pair.p_value) == (
        0.0,
        1.0,
    ) and pair.difference.low < 0 < pair.difference.high


def test_swapping_the_models_mirrors_the_difference() -> None:
    a, b, rows, columns = drawn(np.random.default_rng(5), 4, 2, 0.5, 1.0)
    one, two = (crossed_difference(*x, rows, columns, np.random.default_rng(0)) for x in ((a, b), (b, a)))
    assert one.p_value == two.p_value < 0.5
    assert one.difference.low == pytest.approx(-two.difference.high)


@pytest.mark.slow
def test_fifty_thousand_trials_have_two_thousand_draws() -> None:
    rng = np.random.default_rng(6)
    rows, columns = rng.integers(0, 2000, 50_000), rng.integers(0, 25, 50_000)
    with computing_within(40):
        rate = crossed_rate(rng.random(50_000) < 0.3, rows, columns, rng, n_draws=2000)
    assert "2,000 draws" in rate.method


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize(("attacks", "samples"), [(2, 3), (3, 1), (4, 2), (5, 3), (12, 1)])
def test_intervals_hold_the_rate_under_other_attacks_too(attacks: int, samples: int, sigma: float) -> None:
    rng, value, runs = np.random.default_rng(7), truth(sigma), 250
    two_way, one_way = [], []
    for _ in range(runs):
        a, _, rows, columns = drawn(rng, attacks, samples, sigma)
        two_way.append(holds(crossed_rate(a, rows, columns, rng, n_draws=300), value))
        one_way.append(holds(clustered_rate(a, rows), value))
    assert np.mean(two_way) > 0.95 - 0.041  # three standard errors
    assert sigma == 0.0 or np.mean(one_way) < 0.85  # clustering by behaviour only


@pytest.mark.slow
@pytest.mark.parametrize("attacks", [3, 5, 12])
def test_models_that_differ_by_attack_only_are_rarely_called_different(attacks: int) -> None:
    rng = np.random.default_rng(8)
    found = [crossed_difference(*drawn(rng, attacks, 2, 0.7), rng, n_draws=300) for _ in range(250)]
    assert np.mean([f.p_value < 0.05 for f in found]) < 0.05 + 0.041
    assert np.mean([holds(f.difference, 0.0) for f in found]) > 0.95 - 0.041


def test_what_does_not_fit_is_an_error() -> None:
    rng = np.random.default_rng(0)
    with raises(ValueError, "bad-setting"):
        crossed_rate([1, 0], [0], [0, 1], rng)
    with raises(ValueError, "bad-setting"):
        crossed_rate([2, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], rng)
    with raises(ValueError, "bad-setting"):
        crossed_difference([True], [True, False], [0, 1], [0, 1], rng)
