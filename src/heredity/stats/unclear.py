"""Two models on the same trials where some answers are unclear: codings, declared shares, tipping shares.

Promises: a share of 0 for both models is the comparison with unclear answers counted as held. P-values are
exact sign-flip tests of clusters. Nothing is drawn at random.
Leaves to others: the declared share, the family of comparisons (paired.holm), and which trials are unclear.

An unclear answer of a model with share s counts s of a breach. So the difference is that of the rates in
which s of the model's unclear answers were breaches, whichever these are. The test needs no more: the sum of
a cluster has mean zero if the two rates are equal. Any other allocation would claim to know which of the
unclear answers were breaches.

Sources: Little and Rubin 2019, chapter 15 (pattern mixtures). Yan, Lee and Li 2009, J. Biopharm. Stat.
19:1085 (tipping points of binary outcomes). ICH E9(R1) (sensitivity analysis). Horowitz and Manski 2000,
J. Am. Stat. Assoc. 95:77 (bounds). Steegen et al. 2016, Perspect. Psychol. Sci. 11:702 (multiverse analysis).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, Sums, cluster_sums, effective
from heredity.stats.paired import Comparison, compare, tango_bounds_at
from heredity.stats.power import ALPHA

Coding = Literal["excluded", "held", "broke"]
CODINGS: tuple[Coding, ...] = ("excluded", "held", "broke")
STEP = 0.05  # of a tipping share
_FINEST = 100  # shares are fractions with a denominator of at most this, so that cluster sums stay exact
_MAX_CELLS = 50_000_000  # clusters times the total, of an exact test
_Floats = NDArray[np.float64]


class SharedComparison(NamedTuple):
    """b's rate minus a's, where `share_a` of a's unclear answers and `share_b` of b's count as breaches."""

    share_a: float
    share_b: float
    difference: Estimate
    p_value: float

    def is_worse(self, alpha: float = ALPHA) -> bool:
        """Whether b broke more often, with p below alpha."""
        return self.p_value < alpha and (self.difference.value or 0.0) > 0


def compare_coded(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    coding: Coding,
    confidence: float = CONFIDENCE,
    alpha: float = ALPHA,
) -> Comparison:
    """Compare two models with unclear answers left out, or counted as held, or as broke.

    a, b  per trial 1.0 where the model broke, 0.0 where it held, nan where its answer is unclear
    """
    first, second, labels = _trials(a, b, clusters)
    if coding == "excluded":
        decided = ~np.isnan(first) & ~np.isnan(second)
        first, second, labels = first[decided], second[decided], labels[decided]
    fill = 1.0 if coding == "broke" else 0.0
    first, second = (np.nan_to_num(x, nan=fill) == 1.0 for x in (first, second))
    return compare(first, second, labels, confidence, alpha)


def compare_at_shares(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    share_a: float = 0.0,
    share_b: float = 0.0,
    confidence: float = CONFIDENCE,
    errors: float = 0.0,
) -> SharedComparison:
    """Compare two models where a share of the unclear answers of each counts as breaches.

    "b is worse" survives a declared share s if it holds at `share_a=s`; "b is not worse" if it holds at
    `share_b=s`. Shares are rounded to the nearest fraction with a denominator of at most 100.

    errors: the share of b's breaches that were false alarms, and of a's held trials that were breaches. So
    verdicts erred against b, and in favour of a.
    """
    first, second, labels = _trials(a, b, clusters)
    shares, wrong = (_fraction(share_a), _fraction(share_b)), _fraction(errors)
    if first.size == 0:
        nothing = Estimate(None, -1.0, 1.0, 0, "tango (n = 0: nothing to estimate from)")
        return SharedComparison(float(shares[0]), float(shares[1]), nothing, 1.0)
    filled_a, filled_b = (
        np.nan_to_num(x, nan=float(s)) for x, s in zip((first, second), shares, strict=True)
    )
    if wrong:
        filled_a = np.where(first == 0.0, float(wrong), filled_a)
        filled_b = np.where(second == 1.0, 1.0 - float(wrong), filled_b)
    unit = np.lcm.reduce([shares[0].denominator, shares[1].denominator, wrong.denominator])
    differences = filled_b - filled_a
    sums = cluster_sums(differences, labels)
    p = flip_whole(np.rint(sums.total * unit).astype(np.int64))
    difference = _difference(differences, sums, labels, confidence)
    return SharedComparison(float(shares[0]), float(shares[1]), difference, p)


def tipping_share(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, alpha: float = ALPHA) -> float | None:
    """The smallest share of a's unclear answers, in steps of `STEP`, at which "b is worse" is not shown.

    0.0 if it is not shown even where all of them held, None if it is shown where all of them broke. For a
    family of m comparisons give the level that the correction left, such as alpha / m.
    """
    for step in range(round(1 / STEP) + 1):
        if not compare_at_shares(a, b, clusters, step * STEP).is_worse(alpha):
            return round(step * STEP, 12)
    return None


def flip_whole(sums: ArrayLike) -> float:
    """Two-sided p-value of the sign-flip test of whole-numbered cluster sums, by convolution: exact.

    The same test as `paired.sign_flip`. Its cost grows with clusters times the total, and not with the number
    of distinct sums, of which fractions make many. Chances are only added, so small ones keep their digits.
    Beyond `_MAX_CELLS` it is the normal limit of the same test.
    """
    whole = np.asarray(sums, dtype=np.int64)
    if whole.sum() == 0:
        return 1.0
    whole = whole // np.gcd.reduce(whole)
    steps = np.sort(np.abs(whole[whole != 0]))
    if steps.size * int(steps.sum()) > _MAX_CELLS:  # with so many clusters the normal limit is as good
        z = abs(int(whole.sum())) / float(np.sqrt(np.square(steps, dtype=np.float64).sum()))
        return float(special.erfc(z / np.sqrt(2.0)))
    chance = np.ones(1)  # of each total of the clusters that were turned
    for step in steps.tolist():
        longer = np.zeros(chance.size + step)
        longer[: chance.size] = chance / 2
        longer[step:] += chance / 2
        chance = longer
    most_turned = (int(steps.sum()) - abs(int(whole.sum()))) // 2
    return min(1.0, 2.0 * float(chance[: most_turned + 1].sum()))


def _difference(differences: _Floats, sums: Sums, labels: NDArray[np.intp], confidence: float) -> Estimate:
    """Tango's interval on the effective n; a pair may count as a fraction of a discordant one."""
    n = differences.size
    mean = float(differences.mean())
    discordant = cluster_sums(np.abs(differences), labels).total
    variance = float(discordant.sum()) / n - mean**2
    informative = int((discordant > 0).sum())
    effective_n = effective(sums.total - sums.size * mean, sums.size, variance, informative)
    only_a, only_b = float(np.maximum(-differences, 0).mean()), float(np.maximum(differences, 0).mean())
    bounds = tango_bounds_at(only_a, only_b, effective_n.at(confidence), confidence)
    return effective_n.estimate(mean, bounds, "tango", confidence)


def _fraction(share: float) -> Fraction:
    if not 0.0 <= share <= 1.0:
        raise BadArgument(f"a share of {share} is not in [0, 1], e.g. 0.25")
    return Fraction(share).limit_denominator(_FINEST)


def _trials(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> tuple[_Floats, _Floats, NDArray[np.intp]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise BadArgument(
            f"{first.shape} and {second.shape} trials are not paired; both must be flat and equal"
        )
    for values in (first, second):
        if not np.all((values == 0.0) | (values == 1.0) | np.isnan(values)):
            raise BadArgument("a trial is 1.0 (broke), 0.0 (held) or nan (unclear)")
    _, labels = np.unique(np.asarray(clusters), return_inverse=True)
    if labels.shape != first.shape:
        raise BadArgument(
            f"{first.shape} values do not fit {labels.shape} clusters; both must be flat and equal"
        )
    return first, second, labels
