"""Compare two models at interim analyses: after every block of behaviours.

Promises: p-values only fall and bounds only tighten. Over all analyses together, a false claim has a chance
of at most alpha. The same blocks give the same comparison.
Leaves to others: the blocks and their order (the plan), Holm over pairs and verdicts (paired.py).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import scipy  # its `optimize` is loaded where it is first used: that takes long
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.stats.intervals import CONFIDENCE
from heredity.stats.paired import Comparison, paired_effective_n, tabulate
from heredity.stats.power import ALPHA, POWER
from heredity.stats.sequential import (
    Bets,
    anytime_p,
    cluster_means,
    difference_sequence,
    log_factors,
    log_mean_exp,
    upper_bound,
)

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
_Floats = NDArray[np.float64]


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
        bound = _bound(step, target)
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


TEST = "anytime betting test"
_DRAWS, _FINE = 200, 1e-3  # of a power, and of the difference that has it


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

    @property
    def is_b_higher(self) -> bool:
        """Whether b broke more often than a when the evidence was strongest."""
        return self._bets.is_above


def compare_in_blocks(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    blocks: ArrayLike,
    confidence: float = CONFIDENCE,
    alpha: float = ALPHA,
    n_tests: int = 1,
) -> Comparison:
    """`compare`, valid under any stopping rule. `blocks` is the interim analysis that first had each trial.

    No cluster may lie in two blocks. `detectable`: see detectable_in_clusters; at alpha / n_tests.
    """
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    labels, of = np.asarray(clusters), np.asarray(blocks)
    table, effective_n = tabulate(first, second), paired_effective_n(first, second, labels)
    sequence = difference_sequence(first, second, labels, confidence)
    evidence = SequentialComparison(alpha, len(labels))
    for block in np.unique(of):
        here = of == block
        evidence.add(cluster_means(second[here].astype(np.int64) - first[here], labels[here]))
    if table.n == 0:
        return Comparison(table, sequence, 1.0, "no pairs", None, effective_n, evidence.uppers)
    shown = detectable_in_clusters(evidence.means, alpha / n_tests)
    return Comparison(table, sequence, evidence.p_value, TEST, shown, effective_n, evidence.uppers, n_tests)


def detectable_in_clusters(means: ArrayLike, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest difference that the last analysis of these clusters shows with this power.

    means: the observed mean difference of each cluster. Under a difference d only b breaks in a share d of
    the clusters. The others differ as the observed ones do, in either direction. The power is computed over
    random draws of clusters, from a fixed seed. None if no difference could have been shown.
    """
    seen = np.abs(np.asarray(means, dtype=np.float64))
    held, place = np.unique(np.concatenate([seen, -seen, [1.0]]), return_inverse=True)
    factors = log_factors(held, 0.0, "both")
    rng, shape = np.random.default_rng(0), (_DRAWS, seen.size)
    others = place[rng.integers(0, max(1, 2 * seen.size), shape)]
    turned = rng.random(shape)

    def share(difference: float) -> float:
        """Of the draws, those in which the difference is shown."""
        at = np.where(turned < difference, place[-1], others)
        counts = np.stack([np.bincount(row, minlength=held.size) for row in at])
        evidence = log_mean_exp(counts @ factors)
        return float(np.mean((evidence >= -math.log(alpha)) & (counts @ held > 0)))

    if not seen.size or share(1.0) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > _FINE:
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) >= power else (middle, high)
    return high
