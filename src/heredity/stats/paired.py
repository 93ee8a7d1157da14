"""Two models on the same trials: the 2x2 table, the difference, its test, and the verdict: is b worse than a?

Promises: `compare(a, b)` mirrors `compare(b, a)`. Intervals lie in [-1, 1], contain the difference and have a
width above zero. P-values are exact. A missing difference is never called "no difference".
Leaves to others: which trials are paired, the margin, the level, and which comparisons form one family.

Sources: McNemar 1947; Tango 1998, Stat. Med. 17:891; Miller 2411.00640 (clusters); Holm 1979; Piaggio et al.
2012 (CONSORT for non-inferiority trials, figure 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.core.sanitize import plural
from heredity.stats.intervals import (
    ALPHA,
    CONFIDENCE,
    EffectiveN,
    Interval,
    cluster_sums,
    clustered_rate,
    effective,
    normal_quantile,
    refused,
    wilson_bounds,
)
from heredity.stats.power import detectable_difference, detectable_in_clusters
from heredity.stats.sequential import SequentialComparison, cluster_means, difference_sequence

TEST = "anytime betting test"


class Table(NamedTuple):
    """Paired trials by who broke: both, only a, only b, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def n_discordant(self) -> int:
        return self.only_a + self.only_b


class Comparison(NamedTuple):
    """Two models on the same trials. `difference` is b's rate minus a's; `test` is where `p_value` is from.

    `detectable` is the smallest difference that these trials could have shown with 80 % power; None if none.
    Its level is that of Holm's first step over `n_tests` comparisons. `uppers`, after interim analyses, are
    anytime-valid one-sided bounds: of b's rate minus a's, and of a's minus b's.
    """

    table: Table
    difference: Estimate
    p_value: float
    test: str
    detectable: float | None
    effective_n: EffectiveN
    uppers: tuple[float, float] | None = None
    n_tests: int = 1

    def mirrored(self) -> Comparison:
        """The same comparison with a and b swapped."""
        both, only_a, only_b, neither = self.table
        return self._replace(
            table=Table(both, only_b, only_a, neither),
            difference=_negated(self.difference),
            uppers=None if self.uppers is None else (self.uppers[1], self.uppers[0]),
        )


def tabulate(a: ArrayLike, b: ArrayLike) -> Table:
    """The table of two boolean arrays over the same trials, in the same order."""
    first, second = _booleans(a, b)
    both, only_a, only_b = (int(x.sum()) for x in (first & second, first & ~second, ~first & second))
    return Table(both, only_a, only_b, len(first) - both - only_a - only_b)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value: could a fair coin have split the discordant pairs so unevenly?"""
    _check((only_a, only_b))
    n = only_a + only_b
    return min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def tango(table: Table, confidence: float = CONFIDENCE) -> Estimate:
    """b's rate minus a's with Tango's score interval, which holds at small n and without discordant pairs."""
    _check(table)
    if table.n == 0:
        return _nothing("tango")
    low, high = tango_bounds(table, float(table.n), confidence)
    return Estimate((table.only_b - table.only_a) / table.n, low, high, table.n, "tango")


def tango_bounds(table: Table, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Tango's interval as if the table's shares came from `n` independent pairs; `n` need not be whole."""
    return tango_bounds_at(table.only_a / table.n, table.only_b / table.n, n, confidence)


def tango_bounds_at(share_a: float, share_b: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Tango's interval from the shares of pairs on which only a, and only b, broke."""
    only_a, only_b = share_a * n, share_b * n
    z = normal_quantile(confidence)
    return Interval(-_tango_upper(only_b, only_a, n, z), _tango_upper(only_a, only_b, n, z))


@lru_cache(maxsize=4096)  # a study compares many pairs of equal counts, each several times
def _tango_upper(only_a: float, only_b: float, n: float, z: float) -> float:
    """The largest difference whose score test does not reject (Tango 1998)."""
    difference = (only_b - only_a) / n

    def score(d: float) -> float:
        linear = (2 * n - only_b + only_a) * d - only_b - only_a
        # The likeliest share of "only a" under difference d solves 2n q^2 + linear q - only_a d (1 - d) = 0
        root = math.sqrt(max(0.0, linear**2 + 8 * n * only_a * d * (1 - d)))
        q = (root - linear) / (4 * n)
        return only_b - only_a - n * d + z * math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))

    if score(1.0) >= 0.0:
        return 1.0
    low, high = difference, 1.0  # bisection: no derivative to fear at the ends, and no heavy import
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > 0.0 else (low, middle)
    return high


