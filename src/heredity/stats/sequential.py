"""Evidence that holds although a study may stop early: e-values, intervals, and spending of alpha.

Promises: under any stopping rule a true null is rejected with a chance of at most alpha. A sequence of
intervals ever misses the truth with a chance of at most `1 - confidence`. Each cluster counts at most as one
trial. The evidence for a difference and the interval around it never contradict each other.
At interim analyses p-values only fall and bounds only tighten. The same blocks give the same evidence.
Leaves to others: the random order of the trials (the plan), and the stopping rule (study/comparisons.py).

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
from typing import Literal, NamedTuple, Self

import numpy as np
import scipy  # its `optimize` is loaded where it is first used: that takes long
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import ALPHA, CONFIDENCE, Interval, cluster_sums, wilson_bounds

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
    """Wealth process of a betting test of H0: mean = `null`, for values in `within`.

    null    the mean under H0, inside `within`
    side    "both"; "above" doubts that it is at most `null`, "below" that it is at least `null`
    n_most  values that may come; decides only how finely the mixture is computed

    `log_e` is the current evidence. `highest` is the largest so far (after any call of `add`).
    """

    def __init__(
        self, null: float, within: Interval = DIFFERENCE, side: Side = "both", n_most: int = 1000
    ) -> None:
        if not within.low < null < within.high:
            raise BadArgument(f"a mean of {null} cannot be doubted: it must lie inside {tuple(within)}")
        self._within, self._null = within, (null - within.low) / (within.high - within.low)
        self._bets = _nodes(self._null, side, _n_nodes(n_most))
        self._capital = np.zeros_like(self._bets)
        self.highest = 0.0

    def add(self, values: ArrayLike) -> Self:
        """Bet on one value per cluster (its mean). They count as one analysis, in any order."""
        shares = _shares(values, self._within)
        if shares.size:
            held, counts = np.unique(shares, return_counts=True)
            self._capital += counts @ _log_factors(held, self._null, self._bets)
        self.highest = max(self.highest, self.log_e)
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


# --- two models at interim analyses ----------------------------------------------------------------


class SequentialComparison:
    """The evidence on one pair so far. `n_most`: behaviours that may come.

    p_value  anytime-valid, two-sided, of "the rates are equal"; the smallest of all analyses
    uppers   the tightest one-sided upper bounds at `alpha`: of b's rate minus a's, and of a's minus b's
    means    b's rate minus a's in each behaviour so far
    n_interim  analyses that had any data
    """

    def __init__(self, alpha: float = ALPHA, n_most: int = 1000) -> None:
        self._bets, self._alpha = Bets(0.0, n_most=n_most), alpha
        self.means: NDArray[np.float64] = np.zeros(0)
        self.uppers, self.n_interim = (1.0, 1.0), 0

    def add(self, means: ArrayLike) -> Self:
        """Add a block: the mean difference, b minus a, in each of its behaviours."""
        values = np.asarray(means, dtype=np.float64)
        if not values.size:
            return self
        self.n_interim += 1
        self._bets.add(values)
        self.means = np.concatenate([self.means, values])
        bounds = (upper_bound(sign * self.means, 1 - self._alpha) for sign in (1, -1))
        self.uppers = (min(self.uppers[0], next(bounds)), min(self.uppers[1], next(bounds)))
        return self

    @property
    def p_value(self) -> float:
        return anytime_p(self._bets.highest)

    def is_decided(self, margin: float, p_adjusted: float) -> bool:
        """Whether both ways round the verdict is "worse" or "not worse" (paired.py), whatever comes."""
        return p_adjusted < self._alpha or max(self.uppers) < margin


# --- spending alpha -----------------------------------------------------------------------------------
# Group-sequential tests: a few planned interim analyses, at which only a clear answer stops a study.
#
#     levels = nominal_levels((0.5, 0.75, 1.0), 0.05)  # of the p-value at each analysis
#     overall_p(0.003, 1, (0.5, 0.75, 1.0))  # the p-value of the whole design, at its first analysis
#
# Promises: over all analyses together a true null is rejected with a chance of at most alpha, whatever
# stops the study. The p-value of the whole design is valid at every analysis, so Holm's correction works
# on it. An interval at confidence 1 - level is a repeated one. Those of all analyses hold together with a
# chance of 1 - alpha.
#
# Alpha is spent as by O'Brien and Fleming's bounds: almost nothing early. So the last analysis keeps
# nearly the whole level. The levels are those of a two-sided test whose statistics at the analyses are
# jointly normal, with independent increments. `information` is the share of the clusters that an analysis
# has.
#
# Sources: O'Brien and Fleming 1979, Biometrics 35:549. Lan and DeMets 1983, Biometrika 70:659 (spending).
# Armitage, McPherson and Rowe 1969, J. R. Stat. Soc. A 132:235 (recursion). Jennison and Turnbull 1989,
# J. R. Stat. Soc. B 51:305 (repeated intervals).

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
_WIDEST = 9.0  # standard deviations; nothing beyond counts
_LEAST = 1e-14  # p-values below it are equal to it


class InterimAnalysis(NamedTuple):
    """One analysis of a design: its number, from 1, among analyses at these shares of the information."""

    number: int
    information: tuple[float, ...]
    alpha: float = ALPHA  # two-sided, of all analyses together

    @property
    def level(self) -> float:
        """The two-sided level of this analysis; 1 - level is the confidence of its repeated interval."""
        return self.level_of(1)

    def level_of(self, n_tests: int) -> float:
        """The same at Holm's first step over `n_tests` comparisons."""
        return nominal_levels(self.information, self.alpha / n_tests)[self.number - 1]

    @property
    def one_sided(self) -> float:
        """The level of its one-sided bound."""
        return one_sided_levels(self.information, self.alpha)[self.number - 1]

    def overall(self, p_value: float) -> float:
        """The p-value of this analysis as that of the whole design."""
        return overall_p(p_value, self.number, self.information)


