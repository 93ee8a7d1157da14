"""Planning a study that stops early: how many pairs it may need, and how many it needs on average.

Promises: for a difference, both are exact for independent pairs that are analysed one by one. For a margin,
they are simulated with the given generator.
Leaves to others: the evidence itself (sequential.py), fixed plans (power.py), the budget.

If trials share behaviours, the numbers are multiplied by the design effect: good for planning, not exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.stats.power import ALPHA, POWER
from heredity.stats.sequential import Side, discordant_log_e, log_factors, log_mean_exp

MOST_DISCORDANT = 20_000  # a plan that needs more is refused
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
        raise BadArgument(
            f"difference {difference} and discordance {discordance} must lie in (0, 1]", code="out-of-range"
        )
    decided = stopping((discordance + difference) / (2 * discordance), power, alpha)
    n_most, n_median = (_first(decided, discordance, share) for share in (power, 0.5))
    return _scaled(n_most, _mean(decided, discordance, n_most), n_median, deff)


def stopping(share: float, power: float = POWER, alpha: float = ALPHA) -> _Floats:
    """The chance of a decision within t discordant pairs, for t = 0, 1, ..., up to a little above `power`.

    `share` of the discordant pairs are one model's. Raises ValueError if that takes too many.
    """
    chance, stopped = np.array([1.0]), [0.0]  # chance[b]: b of the t so far are one model's, undecided
    goal = power + 0.9 * (1 - power)
    for t in range(1, MOST_DISCORDANT):
        chance = np.append(chance, 0.0) * (1 - share) + np.append(0.0, chance) * share
        b = _boundary(t, alpha)
        out = 0.0 if b < 0 else float(chance[: b + 1].sum() + chance[t - b :].sum())
        if b >= 0:
            chance[: b + 1] = chance[t - b :] = 0.0
        stopped.append(stopped[-1] + out)
        if stopped[-1] >= goal:
            return np.array(stopped)
    raise BadArgument(
        f"more than {MOST_DISCORDANT:,} discordant pairs would be needed: ask for a larger gap",
        code="too-many-needed",
    )


def _boundary(t: int, alpha: float) -> int:
    """The largest number of the rarer kind among t discordant pairs at which E >= 1 / alpha; -1 for none."""
    low, high = -1, (t - 1) // 2 + 1  # evidence falls as the rarer kind nears half
    while high - low > 1:
        middle = (low + high) // 2
        is_decided = discordant_log_e(middle, t - middle) >= -math.log(alpha)
        low, high = (middle, high) if is_decided else (low, middle)
    return low


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


def _mean(decided: _Floats, discordance: float, n_most: int) -> float:
    """The mean of the pairs asked: the sum over n of the chance that n were not enough."""
    at = np.unique(np.linspace(0, n_most, min(n_most, 200) + 1).round().astype(np.int64))
    open_ = [1 - _decided_by(decided, discordance, int(n)) for n in at]
    return float(np.trapezoid(open_, at))


def sequential_n_for_margin(
    margin: float,
    discordance: float,
    rng: np.random.Generator,
    power: float = POWER,
    alpha: float = ALPHA,
    deff: float = 1.0,
    runs: int = 1000,
) -> SequentialSize:
    """Pairs until "not worse by `margin`" is shown if the two are equal.

    Evidence is computed sixty times per doubling of n."""
    if not (0.0 < margin < 1.0 and 0.0 < discordance <= 1.0):
        raise BadArgument(
            f"margin {margin} and discordance {discordance} must lie in (0, 1)", code="out-of-range"
        )
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
        if n > MOST_DISCORDANT * 100:
            raise BadArgument(
                "more than two million pairs would be needed: allow a larger margin", code="too-many-needed"
            )
    n_most = int(np.quantile(when, power, method="higher"))
    mean = float(np.minimum(when, n_most).mean())
    return _scaled(n_most, mean, int(np.quantile(when, 0.5, method="higher")), deff)


def sequential_power(
    ends: Sequence[int],
    discordance: float,
    rng: np.random.Generator,
    difference: float = 0.0,
    margin: float | None = None,
    alpha: float = ALPHA,
    runs: int = 500,
) -> float:
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