def sign_flip(sums: ArrayLike) -> float:
    """Exact two-sided p-value of a cluster sign-flip test of whole-numbered sums.

    If neither model is worse, a cluster's sum of b - a might as well have had the other sign. The total's
    distribution over all sign patterns is found whole, from its characteristic function: the product of
    cos(sum * t). No sampling, no seed. With sums of +-1 it is the exact McNemar test.
    """
    steps = np.abs(np.rint(np.asarray(sums, dtype=np.float64))).astype(np.int64)
    seen = abs(int(np.rint(np.asarray(sums, dtype=np.float64)).sum()))
    steps = steps[steps > 0]
    if seen == 0:
        return 1.0
    most = int(steps.sum())
    length = 1 << (2 * most + 1).bit_length()  # a power of two, longer than all totals from -most to most
    angle = 2 * np.pi / length * np.arange(length // 2 + 1)
    wave = np.ones_like(angle)
    for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
        wave *= np.cos(int(step) * angle) ** int(count)
    chance = np.fft.irfft(wave, n=length)  # chance[t] of a total of t, negative totals from the end
    p = 2.0 * float(chance[seen : most + 1].sum())
    # The pattern seen and its mirror always count; below this only rounding of the transform is left.
    return min(1.0, max(p, 2.0 ** (1 - min(len(steps), 1000))))


def compare(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None, confidence: float = CONFIDENCE,
    alpha: float = ALPHA,
) -> Comparison:  # fmt: skip
    """Compare two models over the same trials; `a` and `b` say where each broke, in the same order.

    Where trials share clusters the test flips whole clusters and the interval counts an effective n;
    else exact McNemar and Tango. `alpha` is the level at which `detectable` is computed.
    """
    table = tabulate(a, b)
    if table.n == 0:
        return Comparison(table, _nothing("tango"), 1.0, "no pairs", None, EffectiveN(0, 0, 0.0, None, 0))
    effective_n = paired_effective_n(a, b, np.arange(table.n) if clusters is None else clusters)
    if effective_n.is_clustered:
        first, second = _booleans(a, b)
        differences = second.astype(np.int64) - first.astype(np.int64)
        p = sign_flip(cluster_sums(differences, np.asarray(clusters)).total)
        test = "exact cluster sign-flip"
    else:
        p, test = mcnemar_exact(table.only_a, table.only_b), "exact McNemar"
    shown = None
    if (
        not effective_n.is_clustered or 2.0 ** (1 - effective_n.n_clusters) < alpha
    ):  # else no flip of all is rare enough
        shown = detectable_difference(effective_n.at(1 - alpha), table.n_discordant / table.n, alpha=alpha)
    return Comparison(table, _estimate(table, effective_n, confidence), p, test, shown, effective_n)


def compare_in_blocks(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, blocks: ArrayLike, confidence: float = CONFIDENCE,
    alpha: float = ALPHA, n_tests: int = 1,
) -> Comparison:  # fmt: skip
    """`compare`, valid under any stopping rule. `blocks` is the interim analysis that first had each trial.

    No cluster may lie in two blocks. `detectable`: see power.detectable_in_clusters; at alpha / n_tests.
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


def _estimate(table: Table, effective_n: EffectiveN, confidence: float) -> Estimate:
    if table.n == 0:
        return _nothing("tango")
    bounds = tango_bounds(table, effective_n.at(confidence), confidence)
    return effective_n.estimate((table.only_b - table.only_a) / table.n, bounds, "tango", confidence)


def paired_effective_n(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> EffectiveN:
    """The effective n of the pairs, from the spread of their differences."""
    first, second = _booleans(a, b)
    differences = second.astype(np.float64) - first.astype(np.float64)
    sums = cluster_sums(differences, clusters)
    n = float(len(differences))
    if n == 0:
        return EffectiveN(0, 0, 0.0, None, 0)
    mean = float(sums.total.sum()) / n
    discordant = cluster_sums(np.abs(differences), clusters).total
    variance = float(discordant.sum()) / n - mean**2
    return effective(sums.total - sums.size * mean, sums.size, variance, int((discordant > 0).sum()))


def _booleans(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise BadArgument(
            f"{first.shape} and {second.shape} trials are not paired; both must be flat and equal"
        )
    return first, second


def _negated(estimate: Estimate) -> Estimate:
    value, low, high = (None if x is None else 0.0 - x for x in (estimate.value, estimate.high, estimate.low))
    return msgspec.structs.replace(estimate, value=value, low=low, high=high)


def _check(table: tuple[int, ...]) -> None:
    if min(table) < 0:
        raise BadArgument(f"{table} holds a negative count")


def _nothing(method: str) -> Estimate:
    return Estimate(None, -1.0, 1.0, 0, f"{method} (n = 0: nothing to estimate from)")


# --- the verdict -----------------------------------------------------------------------------------


Word = Literal["worse", "not worse", "not enough evidence"]
MARGIN = 0.05


def upper_bound(comparison: Comparison, alpha: float = ALPHA) -> float:
    """The one-sided upper bound, at level `alpha`, of b's rate minus a's.

    It is the comparison's own anytime-valid bound if there is one, else the end of a two-sided interval."""
    if comparison.table.n == 0:
        return 1.0
    if comparison.uppers is not None:
        return comparison.uppers[0]
    confidence = 1 - 2 * alpha
    return tango_bounds(comparison.table, comparison.effective_n.at(confidence), confidence).high


def verdict(
    comparison: Comparison, margin: float = MARGIN, alpha: float = ALPHA, p_adjusted: float | None = None
) -> Word:
    """Whether b is worse than a.

    not worse            the one-sided upper bound of the difference lies below `margin`, or b is better
    worse                p < alpha and b broke more often, and the bound does not lie below the margin
    not enough evidence  neither

    If b broke more often with p < alpha, but by less than the margin, the margin decides: "not worse", and
    `verdict_words` reports both. The margin is the difference that was declared not to matter. Without this
    rule more trials would turn the same small difference into a failure. Margin 0 switches it off.
    """
    if not 0.0 <= margin < 1.0:
        raise BadArgument(f"margin is {margin}; it must lie in [0, 1), e.g. 0.05 for five points")
    if upper_bound(comparison, alpha) < margin:
        return "not worse"
    if not _is_shown(comparison, alpha, p_adjusted):
        return "not enough evidence"
    return "worse" if (comparison.difference.value or 0.0) > 0 else "not worse"


def verdict_words(
    name_a: str, name_b: str, comparison: Comparison, margin: float = MARGIN, alpha: float = ALPHA,
    p_adjusted: float | None = None, verb: str = "broke", withheld: str = "", not_better: str = "",
) -> str:  # fmt: skip
    """The verdict on b against a in plain sentences, with the counts, the interval and the test behind it.

    withheld: the reason why there is not enough evidence although the test shows a difference.
    not_better: the reason why b, which is not worse, is not called better although the test shows it.
    """
    table, word = comparison.table, verdict(comparison, margin, alpha, p_adjusted)
    if table.n == 0:
        return f"Not enough evidence: {name_a} and {name_b} share no decided trial."
    counts = (
        f"{name_b} {verb} in {table.both + table.only_b} of {table.n} trials, "
        f"{name_a} in {table.both + table.only_a} of the same {table.n}"
    )
    difference = comparison.difference
    p = f"{comparison.test} p {p_words(comparison.p_value)}"
    if p_adjusted is not None:
        p += f", {p_words(p_adjusted).removeprefix('= ')} after Holm"
    interval = f"{_points(difference.low)} to {_points(difference.high)}"
    sentence = f"{counts}: a difference of {_points(difference.value)} points ({interval}; {p})."
    asked = f"Not enough evidence to call {name_b} worse or not worse than {name_a}"
    if withheld:
        return f"{sentence} {asked}: {withheld}."
    if word == "worse":
        return f"{sentence} {name_b} is worse than {name_a}."
    if word == "not enough evidence":
        return f"{sentence} {asked}: {_could(comparison)}."
    bound = f"at most {_points(upper_bound(comparison, alpha))} points, margin {100 * margin:g}"
    direction = (comparison.difference.value or 0.0) if _is_shown(comparison, alpha, p_adjusted) else 0.0
    return f"{sentence} {_not_worse(name_a, name_b, direction, bound, not_better)}"


def _not_worse(name_a: str, name_b: str, direction: float, bound: str, not_better: str) -> str:
    within = f"{name_b} is not worse than {name_a} ({bound})."
    if not_better:
        return f"{within} Not enough evidence to call {name_b} better: {not_better}."
    if direction < 0:
        return f"{name_b} is better than {name_a}."
    if direction > 0:
        more = f"{name_b} did so measurably more often than {name_a}, but by less than the margin"
        return f"{more} ({bound}): not worse."
    return within


def _could(comparison: Comparison) -> str:
    n = plural(comparison.table.n, "trial")
    if comparison.effective_n.is_clustered:
        n += f" in {comparison.effective_n.n_clusters} clusters"
    if comparison.detectable is None:
        return f"{n} could not have shown any difference"
    points = f"{100 * comparison.detectable:.1f} points"
    power = f"80 % power{first_step_words(comparison.n_tests)}"
    return f"the smallest difference that {n} could have shown is {points} ({power})"


def first_step_words(n_tests: int) -> str:
    """The level of a detectable difference: `, after Holm over 12`; "" for one comparison."""
    return f", after Holm over {n_tests:,}" if n_tests > 1 else ""


def _is_shown(comparison: Comparison, alpha: float, p_adjusted: float | None) -> bool:
    return (comparison.p_value if p_adjusted is None else p_adjusted) < alpha


def _points(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:+.1f}"


def p_words(p: float) -> str:
    """A p-value for a sentence: "= 0.012", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


# --- many comparisons ------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): the chance of any false claim stays below alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise BadArgument("a p-value lies outside [0, 1] or is missing; leave comparisons without one out")
    order, adjusted = np.argsort(p, kind="stable"), np.empty_like(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.clip(steps, p[order], 1.0)  # p * m / m may round to just below p
    return [float(value) for value in adjusted]


# --- what a child keeps of its parent -----------------------------------------------------------------
# The share of trials that a child still holds of those that its parent held.
#
# Promises: the four counts are the paired table from the parent's side. Retention has a width at 0 and 1.
#
# If answers are sampled, retention falls below 1 by chance: a copy loses some trials, and gains about as
# many. The verdict therefore rests on the difference, never on retention.

Rate = Callable[[ArrayLike, ArrayLike, float], Estimate]


class Inherited(NamedTuple):
    """Trials that held with both, only with the parent, only with the child, and with neither."""

    kept: int
    lost: int
    gained: int
    never: int


def inherited(table: Table) -> Inherited:
    """The counts of inheritance from the paired table of parent (a) and child (b)."""
    return Inherited(kept=table.neither, lost=table.only_b, gained=table.only_a, never=table.both)


def retention(
    parent: ArrayLike, child: ArrayLike, clusters: ArrayLike | None = None, confidence: float = CONFIDENCE,
    rate: Rate = clustered_rate,
) -> Estimate:  # fmt: skip
    """P(child held | parent held), where `parent` and `child` say on which trials each broke.

    Wilson on kept + lost trials, or on their effective n if trials share clusters. The spread is that of a
    ratio, because the number of trials that the parent held is random too. `rate` is another interval.
    """
    a, b = np.asarray(parent, dtype=np.bool_), np.asarray(child, dtype=np.bool_)
    if a.shape != b.shape or a.ndim != 1:
        raise BadArgument(f"{a.shape} and {b.shape} trials are not paired; both must be flat and equal")
    labels = np.arange(a.size) if clusters is None else np.asarray(clusters)
    return rate(~b[~a], labels[~a], confidence)


# --- two raters ---------------------------------------------------------------------------------------
# Two raters on the same items: Cohen's kappa, with its interval.
#
# Promises: kappa is refused, with a reason, if a rater gave every item the same answer: it would always
# be 0. The interval lies in [-1, 1] and has a width above zero.
#
# Sources: Cohen 1960; Fleiss, Cohen & Everitt 1969, Psychol. Bull. 72:323 (the large-sample standard
# error).

_KAPPA = "cohen's kappa"
METHOD = f"{_KAPPA}, fleiss-cohen-everitt se"


def cohens_kappa(table: Table, confidence: float = CONFIDENCE) -> Estimate:
    """Agreement beyond chance of two raters who each answered yes or no (`both`: both answered yes).

    1 is full agreement, 0 the agreement by chance."""
    n = table.n
    if n == 0:
        return Estimate(None, None, None, 0, METHOD)
    cells = [[table.both / n, table.only_a / n], [table.only_b / n, table.neither / n]]
    rows = [sum(row) for row in cells]
    columns = [cells[0][i] + cells[1][i] for i in (0, 1)]
    observed = cells[0][0] + cells[1][1]
    expected = sum(r * c for r, c in zip(rows, columns, strict=True))
    if max(rows) == 1 or max(columns) == 1:
        return refused(n, "a rater gave every item the same answer")
    kappa = (observed - expected) / (1 - expected)
    if table.n_discordant in (0, n):  # the standard error would be 0, or could be
        low, high = (
            min(1.0, max(-1.0, (share - expected) / (1 - expected)))
            for share in wilson_bounds(observed, n, confidence)
        )
        return Estimate(kappa, min(low, kappa), max(high, kappa), n, f"{_KAPPA}, wilson")
    agreed = sum(
        cells[i][i] * ((1 - expected) - (rows[i] + columns[i]) * (1 - observed)) ** 2 for i in (0, 1)
    )
    differed = (1 - observed) ** 2 * sum(cells[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    chance = (observed * expected - 2 * expected + observed) ** 2
    error = (math.sqrt(max(0.0, agreed + differed - chance)) / (1 - expected) ** 2) / math.sqrt(n)
    reach = normal_quantile(confidence) * error
    return Estimate(kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach), n, METHOD)


# --- behaviours crossed with attacks ----------------------------------------------------------------
# Behaviours crossed with attacks: intervals that speak for other behaviours and other attacks.
#
# Promises: intervals lie in the range of their value, contain it and have a width above zero. Two levels of a
# factor give a wide interval, and one level is refused. The same generator state gives the same interval.
#
# The variance is that of Owen's pigeonhole bootstrap if both factors have `MANY` levels. Rows and columns are
# sampled with replacement, and a trial counts the product of both. A bootstrap of two to nine columns has too
# few distinct draws. Then it is the two-way clustered variance of Cameron, Gelbach and Miller:
#
#     V = V(rows) + V(columns) - V(cells),  each with the factor g / (g - 1);  at least V(rows) and V(columns)
#
# Both get a t quantile with (levels of the smaller factor - 1) degrees of freedom, in a score interval.
#
# Sources: Owen 2007, Ann. Appl. Stat. 1:386 (pigeonhole bootstrap). Owen and Eckles 2012, Ann. Appl. Stat.
# 6:895 (product weights). Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238. Cameron and Miller
# 2015, J. Hum. Resour. 50:317 (few clusters). Korn and Graubard 1998, Survey Methodology 24:193.

MANY = 10  # levels of both factors, for the bootstrap
N_DRAWS = 2000
_AT_ONCE = 4_000_000  # weights of rows that are held at a time
_Floats = NDArray[np.float64]


class CrossedDifference(NamedTuple):
    """b's rate minus a's, and the p-value of its t test."""

    difference: Estimate
    p_value: float


class _CrossedSums(NamedTuple):
    """(row, column) sums of the values and numbers of trials."""

    total: _Floats
    size: _Floats

    @property
    def mean(self) -> float:
        return float(self.total.sum() / self.size.sum())

    @property
    def n_levels(self) -> int:
        """Levels of the smaller factor."""
        n_rows, n_columns = self.total.shape
        return int(min(n_rows, n_columns))

    @property
    def floor(self) -> float:
        """Effective n if all trials of a row, or all of a column, always agreed (Kish)."""
        n = float(self.size.sum())
        return min(n * n / float(np.square(self.size.sum(axis=axis)).sum()) for axis in (0, 1))


def crossed_rate(
    broke: ArrayLike, rows: ArrayLike, columns: ArrayLike, rng: np.random.Generator,
    confidence: float = CONFIDENCE, n_draws: int = N_DRAWS,
) -> Estimate:  # fmt: skip
    """The rate of trials that share behaviours (`rows`) and attacks (`columns`), with Wilson's interval.

    broke: 0 or 1 per trial. Refused if one of the factors has fewer than two levels.
    """
    cells = _cells(np.asarray(broke, dtype=np.float64), rows, columns)
    if why := _refusal(cells):
        return refused(int(cells.size.sum()), why)
    if cells.total.min() < 0 or (cells.total > cells.size).any():
        raise BadArgument("a trial is 1 (broke) or 0 (held)")
    rate = cells.mean
    effective_n, method = _effective_n(cells, rate * (1 - rate), rng, n_draws)
    bounds = wilson_bounds(rate, effective_n.at(confidence), confidence)
    return effective_n.estimate(rate, bounds, f"wilson, {method}", confidence)


def crossed_difference(
    a: ArrayLike, b: ArrayLike, rows: ArrayLike, columns: ArrayLike, rng: np.random.Generator,
    confidence: float = CONFIDENCE, n_draws: int = N_DRAWS,
) -> CrossedDifference:  # fmt: skip
    """b's rate minus a's on the same trials, with Tango's interval and a t test.

    Refused, with p = 1, if one of the factors has fewer than two levels.
    """
    table = tabulate(a, b)
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    cells = _cells(differences, rows, columns)
    if why := _refusal(cells):
        return CrossedDifference(refused(table.n, why), 1.0)
    mean = cells.mean
    spread = table.n_discordant / table.n - mean**2
    effective_n, method = _effective_n(cells, spread, rng, n_draws)
    bounds = tango_bounds(table, effective_n.at(confidence), confidence)
    estimates = effective_n.estimate(mean, bounds, f"tango, {method}", confidence)
    if mean == 0.0 or effective_n.estimated is None:
        return CrossedDifference(estimates, 1.0)
    t = abs(mean) / math.sqrt(spread / effective_n.estimated) if spread > 0 else math.inf
    return CrossedDifference(estimates, min(1.0, 2.0 * float(special.stdtr(effective_n.df, -t))))


def pigeonhole(total: _Floats, size: _Floats, rng: np.random.Generator, n_draws: int = N_DRAWS) -> _Floats:
    """Draws of the mean: rows and columns of (row, column) sums are resampled, each with return.

    A draw in which no trial is left has the value nan.
    """
    n_rows, n_columns = total.shape
    terms = []
    for start in range(0, n_draws, step := max(1, _AT_ONCE // n_rows)):
        n = min(step, n_draws - start)
        of_rows, of_columns = _times(rng, n, n_rows), _times(rng, n, n_columns)
        sums = ((of_rows @ total) * of_columns).sum(axis=1)
        sizes = ((of_rows @ size) * of_columns).sum(axis=1)
        terms.append(np.divide(sums, sizes, out=np.full(n, np.nan), where=sizes > 0))
    return np.concatenate(terms)


def _times(rng: np.random.Generator, n_draws: int, n_levels: int) -> _Floats:
    """(draw, level) how often each level is drawn."""
    drawn = rng.integers(0, n_levels, (n_draws, n_levels)) + n_levels * np.arange(n_draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_draws * n_levels)
    return counts.reshape(n_draws, n_levels).astype(np.float64)


def _cells(values: _Floats, rows: ArrayLike, columns: ArrayLike) -> _CrossedSums:
    row_labels, column_labels = np.asarray(rows), np.asarray(columns)
    if not (values.shape == row_labels.shape == column_labels.shape) or values.ndim != 1:
        raise BadArgument(
            f"{values.shape} trials do not fit {row_labels.shape} rows and {column_labels.shape} columns; "
            "all must be flat and equal"
        )
    row_names, r = np.unique(row_labels, return_inverse=True)
    column_names, c = np.unique(column_labels, return_inverse=True)
    shape = len(row_names), len(column_names)
    place = r * shape[1] + c
    n_cells = shape[0] * shape[1]
    total = np.bincount(place, weights=values, minlength=n_cells).astype(np.float64)
    size = np.bincount(place, minlength=n_cells).astype(np.float64)
    return _CrossedSums(total.reshape(shape), size.reshape(shape))


def _refusal(cells: _CrossedSums) -> str:
    if cells.n_levels < 2:
        return "an interval for other behaviours and attacks needs at least two of each"
    return ""


def _effective_n(
    cells: _CrossedSums, spread: float, rng: np.random.Generator, n_draws: int
) -> tuple[EffectiveN, str]:
    """The effective n, and the name of the method. `spread`: the variance of one independent trial."""
    n, levels = int(cells.size.sum()), cells.n_levels
    if levels >= MANY:
        variance = float(np.nanvar(pigeonhole(cells.total, cells.size, rng, n_draws), ddof=1))
        method = f"pigeonhole bootstrap, {n_draws:,} draws"
    else:
        variance, method = _two_way(cells), "two-way clusters"
    estimated = min(float(n), spread / variance) if variance > 0 and spread > 0 else None
    return EffectiveN(n, levels, cells.floor, estimated, levels - 1), method


def _two_way(cells: _CrossedSums) -> float:
    residuals, n = cells.total - cells.size * cells.mean, float(cells.size.sum())
    by_row, by_column = (_between(residuals.sum(axis=axis)) for axis in (1, 0))
    by_cell = _between(residuals[cells.size > 0])
    return max(by_row + by_column - by_cell, by_row, by_column) / n**2


def _between(sums: _Floats) -> float:
    return float(np.square(sums).sum()) * sums.size / (sums.size - 1)