def spent(information: float, alpha: float = ALPHA) -> float:
    """The part of the two-sided level `alpha` that is spent by this share of the information."""
    z = -float(special.ndtri(alpha / 4))
    return float(4 * special.ndtr(-z / math.sqrt(information)))


@lru_cache(maxsize=4096)
def nominal_levels(information: tuple[float, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """The two-sided level of each analysis by itself. Raises BadArgument unless `information` rises to 1."""
    rises = all(a < b for a, b in zip((0.0, *information), information, strict=False))
    if not information or not rises or information[-1] != 1.0:
        raise BadArgument(f"analyses at {information} do not rise to 1")
    if not 0.0 < alpha < 1.0:
        raise BadArgument(f"alpha is {alpha}; it must lie in (0, 1)")
    levels: list[float] = []
    before, so_far, density = 0.0, 0.0, None
    for now in information:
        target = spent(now, alpha) - so_far
        so_far += target
        step = _Step(density, before, now)
        bound = _bound(step, target) if density else min(_WIDEST, -float(special.ndtri(target / 2)))
        levels.append(2 * float(special.ndtr(-bound)))
        density, before = step.inside(bound), now
    return tuple(levels)


def one_sided_levels(information: tuple[float, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """The level of each analysis's one-sided bound; all of them hold together with a chance of 1 - alpha."""
    return tuple(level / 2 for level in nominal_levels(information, 2 * alpha))


def overall_p(p_value: float, analysis: int, information: tuple[float, ...]) -> float:
    """The p-value of the whole design at `analysis`, from 1: the smallest alpha at which it rejects.

    It is at least the two-sided `p_value` of that analysis, and valid whatever made the study stop there.
    """
    p_value = max(p_value, _LEAST)
    levels, alphas = _curve(information, analysis)
    alpha = float(np.interp(-special.ndtri(p_value / 2), levels, alphas))
    return min(1.0, max(p_value, 2 * float(special.ndtr(-alpha))))


@lru_cache(maxsize=64)
def _curve(information: tuple[float, ...], analysis: int) -> tuple[_Floats, _Floats]:
    """Two-sided z of the nominal level at an analysis, and of the alpha that it belongs to: both rising."""
    z = np.concatenate([np.linspace(0.01, 3.5, 60), np.linspace(3.6, 7.6, 30)])
    alphas = [2 * float(special.ndtr(-each)) for each in z]
    levels = [nominal_levels(information, alpha)[analysis - 1] for alpha in alphas]
    return np.maximum.accumulate(-special.ndtri(np.array(levels) / 2)), z


class _Step:
    """Brownian motion from one analysis to the next, as far as no earlier analysis stopped it.

    density  (places, weighted densities) of what the analysis before did not stop; None: the start
    """

    def __init__(self, density: tuple[_Floats, _Floats] | None, before: float, now: float) -> None:
        self._places, self._mass = (np.zeros(1), np.ones(1)) if density is None else density
        self._root, self._spread = math.sqrt(now), math.sqrt(now - before)

    def stops(self, bound: float) -> float:
        """The chance to reach this analysis, and to be at least `bound` standard deviations from 0 there."""
        end = bound * self._root
        tails = special.ndtr((self._places - end) / self._spread)
        tails += special.ndtr((-self._places - end) / self._spread)
        return float(self._mass @ tails)

    def inside(self, bound: float) -> tuple[_Floats, _Floats]:
        """The density of what this analysis does not stop."""
        end = min(bound, _WIDEST) * self._root
        places = end * _NODES
        kernel = np.exp(-0.5 * ((places[:, None] - self._places) / self._spread) ** 2)
        density = kernel @ self._mass / (self._spread * math.sqrt(2 * math.pi))
        return places, end * _WEIGHTS * density


def _bound(step: _Step, target: float) -> float:
    """The bound at which an analysis stops with the chance `target`."""
    if step.stops(_WIDEST) >= target:
        return _WIDEST
    if step.stops(0.0) <= target:
        return 0.0
    return float(scipy.optimize.brentq(lambda z: step.stops(z) - target, 0.0, _WIDEST, xtol=1e-10))
