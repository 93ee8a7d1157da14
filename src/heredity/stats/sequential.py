"""Anytime-valid evidence: e-values, and intervals that are valid after every trial.

Promises: under any stopping rule a true null is rejected with a chance of at most alpha. A sequence of
intervals ever misses the truth with a chance of at most `1 - confidence`. Each cluster counts at most as one
trial. The evidence for a difference and the interval around it never contradict each other.
Leaves to others: the random order of the trials (the plan), and the stopping rule (study/sequential.py).

To bet against the hypothesis mean = m, multiply capital by `1 + (u - m) (v - m) / (m (1 - m))` at each value
v. If the mean is m, this bet is fair for every u. So is the average over `u ~ Beta(1/2, 1/2)`: the e-value
E(m). For binary values it is a beta-binomial mixture, `B(1/2 + k, 1/2 + n - k) / (B(1/2, 1/2) m^k
(1 - m)^(n - k))`. For paired differences it depends on the discordant pairs only, and against a mean of zero
it is `B(1/2 + b, 1/2 + c) / B(1/2, 1/2) 2^(b + c)`.

Sources: Ville 1939; Robbins 1970 (mixtures); Waudby-Smith and Ramdas 2010.09686 (betting); Ramdas et al.
2210.01948 (e-values).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import scipy  # its `optimize` is loaded where it is first used: that takes long
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, Interval, cluster_sums, wilson_bounds

Side = Literal["both", "above", "below"]  # where the mean may lie if it is not the null
NODES = 256  # bets u, up to 1,000 clusters; the mixture is exact for 2 * NODES of them, and near it beyond
RATE, DIFFERENCE = Interval(0.0, 1.0), Interval(-1.0, 1.0)
_LOG_HALF_BETA = float(special.betaln(0.5, 0.5))
_Floats = NDArray[np.float64]
_Evidence = Callable[[float], float]  # log E against a mean


# --- counts: the closed forms ---------------------------------------------------------------------


def discordant_log_e(only_a: int, only_b: int) -> float:
    """log E against "both are equally likely to break", from pairs on which exactly one broke."""
    _check(only_a, only_b)
    mixed = float(special.betaln(0.5 + only_a, 0.5 + only_b)) - _LOG_HALF_BETA
    return mixed + (only_a + only_b) * math.log(2)


def rate_log_e(k: int, n: int, rate: float) -> float:
    """log E against "each of n independent trials broke with this chance", k of them having broken."""
    _check(k, n - k)
    mixed = float(special.betaln(0.5 + k, 0.5 + n - k)) - _LOG_HALF_BETA
    return mixed - float(special.xlogy(k, rate) + special.xlog1py(n - k, -rate))


def anytime_p(log_e: float) -> float:
    """The anytime-valid p-value: min(1, 1 / E). `log_e` may be the largest so far."""
    return min(1.0, math.exp(-max(log_e, 0.0)))


def _check(*counts: int) -> None:
    if min(counts) < 0:
        raise BadArgument(f"{counts} holds a negative count")


# --- values: bets against a mean ------------------------------------------------------------------


class Bets:
    """The capital of someone who bets that the mean of values in `within` is not `null`.

    null    the mean under doubt, inside `within`
    side    "both"; "above" doubts that it is at most `null`, "below" that it is at least `null`
    n_most  values that may come; decides only how finely the mixture is computed

    `log_e` is the current evidence. `highest` is the largest so far (after any call of `add`). `is_above`
    tells whether the mean was above the null at that point.
    """

    def __init__(
        self, null: float, within: Interval = DIFFERENCE, side: Side = "both", n_most: int = 1000
    ) -> None:
        if not within.low < null < within.high:
            raise BadArgument(f"a mean of {null} cannot be doubted: it must lie inside {tuple(within)}")
        self._within, self._null = within, (null - within.low) / (within.high - within.low)
        self._bets = _nodes(self._null, side, _n_nodes(n_most))
        self._capital = np.zeros_like(self._bets)
        self._total, self._n = 0.0, 0
        self.highest, self.is_above = 0.0, False

    def add(self, values: ArrayLike) -> Self:
        """Bet on one value per cluster (its mean). They count as one analysis, in any order."""
        shares = _shares(values, self._within)
        if shares.size:
            held, counts = np.unique(shares, return_counts=True)
            self._capital += counts @ _log_factors(held, self._null, self._bets)
            self._total, self._n = self._total + float(shares.sum()), self._n + shares.size
        if (now := self.log_e) > self.highest:
            self.highest, self.is_above = now, self._total > self._n * self._null
        return self

    @property
    def log_e(self) -> float:
        return float(log_mean_exp(self._capital))


def log_e(values: ArrayLike, null: float, within: Interval = DIFFERENCE, side: Side = "both") -> float:
    """The evidence against a mean of `null` in these values, one a cluster."""
    return _evidence(values, within, side)(null)


def _evidence(values: ArrayLike, within: Interval, side: Side) -> _Evidence:
    """log E as a function of the doubted mean; equal values are counted once for all of them."""
    held, counts = np.unique(_shares(values, within), return_counts=True)
    n_nodes, width = _n_nodes(int(counts.sum())), within.high - within.low

    def against(null: float) -> float:
        doubted = (null - within.low) / width
        bets = _nodes(doubted, side, n_nodes)
        return float(log_mean_exp(counts @ _log_factors(held, doubted, bets)))

    return against


def log_mean_exp(capital: _Floats) -> _Floats:
    """log of the mean of exp along the last axis, without overflow: the capital of all bets together."""
    top = capital.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.mean(np.exp(capital - top), axis=-1)) + top[..., 0])


def path(
    values: ArrayLike, null: float, within: Interval = DIFFERENCE, side: Side = "both"
) -> NDArray[np.float64]:
    """log E after each value, along the last axis; a look after every one, for simulations."""
    shares = _shares(values, within)
    doubted = (null - within.low) / (within.high - within.low)
    bets = _nodes(doubted, side, _n_nodes(shares.shape[-1]))
    held, place = np.unique(shares, return_inverse=True)
    factors = _log_factors(held, doubted, bets)
    wealth = np.empty(shares.shape)
    rows = wealth.reshape(-1, shares.shape[-1])
    for row, where in zip(rows, place.reshape(rows.shape), strict=True):
        row[:] = log_mean_exp(np.cumsum(factors[where], axis=0))
    return wealth


def log_factors(values: ArrayLike, null: float, side: Side, within: Interval = DIFFERENCE) -> _Floats:
    """The log gain of each of `NODES` bets of equal weight at each value: (values, bets).

    For simulations that keep counts: E is the mean over bets of exp(counts @ log_factors).
    """
    doubted = (null - within.low) / (within.high - within.low)
    return _log_factors(_shares(values, within), doubted, _nodes(doubted, side, NODES))


def cluster_means(values: ArrayLike, clusters: ArrayLike) -> _Floats:
    """The mean of each cluster, which counts once, however many trials it has."""
    sums = cluster_sums(values, clusters)
    return np.asarray(sums.total / sums.size)


def _shares(values: ArrayLike, within: Interval) -> _Floats:
    flat = np.asarray(values, dtype=np.float64)
    if flat.size and not (flat.min() >= within.low and flat.max() <= within.high):
        raise BadArgument(f"values run from {flat.min()} to {flat.max()}; each must lie in {tuple(within)}")
    return np.asarray((flat - within.low) / (within.high - within.low))


def _n_nodes(n: int) -> int:
    # The mixture's peak is 1 / sqrt(n) wide in the angle: eight nodes a width leave only rounding.
    return max(NODES, 1 << math.ceil(math.log2(8 * math.sqrt(max(n, 1)))))


@lru_cache(maxsize=64)
def _angles(n: int) -> _Floats:
    return (np.arange(n) + 0.5) / n


def _nodes(null: float, side: Side, n: int) -> _Floats:
    """Bets u of equal weight: Chebyshev's nodes of Beta(1/2, 1/2), all or those on one side of the null."""
    turn = math.acos(2 * null - 1)  # the angle at which u is the null
    start, end = {"both": (0.0, math.pi), "above": (0.0, turn), "below": (turn, math.pi)}[side]
    return np.asarray((1 + np.cos(start + (end - start) * _angles(n))) / 2)


