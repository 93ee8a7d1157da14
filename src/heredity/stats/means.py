"""The mean of scores between 0 and 1, and the difference of two means on the same items.

Promises: an interval lies in the range of the value, contains it and has a width above zero. The same
generator state gives the same interval.
An evaluation's interval and test are chosen here. A share has Wilson's interval, and differences of shares
have the exact McNemar test with Tango's interval. Other scores have a bootstrap and sign flips, seeded 0.

Sources: Efron 1979 (percentile bootstrap); Fisher 1935 (sign flips under exchangeability); Phipson and Smyth
2010 (a p-value from drawn permutations is never 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, cluster_sums, clustered_rate, refused, wilson, wilson_bounds
from heredity.stats.paired import compare

N_DRAWS = 10_000


class MeanDifference(NamedTuple):
    """b's mean minus a's over the same items; `test` is where `p_value` is from."""

    difference: Estimate
    p_value: float
    test: str


def estimate_scores(scores: Sequence[float], *, are_shares: bool) -> Estimate:
    """The mean of an evaluation's scores. are_shares: whether each is 0 or 1."""
    if are_shares:
        return wilson(int(sum(scores)), len(scores))
    return bootstrap_mean(scores, np.random.default_rng(0))


def compare_scores(a: Sequence[float], b: Sequence[float], *, are_shares: bool) -> MeanDifference:
    """b's mean minus a's, on the items that both models answered."""
    if not are_shares:
        return compare_means(a, b, np.random.default_rng(0))
    comparison = compare([x == 1 for x in a], [x == 1 for x in b])
    return MeanDifference(comparison.difference, comparison.p_value, comparison.test)


def bootstrap_mean(
    values: ArrayLike, rng: np.random.Generator, confidence: float = CONFIDENCE, n_draws: int = N_DRAWS
) -> Estimate:
    """The mean of values in [0, 1] with a percentile bootstrap over the items.

    Equal values have no spread to resample, so they get Wilson's interval for that mean. It is valid for any
    values in [0, 1], because shares have the largest spread.
    """
    flat = _flat(values)
    method = f"percentile bootstrap, {n_draws:,} draws"
    if flat.size == 0:
        return Estimate(None, 0.0, 1.0, 0, f"{method} (n = 0: nothing to estimate from)")
    if not (flat.min() >= 0.0 and flat.max() <= 1.0):
        raise BadArgument(f"values run from {flat.min()} to {flat.max()}; each must lie in [0, 1]")
    mean = float(flat.mean())
    if np.ptp(flat) == 0.0:
        low, high = wilson_bounds(mean, flat.size, confidence)
        return Estimate(mean, low, high, int(flat.size), "wilson (all equal: nothing to resample)")
    low, high = _bounds(flat, rng, confidence, n_draws)
    return Estimate(mean, min(low, mean), max(high, mean), int(flat.size), method)


def compare_means(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, confidence: float = CONFIDENCE,
    n_draws: int = N_DRAWS,
) -> MeanDifference:  # fmt: skip
    """b's mean minus a's: a percentile bootstrap over the pairs, and a two-sided sign-flip test.

    Where every pair differs by the same, the interval is as wide as a single pair in n could move it.
    """
    first, second = _flat(a), _flat(b)
    if first.shape != second.shape:
        raise BadArgument(f"{first.shape} and {second.shape} values are not paired; both must be equal")
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
    estimate = Estimate(mean, min(low, mean), max(high, mean), n, method)
    signs = rng.integers(0, 2, size=(n_draws, each.size)) * 2 - 1
    reached = np.abs(signs @ each) >= abs(float(each.sum())) - 1e-12
    return MeanDifference(
        estimate, (1 + int(reached.sum())) / (1 + n_draws), f"sign flips, {n_draws:,} draws"
    )


def _bounds(
    values: NDArray[np.float64], rng: np.random.Generator, confidence: float, n_draws: int
) -> tuple[float, float]:
    drawn = rng.integers(0, values.size, size=(n_draws, values.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _flat(values: ArrayLike) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim != 1:
        raise BadArgument(f"values of shape {flat.shape} are not flat")
    return flat


# --- repeated samples of the same prompts -------------------------------------------------------------
# Repeated samples of the same prompts: how often answers flip, and what more samples would buy.
#
# variance of one sample = item variance (between prompts) + sample variance (between samples of a prompt)
#
# Promises: the components are unbiased before they are cut at 0. One sample a prompt is refused.
#
# Sources: Miller 2411.00640, section 3 (variance of an answer given its question). Searle, Casella and
# McCulloch 1992, Variance Components, chapter 3 (method of moments).

_Floats = NDArray[np.float64]


class Repeats(NamedTuple):
    """Flips, variance components and standard errors of one model.

    flips            share of prompts whose decided samples do not all agree; it grows with the samples
    disagreement     the chance that two samples of one prompt differ: the same whatever the number of samples
    item_variance    variance of the prompts' own rates
    sample_variance  mean variance of a sample around its prompt's rate
    standard_error   of the mean rate with these samples, clustered by behaviour
    limit            of the standard error with endless samples of the same prompts
    """

    n_prompts: int
    n_samples: float
    flips: Estimate
    disagreement: Estimate
    item_variance: float | None
    sample_variance: float | None
    standard_error: float | None
    limit: float | None


def repeats(broke: ArrayLike, clusters: ArrayLike, confidence: float = CONFIDENCE) -> Repeats:
    """Flips and variance components from (prompt, sample) values: 1.0 broke, 0.0 held, nan undecided.

    clusters: (prompt,) the behaviour of each prompt. Prompts with fewer than two decided samples are left
    out.
    """
    values, labels = np.asarray(broke, dtype=np.float64), np.asarray(clusters)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise BadArgument(f"{values.shape} samples do not fit {labels.shape} clusters")
    if not np.all((values == 0.0) | (values == 1.0) | np.isnan(values)):
        raise BadArgument("a sample is 1.0 (broke), 0.0 (held) or nan")
    k = (~np.isnan(values)).sum(axis=1).astype(np.float64)
    is_in = k >= 2
    values, labels, k = values[is_in], labels[is_in], k[is_in]
    n = k.size
    if n < 2:
        why = f"{n} prompts have two decided samples; flips need at least two such prompts"
        return Repeats(n, float(k.mean()) if n else 0.0, *(refused(n, why),) * 2, None, None, None, None)
    rates = np.nansum(values, axis=1) / k
    within = rates * (1 - rates) * k / (k - 1)
    flips = clustered_rate((rates > 0) & (rates < 1), labels, confidence)
    disagreement = clustered_rate(np.minimum(2 * within, 1.0), labels, confidence)
    noise = float((within / k).mean())  # of a prompt's mean
    item = max(float(rates.var(ddof=1)) - noise, 0.0)
    error = _clustered_variance(rates, labels)
    limit = math.sqrt(max(error - noise / n, 0.0))
    return Repeats(
        n, float(k.mean()), flips, disagreement, item, float(within.mean()), math.sqrt(error), limit
    )


def _clustered_variance(rates: _Floats, labels: NDArray[np.generic]) -> float:
    """Of the mean over prompts (Miller), with the factor g / (g - 1); one cluster: as if independent."""
    sums, n = cluster_sums(rates, labels), rates.size
    g = sums.size.size
    if g < 2:
        return float(rates.var(ddof=1)) / n
    residuals = sums.total - sums.size * rates.mean()
    return float(np.square(residuals).sum()) / n**2 * g / (g - 1)
