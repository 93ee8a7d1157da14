"""The mean of scores between 0 and 1, and the difference of two means on the same items.

Promises: an interval lies in the range of the value, contains it and has a width above zero. The same
generator state gives the same interval.
Leaves to others: shares (intervals.py, paired.py), and many comparisons (paired.holm).

Sources: Efron 1979 (percentile bootstrap); Fisher 1935 (sign flips under exchangeability); Phipson and Smyth
2010 (a p-value from drawn permutations is never 0).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, wilson_bounds

N_DRAWS = 10_000


class MeanDifference(NamedTuple):
    """b's mean minus a's over the same items; `test` is where `p_value` is from."""

    difference: Estimate
    p_value: float
    test: str


def bootstrap_mean(
    values: ArrayLike, rng: np.random.Generator, confidence: float = CONFIDENCE, n_draws: int = N_DRAWS
) -> Estimate:
    """The mean of values in [0, 1] with a percentile bootstrap over the items.

    Equal values have no spread to resample, so they get Wilson's interval for that mean. It is valid for any
    values in [0, 1], because shares have the largest spread.
    """
    found = _flat(values)
    method = f"percentile bootstrap, {n_draws:,} draws"
    if found.size == 0:
        return Estimate(None, 0.0, 1.0, 0, f"{method} (n = 0: nothing to estimate from)")
    if not (found.min() >= 0.0 and found.max() <= 1.0):
        raise BadArgument(
            f"values run from {found.min()} to {found.max()}; each must lie in [0, 1]",
            code="values-out-of-range",
        )
    mean = float(found.mean())
    if np.ptp(found) == 0.0:
        low, high = wilson_bounds(mean, found.size, confidence)
        return Estimate(mean, low, high, int(found.size), "wilson (all equal: nothing to resample)")
    low, high = _bounds(found, rng, confidence, n_draws)
    return Estimate(mean, min(low, mean), max(high, mean), int(found.size), method)


def compare_means(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    n_draws: int = N_DRAWS,
) -> MeanDifference:
    """b's mean minus a's: a percentile bootstrap over the pairs, and a two-sided sign-flip test.

    Where every pair differs by the same, the interval is as wide as a single pair in n could move it.
    """
    first, second = _flat(a), _flat(b)
    if first.shape != second.shape:
        raise BadArgument(
            f"{first.shape} and {second.shape} values are not paired; both must be equal", code="not-paired"
        )
    each = second - first
    method = f"percentile bootstrap over pairs, {n_draws:,} draws"
    if each.size == 0:
        none = Estimate(None, -1.0, 1.0, 0, f"{method} (n = 0: nothing to estimate from)")
        return MeanDifference(none, 1.0, "no pairs")
    mean, n = float(each.mean()), int(each.size)
    if np.ptp(each) == 0.0:
        low, high = max(-1.0, mean - 1 / n), min(1.0, mean + 1 / n)
        method = "one pair in n (all differ alike: nothing to resample)"
    else:
        low, high = _bounds(each, rng, confidence, n_draws)
    found = Estimate(mean, min(low, mean), max(high, mean), n, method)
    return MeanDifference(found, _flipped(each, rng, n_draws), f"sign flips, {n_draws:,} draws")


def _bounds(
    values: NDArray[np.float64], rng: np.random.Generator, confidence: float, n_draws: int
) -> tuple[float, float]:
    drawn = rng.integers(0, values.size, size=(n_draws, values.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _flipped(each: NDArray[np.float64], rng: np.random.Generator, n_draws: int) -> float:
    """How often sums of randomly turned signs are as far from 0; the pattern seen counts as one draw."""
    signs = rng.integers(0, 2, size=(n_draws, each.size)) * 2 - 1
    reached = np.abs(signs @ each) >= abs(float(each.sum())) - 1e-12
    return (1 + int(reached.sum())) / (1 + n_draws)


def _flat(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise BadArgument(f"values of shape {found.shape} are not flat", code="not-flat")
    return found
