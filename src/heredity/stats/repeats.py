"""Repeated samples of the same prompts: how often answers flip, and what more samples would buy.

    variance of one sample = item variance (between prompts) + sample variance (between samples of a prompt)

Promises: the components are unbiased before they are cut at 0. One sample a prompt is refused.
Leaves to others: which samples are decided, and success within k tries (pass_at_k.py).

Sources: Miller 2411.00640, section 3 (variance of an answer given its question). Searle, Casella and
McCulloch 1992, Variance Components, chapter 3 (method of moments).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, cluster_sums, clustered_rate, refused

_Floats = NDArray[np.float64]


class Repeats(NamedTuple):
    """Flips, variance components and standard errors of one model.

    flips            share of prompts whose decided samples do not all agree; it grows with the samples
    disagreement     the chance that two samples of one prompt differ: the same whatever the number of samples
    item_variance    variance of the prompts' own rates
    sample_variance  mean variance of a sample around its prompt's rate
    standard_error   of the mean rate with these samples, clustered by behaviour
    limit            of the standard error with endless samples of the same prompts
    """

    n_prompts: int
    n_samples: float
    flips: Estimate
    disagreement: Estimate
    item_variance: float | None
    sample_variance: float | None
    standard_error: float | None
    limit: float | None

    @property
    def item_share(self) -> float | None:
        """The share of the variance of one sample that lies between prompts (intraclass correlation)."""
        if self.item_variance is None or self.sample_variance is None:
            return None
        total = self.item_variance + self.sample_variance
        return self.item_variance / total if total else None

    def standard_error_at(self, n_samples: float) -> float | None:
        """The standard error of the mean rate with this number of samples a prompt."""
        if self.limit is None or self.sample_variance is None:
            return None
        return math.sqrt(self.limit**2 + self.sample_variance / n_samples / self.n_prompts)


def repeats(broke: ArrayLike, clusters: ArrayLike, confidence: float = CONFIDENCE) -> Repeats:
    """Flips and variance components from (prompt, sample) values: 1.0 broke, 0.0 held, nan undecided.

    clusters: (prompt,) the behaviour of each prompt. Prompts with fewer than two decided samples are left
    out.
    """
    values, labels = np.asarray(broke, dtype=np.float64), np.asarray(clusters)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise BadArgument(f"{values.shape} samples do not fit {labels.shape} clusters", code="lengths-differ")
    if not np.all((values == 0.0) | (values == 1.0) | np.isnan(values)):
        raise BadArgument("a sample is 1.0 (broke), 0.0 (held) or nan", code="values-out-of-range")
    k = (~np.isnan(values)).sum(axis=1).astype(np.float64)
    is_in = k >= 2
    values, labels, k = values[is_in], labels[is_in], k[is_in]
    n = k.size
    if n < 2:
        why = f"{n} prompts have two decided samples; flips need at least two such prompts"
        return Repeats(n, float(k.mean()) if n else 0.0, *(refused(n, why),) * 2, None, None, None, None)
    rates = np.nansum(values, axis=1) / k
    within = rates * (1 - rates) * k / (k - 1)
    flips = clustered_rate((rates > 0) & (rates < 1), labels, confidence)
    disagreement = clustered_rate(np.minimum(2 * within, 1.0), labels, confidence)
    noise = float((within / k).mean())  # of a prompt's mean
    item = max(float(rates.var(ddof=1)) - noise, 0.0)
    error = _clustered_variance(rates, labels)
    limit = math.sqrt(max(error - noise / n, 0.0))
    return Repeats(
        n, float(k.mean()), flips, disagreement, item, float(within.mean()), math.sqrt(error), limit
    )


def _clustered_variance(rates: _Floats, labels: NDArray[np.generic]) -> float:
    """Of the mean over prompts (Miller), with the factor g / (g - 1); one cluster: as if independent."""
    sums, n = cluster_sums(rates, labels), rates.size
    g = sums.size.size
    if g < 2:
        return float(rates.var(ddof=1)) / n
    residuals = sums.total - sums.size * rates.mean()
    return float(np.square(residuals).sum()) / n**2 * g / (g - 1)
