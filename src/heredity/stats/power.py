"""Planning: how many trials show a difference, and what difference these trials could have shown.

Promises: exact power of the exact McNemar test up to EXACT_TO pairs, the normal approximation above.
Leaves to others: the budget.

Sources: Connor 1987, Biometrics 43:207 (sample size for paired proportions); Kish 1965 (design effect).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.stats.intervals import CONFIDENCE, normal_quantile, wilson_bounds

EXACT_TO = 5000  # pairs; above it the normal approximation is off by less than its rounding
POWER = 0.8
ALPHA = 0.05
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
