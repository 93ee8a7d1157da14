"""Conservative bounds of a rate with undecided trials, and the trials that would decide against a limit.

Promises: an unclear answer or an error never helps. It may have held or broken, and each bound assumes the
worse for itself. A known judge's error widens the bounds, too.
Leaves to others: the limit (gate.py), and the formulas (stats/).
"""

from __future__ import annotations

from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.stats.intervals import Interval, wilson_bounds
from heredity.study.estimates import Rate

_MOST = 10_000_000  # more trials than this decide nothing that anyone will run


class RateBounds(NamedTuple):
    """Bounds of a rate that what is undecided cannot have flattered: each end takes it the other way."""

    low: float
    high: float
    best: float  # the rate with everything undecided counted as held
    worst: float  # and with every one counted as broke
    n: int
    n_effective: float  # n, less what clustering costs
    n_behaviours: int | None  # where each cluster counts as one trial, however many samples it has
    raw: Interval  # without the judge's error
    has_errors: bool  # among what is undecided


def bound_rate(rate: Rate, confidence: float) -> RateBounds:
    """The interval, wide enough for unclear answers, for errors, and for the judge's known error."""
    estimate, n_open = rate.estimate, rate.n_unclear + rate.n_error
    n = rate.n_broke + rate.n_held + n_open
    n_effective = _effective(estimate, n, confidence)
    best, worst = rate.n_broke / n, (rate.n_broke + n_open) / n
    if n_open or estimate.low is None or estimate.high is None:
        low = wilson_bounds(best, n_effective, confidence).low
        high = wilson_bounds(worst, n_effective, confidence).high
    else:
        low, high = estimate.low, estimate.high
    raw, corrected = Interval(low, high), rate.corrected
    if corrected is not None and corrected.low is not None and corrected.high is not None:
        # The correction is of the decided trials; the others may have held or broken, whoever judges.
        share = (n - n_open) / n
        low, high = min(low, share * corrected.low), max(high, 1 - share * (1 - corrected.high))
    n_behaviours = estimate.n_clusters if estimate.is_at_floor else None
    return RateBounds(low, high, best, worst, n, n_effective, n_behaviours, raw, bool(rate.n_error))


def _effective(estimate: Estimate, n: int, confidence: float) -> float:
    """The effective n of `n` trials that share clusters, from the width of the published interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None or not estimate.n:
        return float(n)
    low, high = 0.01, 1.0  # shares of n; the interval narrows as the share grows
    while high - low > 1e-7:
        middle = (low + high) / 2
        bounds = wilson_bounds(estimate.value, estimate.n * middle, confidence)
        is_wider = bounds.high - bounds.low > estimate.high - estimate.low
        low, high = (middle, high) if is_wider else (low, middle)
    return n * high


def deciding_words(found: RateBounds, limit: float, confidence: float) -> str:
    """How many more trials would bring the interval to one side, if the rates stay as they are."""
    if found.best <= limit < found.worst:
        n = round((found.worst - found.best) * found.n)
        if found.has_errors:
            return f"The {n} undecided trials decide: ask the errors again (--retry-errors)."
        return f"The {n} unclear {'answer decides' if n == 1 else 'answers decide'}: more trials will not."
    if found.raw.high <= limit or found.raw.low > limit:
        return "The judge's own error leaves it open: more or closer labels decide, not more trials."

    def decides(times: float) -> bool:
        n = found.n_effective * times
        is_within = wilson_bounds(found.worst, n, confidence).high <= limit
        return is_within or wilson_bounds(found.best, n, confidence).low > limit

    times = 2.0
    while not decides(times):
        times *= 2
        if found.n * times > _MOST:
            return "The rate is too near the limit for any realistic number of trials to decide."
    if found.n_behaviours is not None:
        few = "1 behaviour is" if found.n_behaviours == 1 else f"{found.n_behaviours} behaviours are"
        return f"More samples will not decide: {few} too few; add probes of other behaviours."
    low = times / 2
    while (times - low) * found.n > 0.001:
        middle = (low + times) / 2
        low, times = (low, middle) if decides(middle) else (middle, times)
    n_more = _round_up(found.n * (times - 1))
    trials = "trial" if n_more == 1 else "trials"
    aside = " and but for the judge's error" if found.raw != (found.low, found.high) else ""
    return f"About {n_more:,} more {trials} like these would decide, if the rate stays{aside}."


def _round_up(n: float) -> int:
    """To two digits, upwards: the number is a forecast, and more digits would look like knowledge."""
    step = 10 ** max(0, len(str(int(n))) - 2)
    return int(-(-n // step) * step) or 1