def _log_factors(shares: _Floats, null: float, bets: _Floats) -> _Floats:
    """log of what each bet multiplies the capital by at each value: (values, bets)."""
    edge = (bets - null) / (null * (1 - null))
    # Never below 0 by more than rounding: u = 0 loses everything at v = 1, and so on.
    return np.log(np.maximum(1 + np.outer(shares - null, edge), 1e-300))


# --- intervals that hold at every moment ----------------------------------------------------------


def rate_sequence(k: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """The share k / n of independent trials, with an interval that holds whenever one stops."""
    _check(k, n - k)
    if n == 0:
        return _nothing(RATE)
    sequence = _invert(lambda rate: rate_log_e(k, n, rate), k / n, RATE, confidence)
    return Estimate(k / n, *sequence, n, _method(RATE))


def clustered_rate_sequence(
    values: ArrayLike, clusters: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean over clusters of 0/1 `values`, with an interval that holds whenever one stops.

    Every cluster counts once: the value is the mean of the clusters' means, and n the number of trials.
    """
    return _sequence(values, clusters, RATE, confidence)


def difference_sequence(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """b's rate minus a's over the same trials, with an anytime-valid interval."""
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise BadArgument(
            f"{first.shape} and {second.shape} trials are not paired; both must be flat and equal"
        )
    d = second.astype(np.int64) - first.astype(np.int64)
    return _sequence(d, np.arange(d.size) if clusters is None else clusters, DIFFERENCE, confidence)


def effective_n_of(estimate: Estimate, confidence: float = CONFIDENCE) -> float:
    """The fixed sample size whose Wilson interval is as wide as this one."""
    if estimate.value is None or estimate.low is None or estimate.high is None or not estimate.n:
        return float(estimate.n)
    value, width = estimate.value, estimate.high - estimate.low

    def excess(log_n: float) -> float:
        low, high = wilson_bounds(value, math.exp(log_n), confidence)
        return (high - low) - width

    ends = (math.log(1e-3), math.log(estimate.n))
    return float(estimate.n) if excess(ends[1]) >= 0 else math.exp(scipy.optimize.brentq(excess, *ends))


def upper_bound(values: ArrayLike, confidence: float = CONFIDENCE) -> float:
    """The anytime-valid one-sided upper bound of the mean of paired differences, one per cluster."""
    flat = np.asarray(values, dtype=np.float64)
    if not flat.size or flat.mean() >= 1:
        return 1.0
    return _end(_evidence(flat, DIFFERENCE, "below"), float(flat.mean()), 1.0, confidence)


def _sequence(values: ArrayLike, clusters: ArrayLike, within: Interval, confidence: float) -> Estimate:
    n = int(np.asarray(values).size)
    if n == 0:
        return _nothing(within)
    means = cluster_means(values, clusters)
    method, n_clusters = _method(within), None
    if means.size < n:
        n_clusters = int(means.size)
        method += f" ({n_clusters} clusters, each counted once)"
    value = float(means.mean())
    sequence = _invert(_evidence(means, within, "both"), value, within, confidence)
    return Estimate(value, *sequence, n, method, n_clusters=n_clusters)


def _nothing(within: Interval) -> Estimate:
    return Estimate(None, *within, 0, f"{_method(within)} (n = 0: nothing to estimate from)")


def _method(within: Interval) -> str:
    return "anytime-valid " + ("beta-binomial" if within is RATE else "betting")


def _invert(evidence: _Evidence, value: float, within: Interval, confidence: float) -> Interval:
    """The means that are not refuted: E < 1 / (1 - confidence)."""
    low = within.low if value <= within.low else _end(evidence, value, within.low, confidence)
    high = within.high if value >= within.high else _end(evidence, value, within.high, confidence)
    return Interval(min(low, value), max(high, value))


def _end(evidence: _Evidence, value: float, edge: float, confidence: float) -> float:
    limit = -math.log1p(-confidence)
    near = edge + (value - edge) * 1e-9  # at the edge itself no bet is possible
    if evidence(near) < limit:
        return edge
    start = value + (edge - value) * 1e-9
    return float(scipy.optimize.brentq(lambda m: evidence(m) - limit, near, start, xtol=1e-10))
