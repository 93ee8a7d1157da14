"""A rate that a judge measured, corrected for the judge's known errors.

Promises: point and interval together, inside [0, 1]. Refused, with a reason, if the judge is near chance or
was never measured. Widened, with a note, if the judged rate lies outside the range that the labels allow.
Leaves to others: measuring the judge (redteam/judges), and whether its labels fit this run.

Sources: Rogan and Gladen 1978; Lang and Reiczigel 2014 (adjusted interval); 2511.21140 (LLM judges).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import variance
from typing import NamedTuple

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, Interval, normal_quantile, refused, wilson_bounds

NEAR_CHANCE = 0.2  # sensitivity + specificity - 1 below this: the correction would be mostly noise


class _Judge(NamedTuple):
    """Labelled breaches caught, labelled safe answers let pass, each of how many."""

    sens_k: float
    sens_n: float
    spec_k: float
    spec_n: float

    @property
    def sensitivity(self) -> float:
        return self.sens_k / self.sens_n

    @property
    def false_alarms(self) -> float:
        return 1 - self.spec_k / self.spec_n

    @property
    def pulled(self) -> tuple[float, float]:
        """Sensitivity and false alarms, each pulled towards one half: (c + 1) / (m + 2)."""
        return (self.sens_k + 1) / (self.sens_n + 2), 1 - (self.spec_k + 1) / (self.spec_n + 2)


def rogan_gladen(
    k: int,
    n: int,
    sens_k: float,
    sens_n: float,
    spec_k: float,
    spec_n: float,
    confidence: float = CONFIDENCE,
    n_effective: float | None = None,
) -> Estimate:
    """The true rate behind k of n judged positive, with its interval.

    The judge caught `sens_k` of `sens_n` labelled breaches, and passed `spec_k` of `spec_n` labelled safe
    answers. Counts may be effective counts (`across`). `n_effective` accounts for clustering (EffectiveN).
    Refused (no value, a reason in `note`) without trials, without labels of a kind, or near chance. If the
    judged rate lies outside the range that the judge's errors allow, the point is clipped. The interval is
    then widened (`_widened`), and `note` reports it.
    """
    for part, whole in ((k, n), (sens_k, sens_n), (spec_k, spec_n)):
        if not 0 <= part <= whole:
            raise BadArgument(f"{part} of {whole} is not a count", code="not-a-count")
    z = normal_quantile(confidence)
    if why := _refusal(n, sens_k, sens_n, spec_k, spec_n):
        return refused(n, why)
    judge, rate, size = _Judge(sens_k, sens_n, spec_k, spec_n), k / n, n_effective or float(n)
    value = _clip((rate - judge.false_alarms) / (judge.sensitivity - judge.false_alarms))
    found = _bounds(rate, size, judge, z)
    raw = wilson_bounds(rate, size, confidence)
    low, high = _widened(found, rate, raw, judge, confidence)
    note = _outside(rate, judge)
    method = f"rogan-gladen, {note}" if note else "rogan-gladen"
    return Estimate(value, min(low, value), max(high, value), n, method, note=note)


def across(right: Sequence[int], of: Sequence[int]) -> tuple[float, float]:
    """Predict the share of a further family from the shares of several: (right, of), as effective counts.

    The mean is over shares, not labels. The effective n is `p (1 - p) / v`, with `v = s^2 (1 + 1/m)`: the
    variance of a further family around the mean of m families. It is at least one, and at most the number of
    labels. Source: the prediction interval of Higgins, Thompson and Spiegelhalter 2009.
    """
    shares, n = [k / m for k, m in zip(right, of, strict=True)], float(sum(of))
    mean = sum(shares) / len(shares)
    if len(shares) > 1 and (spread := variance(shares)) > 0:
        n = min(n, max(1.0, mean * (1 - mean) / (spread * (1 + 1 / len(shares)))))
    return mean * n, n


def _refusal(n: int, sens_k: float, sens_n: float, spec_k: float, spec_n: float) -> str:
    if n == 0:
        return "no judged trials"
    if sens_n == 0 or spec_n == 0:
        missing = "breaches" if sens_n == 0 else "safe answers"
        return f"the judge was never measured on labelled {missing}"
    raw = sens_k / sens_n + spec_k / spec_n - 1
    shrunk = (sens_k + 1) / (sens_n + 2) + (spec_k + 1) / (spec_n + 2) - 1
    if raw < NEAR_CHANCE:
        return f"the judge is near chance (sensitivity + specificity - 1 = {raw:.2f}, below {NEAR_CHANCE})"
    if shrunk < NEAR_CHANCE:
        return (
            f"too few labels to tell the judge from chance ({sens_n:.4g} breaches, {spec_n:.4g} safe answers)"
        )
    return ""


def _bounds(rate: float, n: float, judge: _Judge, z: float) -> Interval:
    """Lang and Reiczigel 2014: each share is pulled towards one half, then the delta method is shifted.

    Not clipped: bounds outside [0, 1] show the distance of the run from the range that the labels allow.
    """
    p, size = (rate * n + z * z / 2) / (n + z * z), n + z * z
    q1, alarms = judge.pulled
    q0, chance = 1 - alarms, q1 - alarms
    centre = (p - alarms) / chance
    in_sens, in_spec = q1 * (1 - q1) / (judge.sens_n + 2), q0 * (1 - q0) / (judge.spec_n + 2)
    shift = 2 * z * z * (centre * in_sens - (1 - centre) * in_spec)
    variance = (p * (1 - p) / size + (1 - centre) ** 2 * in_spec + centre**2 * in_sens) / chance**2
    half = z * math.sqrt(variance)
    return Interval(centre + shift - half, centre + shift + half)


def _widened(found: Interval, rate: float, raw: Interval, judge: _Judge, confidence: float) -> Interval:
    """The clipped interval, no narrower than the run's own sampling error if the point is clipped.

    A judged rate below the false alarm rate of the labels means that this run has fewer false alarms, at
    most `rate`. The upper bound is then that of `raw` with false alarms at `rate`. It is that of `raw` with
    none if the whole interval lies below 0: the labels' figure is refuted. The same holds, mirrored, above
    the sensitivity. The other error rate is taken at the worse end of its own interval.
    """
    low, high = _clip(found.low), _clip(found.high)
    caught = wilson_bounds(judge.sensitivity, judge.sens_n, confidence).low
    alarms = wilson_bounds(judge.false_alarms, judge.spec_n, confidence).high
    if rate <= judge.false_alarms:
        within = rate if found.high > 0 else 0.0  # false alarms that this run may have
        high = max(high, _clip((raw.high - within) / max(NEAR_CHANCE, caught - within)))
    if rate >= judge.sensitivity:
        within = rate if found.low < 1 else 1.0  # and its sensitivity
        low = min(low, _clip(1 - (within - raw.low) / max(NEAR_CHANCE, within - alarms)))
    return Interval(low, high)


def _outside(rate: float, judge: _Judge) -> str:
    if rate <= judge.false_alarms:
        where = "is" if rate == judge.false_alarms else "lies below"
        limit = f"{where} the {judge.false_alarms:.2f} that false alarms alone make"
    elif rate >= judge.sensitivity:
        where = "is" if rate == judge.sensitivity else "lies above"
        limit = f"{where} the {judge.sensitivity:.2f} that this judge catches"
    else:
        return ""
    return f"widened: a judged rate of {rate:.2f} {limit} on its labels"


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
