"""Repeated samples: flips, components against one-way ANOVA, and the standard error of more samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heredity.stats.means import repeats
from tests.support.errors import raises

NAN = float("nan")


def drawn(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Prompts with rates that are uniform: item variance 1/12, sample variance 1/6."""
    return (rng.random((n, k)) < rng.random((n, 1))).astype(float)


def test_a_flip_is_a_prompt_whose_samples_do_not_agree() -> None:
    found = repeats([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, NAN], [1, NAN, NAN]], np.arange(5))
    assert (found.n_prompts, found.flips.value, found.flips.n) == (4, 0.25, 4)
    assert found.flips.low < 0.25 < found.flips.high
    assert found.disagreement.value == pytest.approx((2 / 3) / 4)  # two of three pairs of one prompt differ


def test_the_components_are_those_of_a_one_way_analysis_of_variance() -> None:
    y = drawn(np.random.default_rng(1), 40, 5)
    found = repeats(y, np.arange(40))
    between = 5 * y.mean(axis=1).var(ddof=1)
    within = y.var(axis=1, ddof=1).mean()
    assert found.sample_variance == pytest.approx(within)
    assert found.item_variance == pytest.approx((between - within) / 5)


def test_the_components_are_unbiased_with_samples_missing() -> None:
    rng, found = np.random.default_rng(2), []
    for _ in range(400):
        y = drawn(rng, 60, 4)
        y[rng.random(y.shape) < 0.2] = NAN
        found.append(repeats(y, np.arange(60)))
    assert np.mean([f.item_variance for f in found]) == pytest.approx(1 / 12, abs=0.003)
    assert np.mean([f.sample_variance for f in found]) == pytest.approx(1 / 6, abs=0.003)


def test_the_standard_error_is_that_of_the_prompts_means() -> None:
    y = drawn(np.random.default_rng(3), 50, 3)
    found = repeats(y, np.arange(50))
    assert found.standard_error == pytest.approx(y.mean(axis=1).std(ddof=1) / math.sqrt(50))
    assert found.standard_error > found.limit


def test_prompts_of_one_behaviour_are_clustered() -> None:
    rng = np.random.default_rng(5)
    y = np.repeat((rng.random((20, 1)) < 0.5).astype(float), 3, axis=1).repeat(5, axis=0)
    found = repeats(y, np.repeat(np.arange(20), 5))
    assert found.standard_error > 2 * y.mean(axis=1).std(ddof=1) / 10
    assert (found.flips.value, found.sample_variance) == (0.0, 0.0)
    assert found.flips.high > 0.1  # twenty behaviours without a flip


def test_one_sample_is_refused_with_a_reason() -> None:
    found = repeats(np.ones((5, 1)), np.arange(5))
    assert found.flips.value is None and found.flips.note
    assert found.item_variance is None


def test_what_does_not_fit_is_an_error() -> None:
    with raises(ValueError, "bad-setting"):
        repeats(np.ones((3, 2)), np.arange(2))
    with raises(ValueError, "bad-setting"):
        repeats(np.full((3, 2), 0.5), np.arange(3))
