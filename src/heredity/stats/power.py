"""Planning: how many trials show a difference, and what difference these trials could have shown.

Promises: exact power of the exact McNemar test up to EXACT_TO pairs, the normal approximation above. Several
models mean the level of Holm's first step, the hardest, over all comparisons of the study.

Sources: Connor 1987, Biometrics 43:207 (sample size for paired proportions); Kish 1965 (design effect).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Record
from heredity.stats.intervals import ALPHA, CONFIDENCE, normal_quantile, wilson_bounds
from heredity.stats.sequential import Side, discordant_log_e, log_factors, log_mean_exp, rate_sequence

EXACT_TO = 5000  # pairs; above it the normal approximation is off by less than its rounding
POWER = 0.8
_DRAWS, _FINE = 200, 1e-3  # of the power of interim analyses, and of the difference that has it
_MAX_TRIALS = 10**9  # no plan needs more trials


def design_effect(mean_size: float, correlation: float) -> float:
    """By how much clusters of `mean_size` trials with this intra-cluster correlation inflate the variance."""
    return 1.0 + (mean_size - 1.0) * correlation


def paired_power(n: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """The chance that n pairs show `difference` between two paired rates at two-sided level `alpha`.

    `discordance` is the share of pairs on which the two disagree; it cannot be below the difference, and
    is raised to it where it is.
    """
    difference = abs(difference)
    discordance = max(discordance, difference)
    if not 0.0 <= difference <= discordance <= 1.0:
        raise BadArgument(f"difference {difference} and discordance {discordance} must lie in [0, 1]")
    if n < 1 or difference == 0.0:
        return 0.0
    if n > EXACT_TO:
        spread = math.sqrt(max(discordance - difference**2, 1e-300))
        z = (difference * math.sqrt(n) - normal_quantile(1 - alpha) * math.sqrt(discordance)) / spread
        return float(special.ndtr(z))
    share = (discordance + difference) / (2 * discordance)
    m = np.arange(n + 1)
    weight = _binomial_pmf(m, n, discordance)
    critical = _critical(n, alpha)
    rejects = np.where(critical >= 0, special.bdtr(np.maximum(critical, 0), m, 1 - share), 0.0)
    return float((weight * rejects).sum())


def n_for_difference(
    difference: float, discordance: float, power: float = POWER, alpha: float = ALPHA, deff: float = 1.0
) -> int:
    """The number of pairs that shows `difference` with this power, times the design effect `deff`."""
    if not 0.0 < abs(difference) <= 1.0:
        raise BadArgument(f"difference is {difference}; it must lie in (0, 1]")
    return _smallest(lambda n: paired_power(n, discordance, difference, alpha) >= power, deff)


def detectable_difference(
    n: float, discordance: float, power: float = POWER, alpha: float = ALPHA, deff: float = 1.0
) -> float | None:
    """The smallest difference that n pairs could have shown with this power; None if no difference could.

    Fewer than six pairs can never reach p < 0.05 in the exact test.
    """
    pairs = int(n / deff)
    if pairs < 1 or paired_power(pairs, discordance, 1.0, alpha) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if paired_power(pairs, discordance, middle, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


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


def n_for_margin(
    margin: float, discordance: float, power: float = POWER, alpha: float = ALPHA, deff: float = 1.0
) -> int:
    """The number of pairs that shows "not worse" within `margin` where the two really are equal.

    Normal approximation: n = (z_alpha + z_power)^2 * discordance / margin^2, one-sided alpha.
    """
    if not 0.0 < margin <= 1.0:
        raise BadArgument(f"margin is {margin}; it must lie in (0, 1]")
    z = float(special.ndtri(1 - alpha) + special.ndtri(power))
    return math.ceil(z * z * max(discordance, 0.0) / margin**2 * deff)


def not_worse_power(n: int, discordance: float, margin: float, alpha: float = ALPHA) -> float:
    """The chance that n pairs of equal models show "not worse" within `margin`, at one-sided level `alpha`.

    The verdict is that of paired.py: Tango's upper bound lies below the margin. Exact up to EXACT_TO pairs.
    """
    if not (0.0 < margin <= 1.0 and 0.0 <= discordance <= 1.0):
        raise BadArgument(f"margin {margin} must lie in (0, 1] and discordance {discordance} in [0, 1]")
    if n < 1:
        return 0.0
    if n > EXACT_TO:
        spread = math.sqrt(max(discordance, 1e-300))
        return float(special.ndtr(margin * math.sqrt(n) / spread + special.ndtri(alpha)))
    m = np.arange(n + 1)
    critical = _tango_critical(n, margin, alpha)
    shows = np.where(critical >= 0, special.bdtr(np.maximum(critical, 0), m, 0.5), 0.0)
    return float((_binomial_pmf(m, n, discordance) * shows).sum())


def n_for_not_worse(margin: float, discordance: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """The number of pairs of equal models from which `not_worse_power` reaches `power`.

    Unlike `n_for_margin` it holds where equal models hardly ever differ.
    """
    return _smallest(lambda n: not_worse_power(n, discordance, margin, alpha) >= power, 1.0)


def shown_margin(n: int, discordance: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest margin within which n pairs of equal models show "not worse" with this power.

    None if no margin below 1 has it.
    """
    low, high = 0.0, 1.0 - 1e-4
    if not_worse_power(n, discordance, high, alpha) < power:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        if not_worse_power(n, discordance, middle, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def n_for_rate_width(rate: float, width: float, confidence: float = CONFIDENCE, deff: float = 1.0) -> int:
    """The number of trials after which Wilson's interval around `rate` is at most `width` wide.

    At rate 0 this is the number of trials without a breach that bounds the rate by `width`.
    """
    if not (0.0 <= rate <= 1.0 and 0.0 < width <= 1.0):
        raise BadArgument(f"rate {rate} must lie in [0, 1] and width {width} in (0, 1]")

    def is_narrow(n: int) -> bool:
        low, high = wilson_bounds(rate, n, confidence)
        return high - low <= width

    return _smallest(is_narrow, deff)


def _smallest(holds: Callable[[int], bool], deff: float) -> int:
    """The n at which `holds` begins, times deff. Exact power is a saw: just above it may fall short again."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _MAX_TRIALS:
            raise BadArgument(
                "more than a billion trials would be needed; ask for a larger difference or width"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return math.ceil(high * deff)


@lru_cache(maxsize=256)
def _critical(n: int, alpha: float) -> NDArray[np.int64]:
    """For each m = 0..n the largest min(only_a, only_b) at which the exact test rejects; -1 for none."""
    m = np.arange(n + 1)
    guess = np.floor(special.bdtrik(alpha / 2, m, 0.5)) if n else np.array([-1.0])
    c = np.where(np.isfinite(guess), guess, -1).astype(np.int64)
    c = np.clip(c + 1, -1, m // 2)
    for _ in range(3):
        over = (c >= 0) & (2 * special.bdtr(np.maximum(c, 0), m, 0.5) >= alpha)
        c = np.where(over, c - 1, c)
    return c


@lru_cache(maxsize=256)
def _tango_critical(n: int, margin: float, alpha: float) -> NDArray[np.int64]:
    """For each m = 0..n discordant pairs the largest only_b at which Tango's bound is below the margin; -1.

    The bound lies below the margin exactly if the score test rejects a difference of the margin.
    """
    m, z = np.arange(n + 1), -float(special.ndtri(alpha))

    def rejects(only_b: NDArray[np.int64]) -> NDArray[np.bool_]:
        only_a = m - only_b
        linear = (2 * n - only_b + only_a) * margin - m
        root = np.sqrt(np.maximum(0.0, linear**2 + 8 * n * only_a * margin * (1 - margin)))
        variance = n * ((root - linear) / (2 * n) + margin * (1 - margin))
        return np.asarray(only_b - only_a - n * margin + z * np.sqrt(np.maximum(0.0, variance)) < 0)

    low, high = np.full(n + 1, -1), m + 1  # rejection ends as only_b grows
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_below = rejects(np.clip(middle, 0, m)) & (middle >= 0)
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return low.astype(np.int64)


def _binomial_pmf(m: NDArray[np.int64], n: int, p: float) -> NDArray[np.float64]:
    log = special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)
    return np.asarray(np.exp(log + special.xlogy(m, p) + special.xlog1py(n - m, -p)))


# --- studies that stop early --------------------------------------------------------------------------
# Planning a study that stops early: how many pairs it may need, and how many it needs on average.
#
# Promises: for a difference, both are exact for independent pairs that are analysed one by one. For a
# margin, they are simulated with the given generator.
#
# If trials share behaviours, the numbers are multiplied by the design effect: good for planning, not
# exact.

MAX_DISCORDANT = 20_000  # a plan that needs more is refused
_Floats = NDArray[np.float64]


class SequentialSize(NamedTuple):
    """The size of a study that stops early, in pairs.

    n_most    after this many, the chance of a decision is the requested power
    n_mean    the average, if the study stops at the decision and at n_most at the latest
    n_median  after this many, half of all studies have decided
    """

    n_most: int
    n_mean: float
    n_median: int


def sequential_n_for_difference(
    difference: float, discordance: float, power: float = POWER, alpha: float = ALPHA, deff: float = 1.0
) -> SequentialSize:
    """Pairs until E >= 1 / alpha if the rates differ by `difference`, with an analysis after every pair.

    `discordance` is the share of pairs on which the two disagree, at least the difference.
    """
    difference = abs(difference)
    discordance = max(discordance, difference)
    if not 0.0 < difference <= discordance <= 1.0:
        raise BadArgument(f"difference {difference} and discordance {discordance} must lie in (0, 1]")
    decided = stopping((discordance + difference) / (2 * discordance), power, alpha)
    n_most, n_median = (_first(decided, discordance, share) for share in (power, 0.5))
    at = np.unique(np.linspace(0, n_most, min(n_most, 200) + 1).round().astype(np.int64))
    open_ = [1 - _decided_by(decided, discordance, int(n)) for n in at]
    return _scaled(n_most, float(np.trapezoid(open_, at)), n_median, deff)


def stopping(share: float, power: float = POWER, alpha: float = ALPHA) -> _Floats:
    """The chance of a decision within t discordant pairs, for t = 0, 1, ..., up to a little above `power`.

    `share` of the discordant pairs are one model's. Raises ValueError if that takes too many.
    """
    chance, stopped = np.array([1.0]), [0.0]  # chance[b]: b of the t so far are one model's, undecided
    goal = power + 0.9 * (1 - power)
    for t in range(1, MAX_DISCORDANT):
        chance = np.append(chance, 0.0) * (1 - share) + np.append(0.0, chance) * share
        low, high = -1, (t - 1) // 2 + 1  # evidence falls as the rarer kind nears half
        while high - low > 1:
            middle = (low + high) // 2
            is_decided = discordant_log_e(middle, t - middle) >= -math.log(alpha)
            low, high = (middle, high) if is_decided else (low, middle)
        b = low
        out = 0.0 if b < 0 else float(chance[: b + 1].sum() + chance[t - b :].sum())
        if b >= 0:
            chance[: b + 1] = chance[t - b :] = 0.0
        stopped.append(stopped[-1] + out)
        if stopped[-1] >= goal:
            return np.array(stopped)
    raise BadArgument(f"more than {MAX_DISCORDANT:,} discordant pairs would be needed: ask for a larger gap")


def _decided_by(decided: _Floats, discordance: float, n: int) -> float:
    """The chance of a decision within n pairs: the number of discordant ones is binomial."""
    t = np.arange(min(n, len(decided) - 1) + 1)
    log = special.gammaln(n + 1) - special.gammaln(t + 1) - special.gammaln(n - t + 1)
    weight = np.exp(log + special.xlogy(t, discordance) + special.xlog1py(n - t, -discordance))
    beyond = max(0.0, 1.0 - float(weight.sum())) * decided[-1]
    return float(weight @ decided[: len(t)]) + (beyond if n >= len(decided) else 0.0)


def _first(decided: _Floats, discordance: float, share: float) -> int:
    low, high = 0, 1
    while _decided_by(decided, discordance, high) < share:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _decided_by(decided, discordance, middle) >= share:
            high = middle
        else:
            low = middle
    return high


def sequential_n_for_margin(
    margin: float, discordance: float, rng: np.random.Generator, power: float = POWER,
    alpha: float = ALPHA, deff: float = 1.0, runs: int = 1000,
) -> SequentialSize:  # fmt: skip
    """Pairs until "not worse by `margin`" is shown if the two are equal.

    Evidence is computed sixty times per doubling of n."""
    if not (0.0 < margin < 1.0 and 0.0 < discordance <= 1.0):
        raise BadArgument(f"margin {margin} and discordance {discordance} must lie in (0, 1)")
    factors = log_factors([-1.0, 1.0, 0.0], margin, "below")
    counts, n = np.zeros((runs, 3)), 0
    when = np.full(runs, np.inf)
    chances = [discordance / 2, discordance / 2, 1 - discordance]
    while np.isfinite(when).mean() <= power + 0.2 * (1 - power):
        more = max(1, n // 86)
        n += more
        counts += rng.multinomial(more, chances, runs)
        open_ = np.flatnonzero(np.isinf(when))
        capital = log_mean_exp(counts[open_] @ factors)
        when[open_[capital >= -math.log(alpha)]] = n
        if n > MAX_DISCORDANT * 100:
            raise BadArgument("more than two million pairs would be needed: allow a larger margin")
    n_most = int(np.quantile(when, power, method="higher"))
    mean = float(np.minimum(when, n_most).mean())
    return _scaled(n_most, mean, int(np.quantile(when, 0.5, method="higher")), deff)


def sequential_power(
    ends: Sequence[int], discordance: float, rng: np.random.Generator, difference: float = 0.0,
    margin: float | None = None, alpha: float = ALPHA, runs: int = 500,
) -> float:  # fmt: skip
    """The chance that interim analyses after `ends` pairs decide, by simulation.

    margin: None asks for the difference, b above a. Otherwise it asks for "not worse" within the margin.
    """
    side: Side = "both" if margin is None else "below"
    factors = log_factors([-1.0, 1.0, 0.0], margin or 0.0, side)
    only_b = (max(discordance, abs(difference)) + difference) / 2
    chances = [only_b - difference, only_b, 1 - 2 * only_b + difference]
    counts, is_decided = np.zeros((runs, 3)), np.zeros(runs, np.bool_)
    for more in np.diff(ends, prepend=0):
        counts += rng.multinomial(more, chances, runs)
        is_shown = log_mean_exp(counts @ factors) >= -math.log(alpha)
        is_decided |= is_shown & (counts[:, 1] > counts[:, 0]) if margin is None else is_shown
    return float(is_decided.mean())


def _scaled(n_most: int, n_mean: float, n_median: int, deff: float) -> SequentialSize:
    return SequentialSize(math.ceil(n_most * deff), n_mean * deff, math.ceil(n_median * deff))


class SampleSizeQuestion(NamedTuple):
    """The study to plan.

    gap          the difference to detect; None: none
    margin       the difference that "not worse" allows; None: no such claim is planned
    baseline     the breach rate of the better model
    discordance  share of trials on which the two disagree; None: as if they broke independently
    per_cluster  trials per behaviour, with `correlation` between them
    scopes       kinds of breaches in which every pair is compared: 2 if a judge decides some of them
    edges        compare only this many parents and children, instead of every two models; 0: every two
    """

    gap: float | None = None
    margin: float | None = None
    baseline: float = 0.2
    discordance: float | None = None
    power: float = POWER
    alpha: float = ALPHA
    models: int = 2
    per_cluster: float = 1.0
    correlation: float = 0.0
    scopes: int = 1
    edges: int = 0


class RequiredTrials(Record, frozen=True):
    """Trials per model: with a fixed plan, and with early stopping (maximum, mean and median over studies).

    The maximum gives the same power. `alpha` is the level of one comparison, after the correction."""

    discordance: float
    alpha: float
    fixed: int
    sequential_most: int
    sequential_mean: float
    sequential_median: int


class IntervalWidth(Record, frozen=True):
    """The width of a rate's interval after n trials of a model: Wilson's, and an anytime-valid one."""

    n: int
    rate: float
    fixed: float
    anytime: float


class SampleSizePlan(Record, frozen=True):
    """The answer; parts that were not asked are None. `n_pairs` x `scopes` comparisons share the level.

    `n_pairs` counts the edges if the question is about parents and children (`is_of_edges`).
    """

    gap: float | None
    margin: float | None
    baseline: float
    power: float
    models: int
    n_pairs: int
    scopes: int
    design_effect: float
    difference: RequiredTrials | None
    not_worse: RequiredTrials | None
    widths: tuple[IntervalWidth, ...]
    is_of_edges: bool = False


def plan_sample_size(asked: SampleSizeQuestion, rng: np.random.Generator) -> SampleSizePlan:
    """The trials that the study needs. Raises ValueError for a question that has no answer."""
    if asked.gap is None and asked.margin is None:
        raise ValueError("give a gap to find, a margin for 'not worse', or both")
    for name, value in (("gap", asked.gap), ("margin", asked.margin)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1, e.g. 0.1 for ten points")
    if not 0 <= asked.baseline + (asked.gap or 0) <= 1 or asked.baseline < 0:
        raise ValueError(f"a baseline of {asked.baseline} and this gap leave the range from 0 to 1")
    if asked.discordance is not None and not (asked.gap or 0) <= asked.discordance <= 1:
        raise ValueError(f"discordant is {asked.discordance}; it must lie between the gap and 1")
    if asked.scopes < 1:
        raise ValueError("breaches of at least 1 kind are compared")
    if asked.edges < 0:
        raise ValueError(f"edges is {asked.edges}; it must be at least 1, or 0 for every two models")
    if asked.models < 2:
        raise ValueError("models are compared in pairs: plan for at least 2")
    if not (0 < asked.power < 1 and 0 < asked.alpha < 0.5):
        raise ValueError("power must lie between 0 and 1, and alpha between 0 and 0.5")
    if asked.per_cluster < 1 or not 0 <= asked.correlation <= 1:
        raise ValueError("a cluster has at least 1 trial, and a correlation between 0 and 1")
    n_pairs = asked.edges or asked.models * (asked.models - 1) // 2
    deff = design_effect(asked.per_cluster, asked.correlation)
    difference = None if asked.gap is None else _difference(asked, asked.gap, n_pairs * asked.scopes, deff)
    not_worse = None if asked.margin is None else _not_worse(asked, asked.margin, deff, rng)
    sizes = {need.fixed for need in (difference, not_worse) if need is not None}
    return SampleSizePlan(
        asked.gap,
        asked.margin,
        asked.baseline,
        asked.power,
        asked.models,
        n_pairs,
        asked.scopes,
        deff,
        difference,
        not_worse,
        tuple(_width(n, asked.baseline, deff) for n in sorted(sizes)),
        asked.edges > 0,
    )


def _difference(asked: SampleSizeQuestion, gap: float, n_tests: int, deff: float) -> RequiredTrials:
    alpha, discordance = asked.alpha / n_tests, _discordance(asked, gap)
    fixed = n_for_difference(gap, discordance, asked.power, alpha, deff)
    return _need(
        discordance, alpha, fixed, sequential_n_for_difference(gap, discordance, asked.power, alpha, deff)
    )


def _not_worse(
    asked: SampleSizeQuestion, margin: float, deff: float, rng: np.random.Generator
) -> RequiredTrials:
    # Not corrected for several models: a verdict of "not worse" is each pair's own, as in paired.py.
    discordance = _discordance(asked, 0.0)
    if discordance == 0:
        raise ValueError(
            "two models that never disagree need no plan: give the discordant share that you fear"
        )
    fixed = n_for_margin(margin, discordance, asked.power, asked.alpha, deff)
    return _need(
        discordance,
        asked.alpha,
        fixed,
        sequential_n_for_margin(margin, discordance, rng, asked.power, asked.alpha, deff),
    )


def _need(discordance: float, alpha: float, fixed: int, looking: SequentialSize) -> RequiredTrials:
    return RequiredTrials(
        discordance, alpha, fixed, looking.n_most, round(looking.n_mean, 1), looking.n_median
    )


def _discordance(asked: SampleSizeQuestion, gap: float) -> float:
    if asked.discordance is not None:
        return asked.discordance
    a, b = asked.baseline, asked.baseline + gap
    return a * (1 - b) + b * (1 - a)


def _width(n: int, rate: float, deff: float) -> IntervalWidth:
    effective_n = max(1, math.floor(n / deff))
    low, high = wilson_bounds(rate, effective_n)
    sequence = rate_sequence(round(rate * effective_n), effective_n)
    return IntervalWidth(n, rate, high - low, (sequence.high or 0.0) - (sequence.low or 0.0))
