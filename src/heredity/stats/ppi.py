"""Prediction-powered estimates: a judge on every trial, a person on a few of them, one interval from both.

Promises: the person's labels decide what is estimated and the judge only how narrow the interval is; a judge
that is worth nothing costs nothing; intervals have a width above zero and contain their value.
Leaves to others: which trials were labelled (drawn by chance from the run itself) and by whom.

Sources: Angelopoulos, Duchi and Zrnic 2311.01453 (PPI++); Zrnic and Candes 2403.03208 (labels drawn with
unequal chances).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.records import Estimate
from heredity.stats.intervals import CONFIDENCE, Interval, normal_quantile

FEWEST = 10  # labels; the interval is a normal one, and below this it says more than is known
_Floats = NDArray[np.float64]


class _Sample(NamedTuple):
    labels: _Floats  # what a person said, of the labelled trials
    judged: _Floats  # what the judge said of the same
    others: _Floats  # what the judge said of the trials without a label
    weights: _Floats  # of the labelled trials, with mean 1


def ppi_mean(
    labels: ArrayLike,
    judged: ArrayLike,
    others: ArrayLike,
    chances: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The rate that people would give, from their labels on some trials and a judge's verdicts on all.

    labels   0 or 1 a labelled trial; `judged` the judge's 0 or 1 (or a score in [0, 1]) on the same trials
    others   the judge's on the trials that nobody labelled
    chances  with which each labelled trial was drawn, where these differ: up to a common factor

    n is the number of labels. The value is refused (None) below `FEWEST` labels.
    """
    return _estimate(_sample(labels, judged, others, chances), Interval(0.0, 1.0), confidence)


def ppi_difference(
    labels_a: ArrayLike,
    labels_b: ArrayLike,
    judged_a: ArrayLike,
    judged_b: ArrayLike,
    others_a: ArrayLike,
    others_b: ArrayLike,
    chances: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """b's rate minus a's, where the same trials of both models were labelled; else as `ppi_mean`."""
    labels, judged, others = (
        _minus(b, a) for a, b in ((labels_a, labels_b), (judged_a, judged_b), (others_a, others_b))
    )
    return _estimate(_sample(labels, judged, others, chances), Interval(-1.0, 1.0), confidence)


def ppi_weight(labels: ArrayLike, judged: ArrayLike, others: ArrayLike) -> float:
    """How far the judge is believed, from 0 (not at all) to 1: the share that makes the interval narrowest.

    cov(label, judged) / ((1 + n / N) var(judged)), for n labels and N other trials.
    """
    return _weight(_sample(labels, judged, others, None))


def _minus(b: ArrayLike, a: ArrayLike) -> _Floats:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} trials are not paired; both must be equal")
    return np.asarray(second - first)


def _sample(labels: ArrayLike, judged: ArrayLike, others: ArrayLike, chances: ArrayLike | None) -> _Sample:
    y, f, rest = (np.asarray(x, dtype=np.float64) for x in (labels, judged, others))
    if y.shape != f.shape or y.ndim != 1 or rest.ndim != 1:
        raise ValueError(f"{y.shape} labels do not fit {f.shape} verdicts; both must be flat and equal")
    for part in (y, f, rest):
        if part.size and not (part.min() >= -1 and part.max() <= 1):
            raise ValueError(f"values run from {part.min()} to {part.max()}; each must lie in [-1, 1]")
    if chances is None:
        return _Sample(y, f, rest, np.ones_like(y))
    drawn = np.asarray(chances, dtype=np.float64)
    if drawn.shape != y.shape or (drawn.size and not drawn.min() > 0):
        raise ValueError("every label needs the chance, above 0, with which its trial was drawn")
    inverse = 1 / drawn
    return _Sample(y, f, rest, inverse / inverse.mean() if drawn.size else inverse)


def _weight(sample: _Sample) -> float:
    n, n_others = sample.labels.size, sample.others.size
    spread = float(np.var(np.concatenate([sample.judged, sample.others]))) if n + n_others else 0.0
    if n < 2 or n_others == 0 or spread == 0.0:
        return 0.0
    w = sample.weights / n
    mean_y, mean_f = float(w @ sample.labels), float(w @ sample.judged)
    together = float(w @ ((sample.labels - mean_y) * (sample.judged - mean_f))) * n / (n - 1)
    return min(max(together / ((1 + n / n_others) * spread), 0.0), 1.0)


def _estimate(sample: _Sample, within: Interval, confidence: float) -> Estimate:
    z = normal_quantile(confidence)
    n, n_others = sample.labels.size, sample.others.size
    if n < FEWEST:
        why = f"refused: {n} labels are too few for a prediction-powered estimate, label at least {FEWEST}"
        return Estimate(None, None, None, n, why)
    weight = _weight(sample)
    left = sample.labels - weight * sample.judged
    mean = float(np.mean(sample.weights * left))
    variance = _variance(sample.weights * (left - mean)) / n
    value = mean
    if weight > 0:
        value += weight * float(sample.others.mean())
        variance += weight**2 * float(np.var(sample.others)) / n_others
    half = z * math.sqrt(variance)
    value = min(max(value, within.low), within.high)
    low, high = max(value - half, within.low), min(value + half, within.high)
    return Estimate(value, low, high, n, f"prediction-powered ({n_others} unlabelled, weight {weight:.2f})")


def _variance(residuals: _Floats) -> float:
    """As seen, but never below what one surprise in each direction would make it: few labels that all agree
    with the judge do not prove that the next one does."""
    n = residuals.size
    return max(float(np.var(residuals, ddof=1)), 2.0 / (n + 2))
