"""A paired difference by technique: findings, their correction, and the level and power of the test."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.stats import compare, holm
from heredity.stats.technique_rates import Heterogeneity, heterogeneity
from tests.support.errors import raises


def drawn(
    rng: np.random.Generator, rates: list[float], effects: list[float], behaviours: int, per: int
) -> Heterogeneity:
    """Two models whose behaviours have rates of their own (Beta, correlation 0.3)."""
    n, scale = len(rates), 1 / 0.3 - 1
    technique, behaviour = (
        np.repeat(np.arange(n), behaviours * per),
        np.repeat(np.arange(n * behaviours), per),
    )

    def broke(means: np.ndarray) -> np.ndarray:
        own = rng.beta(np.maximum(means, 1e-9) * scale, (1 - means) * scale, (behaviours, n)).T.ravel()
        return rng.random(technique.size) < own[behaviour]

    a, b = broke(np.array(rates)), broke(np.array(rates) + np.array(effects))
    return heterogeneity(a, b, technique, behaviour, rng, n_draws=500)


def test_each_technique_is_compared_alone_and_corrected_by_holm() -> None:
    technique = np.repeat(["x", "y", "z"], 40)
    behaviour = np.tile(np.repeat(np.arange(20), 2), 3)
    a = np.zeros(120, bool)
    b = np.concatenate([np.arange(40) < 30, np.zeros(40, bool), np.arange(40) < 4])
    found = heterogeneity(a, b, technique, behaviour, np.random.default_rng(0), margin=0.2)
    assert [each.technique for each in found.techniques] == ["x", "y", "z"]
    alone = [compare(a[technique == t], b[technique == t], behaviour[technique == t]) for t in "xyz"]
    assert [each.comparison for each in found.techniques] == alone
    assert [each.p_holm for each in found.techniques] == holm([c.p_value for c in alone])
    assert [each.finding for each in found.techniques] == ["worse", "equal", "undecided"]
    assert (found.count("worse"), found.count("equal"), found.count("better")) == (1, 1, 0)
    assert found.p_value is not None and found.p_value < 0.01


def test_swapping_the_models_mirrors_the_findings() -> None:
    technique, behaviour = np.repeat([0, 1], 40), np.arange(80) // 2
    a, b = np.zeros(80, bool), np.arange(80) < 30
    one = heterogeneity(a, b, technique, behaviour, np.random.default_rng(1))
    other = heterogeneity(b, a, technique, behaviour, np.random.default_rng(1))
    assert (one.techniques[0].finding, other.techniques[0].finding) == ("worse", "better")
    assert (one.q, one.p_value) == (pytest.approx(other.q), other.p_value)


def test_without_a_difference_or_a_second_technique_there_is_no_test() -> None:
    same = heterogeneity([1, 0] * 5, [1, 0] * 5, [0] * 5 + [1] * 5, np.arange(10), np.random.default_rng(0))
    assert (same.q, same.p_value) == (None, None)
    one = heterogeneity([0, 0], [1, 0], ["x", "x"], [0, 1], np.random.default_rng(0))
    assert one.p_value is None and len(one.techniques) == 1


def test_the_same_generator_gives_the_same_p_value() -> None:
    runs = [drawn(np.random.default_rng(7), [0.2] * 4, [0.3, 0, 0, 0], 10, 2) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rates",
    [
        [0.5] + [0.02] * 6,  # variances that differ most
        *(pytest.param(each, marks=pytest.mark.proof) for each in ([0.3] * 7, [0.5, 0.5, 0.1, 0.05, 0.0])),
    ],
)
def test_techniques_with_one_difference_are_rarely_called_different(rates: list[float]) -> None:
    rng = np.random.default_rng(11)
    runs = [drawn(rng, rates, [0.0] * len(rates), 10, 2).p_value for _ in range(300)]
    assert np.mean([p is not None and p < 0.05 for p in runs]) < 0.05 + 0.038  # three standard errors


@pytest.mark.slow
def test_two_techniques_of_seven_are_found() -> None:
    rng = np.random.default_rng(12)
    runs = [drawn(rng, [0.1] * 7, [0.4, 0.4, 0, 0, 0, 0, 0], 30, 2) for _ in range(60)]
    assert np.mean([run.p_value is not None and run.p_value < 0.05 for run in runs]) > 0.95
    assert np.mean([run.count("worse") for run in runs]) > 1.6
    assert np.mean([run.count("better") for run in runs]) < 0.1


def test_what_does_not_fit_is_an_error() -> None:
    with raises(ValueError, "bad-setting"):
        heterogeneity([True], [True, False], [0], [0], np.random.default_rng(0))
