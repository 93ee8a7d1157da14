"""Rates by technique: a published analysis, statsmodels, a brute-force integral, coverage, and the ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

from heredity.core.records import Estimate
from heredity.stats.technique_rates import FEWEST, SCALE_T, TechniqueRates, technique_rates
from tests.support.errors import raises

# Surgical: institutional ranking (BUGS examples, volume 1): deaths of operations in 12 hospitals, and the
# posterior means of the mixed-effects logit that the manual prints.
OPERATIONS = np.array([47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360])
DEATHS = np.array([0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24])
PUBLISHED = [0.053, 0.103, 0.071, 0.059, 0.052, 0.069, 0.067, 0.123, 0.070, 0.079, 0.102, 0.069]


def grouped(broke: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials and their techniques, from counts."""
    return np.concatenate([np.arange(m) < k for k, m in zip(broke, n, strict=True)]), np.repeat(
        np.arange(len(n)), n
    )


def width(found: Estimate) -> float:
    assert found.low is not None and found.high is not None
    return found.high - found.low


def test_the_rates_are_those_of_the_published_analysis() -> None:
    y, technique = grouped(DEATHS, OPERATIONS)
    found = technique_rates(y, technique, np.arange(y.size))
    assert [e.value for e in found.techniques] == pytest.approx(PUBLISHED, abs=0.005)
    assert found.sigma_technique == pytest.approx(0.40, abs=0.08)  # the manual's prior pulls it down more
    assert found.sigma_behaviour == 0.0  # each trial is a behaviour of its own


def test_the_posterior_is_a_brute_force_integral() -> None:
    broke, n = np.array([1, 4, 9]), np.array([10, 10, 10])
    y, technique = grouped(broke, n)
    found = technique_rates(y, technique, np.arange(y.size))
    rng = np.random.default_rng(0)  # from the prior, weighted by the likelihood
    mu = special.logit(rng.random((400_000, 1)))
    rates = special.expit(
        mu + np.abs(rng.normal(size=mu.shape)) * SCALE_T * rng.normal(size=(mu.size, n.size))
    )
    weight = (rates**broke * (1 - rates) ** (n - broke)).prod(axis=1)
    expected = weight @ rates / weight.sum()
    assert [e.value for e in found.techniques] == pytest.approx(expected, abs=0.006)
    assert found.bank_mean.value == pytest.approx(expected.mean(), abs=0.006)


def test_the_rates_are_near_those_of_statsmodels() -> None:
    rng = np.random.default_rng(3)
    technique, behaviour = np.repeat(np.arange(8), 40), np.repeat(np.arange(80), 4)
    logits = np.repeat(rng.normal(-1, 1, 8), 40) + np.repeat(rng.normal(0, 0.8, 80), 4)
    y = (rng.random(320) < special.expit(logits)).astype(float)
    found = technique_rates(y, technique, behaviour)
    effects = np.concatenate([np.eye(8)[technique], np.eye(80)[behaviour]], axis=1)
    ident = np.repeat([0, 1], [8, 80])
    fitted = BinomialBayesMixedGLM(y, np.ones((320, 1)), effects, ident, vcp_p=1.0).fit_vb()
    logit, sigma = fitted.fe_mean[0] + fitted.vc_mean[:8], np.exp(fitted.vcp_mean[1])
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    theirs = [special.expit(x + sigma * nodes) @ weights / weights.sum() for x in logit]
    assert [e.value for e in found.techniques] == pytest.approx(theirs, abs=0.05)


def test_rates_are_shrunk_and_a_new_technique_is_less_certain_than_the_bank() -> None:
    y, technique = grouped(np.array([0, 2, 4, 10, 1]), np.full(5, 20))
    found = technique_rates(y, technique, np.arange(100) // 2)
    values = [e.value for e in found.techniques]
    assert values[0] > 0.0 and values[3] < 0.5  # towards the mean
    assert width(found.new_technique) > 2 * width(found.bank_mean)
    assert all(width(e) < width(found.new_technique) for e in found.techniques)


@pytest.mark.parametrize("k", [0, 20])
@pytest.mark.parametrize("per_behaviour", [1, 4])
def test_none_or_all_broken_has_an_interval(k: int, per_behaviour: int) -> None:
    y, technique = grouped(np.full(3, k), np.full(3, 20))
    found = technique_rates(y, technique, np.arange(60) // per_behaviour)
    for each in (*found.techniques, found.bank_mean, found.new_technique):
        assert each.value is not None and 0.0 <= each.low <= each.value <= each.high <= 1.0
        assert width(each) > 0.02


def test_too_few_techniques_are_refused_with_a_reason() -> None:
    y, technique = grouped(np.array([1, 2]), np.array([5, 7]))
    found = technique_rates(y, technique, np.arange(12))
    assert FEWEST == 3 and [e.n for e in found.techniques] == [5, 7]
    for each in (*found.techniques, found.bank_mean, found.new_technique):
        assert each.value is None and each.note


def test_a_behaviour_belongs_to_its_technique() -> None:
    y, technique = grouped(np.array([1, 5, 3]), np.full(3, 8))
    same = np.tile(np.arange(4).repeat(2), 3)
    assert technique_rates(y, technique, same) == technique_rates(y, technique, same + 10 * technique)


def test_what_does_not_fit_is_an_error() -> None:
    with raises(ValueError, "bad-setting"):
        technique_rates([1, 0], [0], [0, 1])
    with raises(ValueError, "bad-setting"):
        technique_rates([0.5], [0], [0])


# --- coverage ---------------------------------------------------------------------------------------


def covered(n_techniques: int, per: int, mu: float, sigma_t: float, sigma_b: float, runs: int) -> list[float]:
    """Shares of runs whose interval held the truth: a technique, the bank's mean, a new technique.

    Ten behaviours a technique, `per` trials each.
    """
    rng, hits = np.random.default_rng(5), np.zeros(3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    technique = np.repeat(np.arange(n_techniques), 10 * per)
    behaviour = np.repeat(np.arange(n_techniques * 10), per)
    for _ in range(runs):
        logits = mu + sigma_t * rng.normal(size=n_techniques + 1)
        truth = special.expit(logits[:, None] + sigma_b * nodes) @ weights / weights.sum()
        each = logits[technique] + sigma_b * rng.normal(size=n_techniques * 10)[behaviour]
        found = technique_rates(rng.random(each.size) < special.expit(each), technique, behaviour)
        hits += _hits(found, truth)
    return list(hits / runs)


def _hits(found: TechniqueRates, truth: np.ndarray) -> list[float]:
    def holds(e: Estimate, value: float) -> float:
        return float(e.low <= value <= e.high)

    pairs = zip(found.techniques, truth[:-1], strict=True)
    of_bank = holds(found.bank_mean, float(truth[:-1].mean()))
    return [float(np.mean([holds(*p) for p in pairs])), of_bank, holds(found.new_technique, truth[-1])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_techniques", "per", "mu", "sigma_t", "sigma_b"),
    [
        (3, 2, -1, 1, 1),
        (7, 2, -3, 1.5, 1),
        *(
            pytest.param(*each, marks=pytest.mark.proof)
            for each in ((7, 2, -1, 1.5, 1), (14, 3, -1, 1, 1.5), (7, 2, -1, 0, 1))
        ),
    ],
)
def test_intervals_hold_the_truth(
    n_techniques: int, per: int, mu: float, sigma_t: float, sigma_b: float
) -> None:
    shares = covered(n_techniques, per, mu, sigma_t, sigma_b, 120)
    assert min(shares) > 0.95 - 0.06  # three standard errors
