"""Two models compared while the answers come in: after every block of behaviours, as often as one likes.

Promises: what was once shown stays shown (p-values only fall, bounds only tighten), and is wrong with a
chance of at most alpha over all looks together; the same blocks give the same comparison.
Leaves to others: the blocks and their order (plan.py), Holm over pairs (multiple.py), words (verdicts.py).
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.stats.intervals import CONFIDENCE, Effective
from heredity.stats.paired import Comparison, paired_worth, tabulate
from heredity.stats.power import ALPHA, detectable_difference
from heredity.stats.sequential import Bets, anytime_p, cluster_means, difference_sequence, upper_bound
from heredity.stats.sequential_power import equivalent_alpha

TEST = "anytime betting test"


class Looks:
    """The evidence on one pair so far. `n_most`: behaviours that may come.

    p_value  anytime-valid, two-sided, of "the rates are equal"; the smallest of all looks
    uppers   what b's rate minus a's is below, and a's minus b's, each one-sided at `alpha`; the tightest
    n_looks  that had anything to look at
    """

    def __init__(self, alpha: float = ALPHA, n_most: int = 1000) -> None:
        self._bets, self._alpha = Bets(0.0, n_most=n_most), alpha
        self._means: NDArray[np.float64] = np.zeros(0)
        self.uppers, self.n_looks = (1.0, 1.0), 0

    def look(self, means: ArrayLike) -> Self:
        """A block more: the mean difference, b minus a, in each of its behaviours."""
        values = np.asarray(means, dtype=np.float64)
        if not values.size:
            return self
        self.n_looks += 1
        self._bets.add(values)
        self._means = np.concatenate([self._means, values])
        found = (upper_bound(sign * self._means, 1 - self._alpha) for sign in (1, -1))
        self.uppers = (min(self.uppers[0], next(found)), min(self.uppers[1], next(found)))
        return self

    @property
    def p_value(self) -> float:
        return anytime_p(self._bets.highest)

    def is_decided(self, margin: float, p_adjusted: float) -> bool:
        """Whether both ways round the verdict is "worse" or "not worse" (verdicts.py), whatever comes."""
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
) -> Comparison:
    """`compare`, valid whatever made one stop: `blocks` numbers the look at which each trial was first seen.

    No cluster lies in two blocks. `detectable` is the smallest difference that these trials could have shown
    with 80 % power at their last look.
    """
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    labels, of = np.asarray(clusters), np.asarray(blocks)
    table, worth = tabulate(first, second), paired_worth(first, second, labels)
    found = difference_sequence(first, second, labels, confidence)
    looks = Looks(alpha, len(labels))
    for block in np.unique(of):
        here = of == block
        looks.look(cluster_means(second[here].astype(np.int64) - first[here], labels[here]))
    if table.n == 0:
        return Comparison(table, found, 1.0, "no pairs", None, worth, looks.uppers)
    shown = _detectable(worth, table.n_discordant / table.n, alpha)
    return Comparison(table, found, looks.p_value, TEST, shown, worth, looks.uppers)


def _detectable(worth: Effective, discordance: float, alpha: float) -> float | None:
    n = worth.at(1 - alpha)
    level = equivalent_alpha(max(1, round(n * discordance)), alpha)
    return detectable_difference(n, discordance, alpha=level) if level > 0 else None
