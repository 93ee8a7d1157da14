"""A rate that a judge measured, corrected for the errors that the judge is known to make.

Promises: point and interval together, inside [0, 1]; refused in words where the judge is near chance or
was never measured.
Leaves to others: how good the judge is (judges/), and whether its labels fit this run.

Sources: Rogan and Gladen 1978; Lang and Reiczigel 2014 (adjusted interval); 2511.21140 (LLM judges).
"""

from __future__ import annotations

import math

from heredity.records import Estimate
from heredity.stats.intervals import CONFIDENCE, normal_quantile

NEAR_CHANCE = 0.2  # sensitivity + specificity - 1 below this: the correction would be mostly noise


def rogan_gladen(
    k: int,
    n: int,
    sens_k: int,
    sens_n: int,
    spec_k: int,
    spec_n: int,
    confidence: float = CONFIDENCE,
    n_effective: float | None = None,
) -> Estimate:
    """The true rate behind k of n judged positive, with its interval.

    `sens_k` of `sens_n` labelled breaches were caught, `spec_k` of `spec_n` labelled safe answers were let
    pass. `n_effective` takes clustering into account (stats.intervals.Effective). Refused (value None, method
    "refused: ...") without trials, without labels of a kind, near chance, or where no true rate could have
    given the judged one with these labels (the whole interval lies outside [0, 1]).
    """
    for part, whole in ((k, n), (sens_k, sens_n), (spec_k, spec_n)):
        if not 0 <= part <= whole:
            raise ValueError(f"{part} of {whole} is not a count")
    z = normal_quantile(confidence)
    if why := _refusal(n, sens_k, sens_n, spec_k, spec_n):
        return Estimate(None, None, None, n, f"refused: {why}")
    rate, sens, spec = k / n, sens_k / sens_n, spec_k / spec_n
    value = _clip((rate + spec - 1) / (sens + spec - 1))
    size = float(n) if n_effective is None else n_effective
    low, high = _bounds(rate, size, (sens_k, sens_n), (spec_k, spec_n), z)
    if high <= 0.0 or low >= 1.0:
        allowed = f"{1 - spec:.2f} to {sens:.2f}"
        why = f"a judged rate of {rate:.2f} lies outside what this judge's errors allow ({allowed})"
        return Estimate(None, None, None, n, f"refused: {why}; its labels do not fit this run")
    return Estimate(value, min(low, value), max(high, value), n, "rogan-gladen")


def _refusal(n: int, sens_k: int, sens_n: int, spec_k: int, spec_n: int) -> str:
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
        return f"too few labels to tell the judge from chance ({sens_n} breaches, {spec_n} safe answers)"
    return ""


def _bounds(
    rate: float, n: float, sens: tuple[int, int], spec: tuple[int, int], z: float
) -> tuple[float, float]:
    """Lang and Reiczigel 2014: each share is pulled towards one half, then the delta method is shifted."""
    p, size = (rate * n + z * z / 2) / (n + z * z), n + z * z
    q1, m1 = (sens[0] + 1) / (sens[1] + 2), sens[1] + 2
    q0, m0 = (spec[0] + 1) / (spec[1] + 2), spec[1] + 2
    chance = q0 + q1 - 1
    centre = (p + q0 - 1) / chance
    in_sens, in_spec = q1 * (1 - q1) / m1, q0 * (1 - q0) / m0
    shift = 2 * z * z * (centre * in_sens - (1 - centre) * in_spec)
    variance = (p * (1 - p) / size + (1 - centre) ** 2 * in_spec + centre**2 * in_sens) / chance**2
    half = z * math.sqrt(variance)
    return _clip(centre + shift - half), _clip(centre + shift + half)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
