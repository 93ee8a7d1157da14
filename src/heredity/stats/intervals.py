"""One rate: k of n, with an interval that is valid at 0 and at n, and for trials that share a behaviour.

Promises: every interval lies in [0, 1], contains its value and has a width above zero.

Sources: Wilson 1927. Miller 2411.00640 (clustered standard errors).
Korn and Graubard 1998 (effective sample size with a t correction); Kish 1965 (design effect).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate

CONFIDENCE = 0.95
ALPHA = 0.05


class Interval(NamedTuple):
    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """The z of a two-sided interval: 1.96 at 0.95. Raises ValueError outside (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise BadArgument(f"confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95")
    return float(special.ndtri(0.5 + confidence / 2))


def refused(n: int, why: str, code: str = "") -> Estimate:
    """No value, and why: in words, and as a code that a program can match."""
    return Estimate(None, None, None, n, f"refused: {why}", note=why, code=code)


def wilson(k: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """The share k / n with Wilson's score interval. Without trials: no value, and the interval [0, 1]."""
    if not 0 <= k <= n:
        raise BadArgument(f"{k} of {n} is not a count: k must lie between 0 and n")
    if n == 0:
        return _nothing("wilson")
    low, high = wilson_bounds(k / n, n, confidence)
    return Estimate(k / n, low, high, n, "wilson")


def wilson_bounds(rate: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval around `rate` as if from `n` independent trials; `n` need not be whole."""
    z2 = normal_quantile(confidence) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # The ends are exact at 0 and 1; rounding must not push them past the value or out of [0, 1].
    low = 0.0 if rate == 0 else min(max(0.0, centre - half), rate)
    high = 1.0 if rate == 1 else max(min(1.0, centre + half), rate)
    return Interval(low, high)


def clopper_pearson(k: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval of the share k / n (Clopper and Pearson 1934); [0, 1] without trials."""
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k else 0.0
    return Interval(low, float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0)


class EffectiveN(NamedTuple):
    """The effective n of n trials in clusters: the number of independent trials with the same variance.

    n          trials
    n_clusters clusters among them
    floor      effective n if trials of one cluster always agreed (Kish: n^2 / sum of squared sizes)
    estimated  effective n from the observed spread between clusters; None if no spread was observed
    df         degrees of freedom behind that spread: informative clusters - 1
    """

    n: int
    n_clusters: int
    floor: float
    estimated: float | None
    df: int

    @property
    def is_clustered(self) -> bool:
        return self.n_clusters < self.n

    def at(self, confidence: float) -> float:
        """The effective n for an interval at this confidence, between `floor` and `n`.

        Score intervals depend on n and the quantile only through n / quantile^2, so a t quantile is a
        smaller n (Korn and Graubard 1998). Never below `floor`: there nothing had to be estimated.
        """
        if not self.is_clustered:
            return float(self.n)
        if self.estimated is None or self.df < 1:
            return self.floor
        t = float(special.stdtrit(self.df, 0.5 + confidence / 2))
        return min(float(self.n), max(self.floor, self.estimated * (normal_quantile(confidence) / t) ** 2))

    def estimate(self, value: float, bounds: Interval, method: str, confidence: float) -> Estimate:
        """An estimate from these trials; `method` is completed with how the clusters were counted."""
        words = method + self.words(confidence)
        if not self.is_clustered:
            return Estimate(value, *bounds, self.n, words)
        is_at_floor = self.at(confidence) == self.floor
        return Estimate(value, *bounds, self.n, words, n_clusters=self.n_clusters, is_at_floor=is_at_floor)

    def words(self, confidence: float) -> str:
        """How the clusters were counted, for an estimate's `method`."""
        if not self.is_clustered:
            return ""
        at = self.at(confidence)
        why = "each cluster counted as one trial" if at == self.floor else f"t with {self.df} df"
        return f" on effective n {at:.1f} ({self.n_clusters} clusters, {why})"


class Sums(NamedTuple):
    """Totals by cluster: `total` of the values, `size` in trials."""

    total: NDArray[np.float64]
    size: NDArray[np.float64]


def cluster_sums(values: ArrayLike, clusters: ArrayLike) -> Sums:
    """Sum of values and number of trials in each cluster; one pass, in the order of the sorted labels."""
    array = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if array.shape != labels.shape or array.ndim != 1:
        raise BadArgument(
            f"{array.shape} values do not fit {labels.shape} clusters; both must be flat and equal"
        )
    if labels.dtype.kind != "i" or not labels.size or labels.min() < 0 or labels.max() > labels.size:
        labels = np.unique(labels, return_inverse=True)[1]
    total, size = np.bincount(labels, weights=array), np.bincount(labels)
    return Sums(np.asarray(total[size > 0], dtype=np.float64), size[size > 0].astype(np.float64))


def effective(
    residuals: NDArray[np.float64], sizes: NDArray[np.float64], variance: float, informative: int
) -> EffectiveN:
    """The effective n of clustered trials, from residual sums by cluster (Miller 2411.00640).

    `variance` is that of one independent trial. `informative` counts the clusters that inform about the
    spread. The clustered variance has the factor g / (g - 1): Miller's form is too small for few clusters.
    """
    n, g = int(sizes.sum()), len(sizes)
    clustered = float(np.square(residuals).sum()) / n**2 * (g / (g - 1) if g > 1 else 1.0)
    floor = n * n / float(np.square(sizes).sum())
    known = g > 1 and informative > 1 and variance > 0
    estimated = None if not known else (min(float(n), variance / clustered) if clustered > 0 else float(n))
    return EffectiveN(n, g, floor, estimated, max(informative - 1, 0))


def clustered_rate(values: ArrayLike, clusters: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of `values` (0/1 or shares in [0, 1]) whose trials share clusters, with its interval.

    Wilson's interval on the effective n: it never has zero width and never leaves [0, 1]. It equals `wilson`
    if every trial has a cluster of its own. `method` names the effective n.
    """
    sums = cluster_sums(values, clusters)
    n = int(sums.size.sum())
    if n == 0:
        return _nothing("wilson")
    rate = float(sums.total.sum()) / n
    array = np.asarray(values, dtype=np.float64)
    if not (array.min() >= 0.0 and array.max() <= 1.0):
        raise BadArgument(f"values run from {array.min()} to {array.max()}; each must lie in [0, 1]")
    effective_n = rate_effective_n(sums)
    return effective_n.estimate(
        rate, wilson_bounds(rate, effective_n.at(confidence), confidence), "wilson", confidence
    )


def rate_effective_n(sums: Sums) -> EffectiveN:
    """The effective n of the trials behind a clustered rate."""
    n = float(sums.size.sum())
    rate = float(sums.total.sum()) / n
    # A cluster that agrees with nearly all others says little about the spread: count the rarer kind.
    informative = min(int((sums.total > 0).sum()), int((sums.total < sums.size).sum()))
    return effective(sums.total - sums.size * rate, sums.size, rate * (1 - rate), informative)


def _nothing(method: str) -> Estimate:
    return Estimate(None, 0.0, 1.0, 0, f"{method} (n = 0: nothing to estimate from)")


# --- success within k tries ---------------------------------------------------------------------------
# Attack success within k tries (ASR@k): the chance that at least one of k repeated tries is a breach.
#
# Promises: the estimate is unbiased for every k up to the number of tries. Its interval is over
# behaviours, lies in [0, 1] and has a width above zero. Nothing is extrapolated beyond the tries that
# were made.
#
# Source: the estimator of pass@k (Chen et al. 2021, arXiv 2107.03374), read as attack success
# (2412.03556).


def success_at(k: int, n: int, c: int) -> float:
    """The chance of at least one breach in k tries, sampled without replacement from n with c breaches."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise BadArgument(f"{c} breaches in {n} tries say nothing about {k} tries")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)  # whole numbers: exact until the one division


def asr_at(
    k: int, broke: ArrayLike, tries: ArrayLike, clusters: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean over probes of the chance to break one within k tries, with an interval by behaviour.

    `broke` and `tries` are counts by probe, `clusters` its behaviour. Probes with fewer than k tries are left
    out: n is the number of probes that are in.
    """
    c, n, labels = np.asarray(broke, int), np.asarray(tries, int), np.asarray(clusters)
    is_in = n >= k
    pairs = list(zip(n[is_in].tolist(), c[is_in].tolist(), strict=True))
    known = {pair: success_at(k, *pair) for pair in set(pairs)}
    rate = clustered_rate([known[pair] for pair in pairs], labels[is_in], confidence)
    return msgspec.structs.replace(
        rate, method=f"unbiased at {k} of {_range(n[is_in].tolist())}; {rate.method}"
    )


def k_steps(n: int) -> tuple[int, ...]:
    """The values of k of a curve over n tries: every power of two up to n, and n itself."""
    return tuple(sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | ({n} if n else set())))


def _range(tries: Sequence[int]) -> str:
    if not tries:
        return "no tries"
    low, high = min(tries), max(tries)
    return f"{high} tries" if low == high else f"{low} to {high} tries"
