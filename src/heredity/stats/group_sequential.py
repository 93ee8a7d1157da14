"""Compare two models at interim analyses: after every block of behaviours.

Promises: p-values only fall and bounds only tighten. Over all analyses together, a false claim has a chance
of at most alpha. The same blocks give the same comparison.
Leaves to others: the blocks and their order (the plan), Holm over pairs and verdicts (paired.py).
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        found = (upper_bound(sign * self.means, 1 - self._alpha) for sign in (1, -1))
        self.uppers = (min(self.uppers[0], next(found)), min(self.uppers[1], next(found)))
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
    found = difference_sequence(first, second, labels, confidence)
    evidence = SequentialComparison(alpha, len(labels))
    for block in np.unique(of):
        here = of == block
        evidence.add(cluster_means(second[here].astype(np.int64) - first[here], labels[here]))
    if table.n == 0:
        return Comparison(table, found, 1.0, "no pairs", None, effective_n, evidence.uppers)
    shown = detectable_in_clusters(evidence.means, alpha / n_tests)
    return Comparison(table, found, evidence.p_value, TEST, shown, effective_n, evidence.uppers, n_tests)


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
