"""Prediction-powered estimates: a judge on every trial, a person on a few of them, one interval from both.

Promises: the labels decide the estimate; the judge only narrows the interval. A useless judge costs nothing.
If all trials are labelled, the judge has no influence. Intervals contain their value and have a width above
zero.
Leaves to others: drawing the trials to label, by chance from the run itself.

Sources: Angelopoulos, Duchi and Zrnic 2311.01453 (PPI++). Zrnic and Candes 2403.03208 (labels drawn with
unequal chances). Duffield, Lund and Thorup 2007 (the variance of such a draw).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, normal_quantile, refused, wilson_bounds

FEWEST = 10  # labels; the variance is estimated from them, and below this it says more than is known
_Floats = NDArray[np.float64]


class _Sample(NamedTuple):
    labels: _Floats  # what a person said, of the labelled trials
    judged: _Floats  # what the judge said of the same
    others: _Floats  # what the judge said of the trials without a label
    weights: _Floats  # of the labelled trials; the sum is 1

    @property
    def n_all(self) -> int:
        return self.labels.size + self.others.size


def ppi_mean(
    labels: ArrayLike,
    judged: ArrayLike,
    others: ArrayLike,
    chances: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The rate that people would give, from their labels on some trials and a judge's verdicts on all.

    labels   0 or 1 per labelled trial; `judged` has the judge's verdicts or scores on the same trials
    others   the judge's verdicts on the unlabelled trials only
    chances  with which each labelled trial was drawn, up to a common factor; None: equal chances

    The interval is Wilson's on the effective n; n itself is the number of labels. The value is refused (None)
    below `FEWEST` labels.
    """
    sample = _sample(labels, judged, others, chances)
    n, n_others = sample.labels.size, sample.others.size
    if n < FEWEST:
        why = f"{n} labels are too few for a prediction-powered estimate, label at least {FEWEST}"
        return refused(n, why)
    weight = _weight(sample)
    value, n_eff = _effective_n(sample, weight, confidence)
    low, high = wilson_bounds(value, n_eff, confidence)
    method = (
        f"prediction-powered ({n_others} unlabelled, weight {weight:.2f}; wilson on effective n {n_eff:.1f})"
    )
    return Estimate(value, low, high, n, method)


def ppi_weight(labels: ArrayLike, judged: ArrayLike, others: ArrayLike) -> float:
    """The weight of the judge, from 0 to 1, that makes the interval narrowest.

    cov(label, judged) / ((1 + n / N) var(judged)), for n labels and N other trials.
    """
    return _weight(_sample(labels, judged, others, None))


def _sample(labels: ArrayLike, judged: ArrayLike, others: ArrayLike, chances: ArrayLike | None) -> _Sample:
    y, f, rest = (np.asarray(x, dtype=np.float64) for x in (labels, judged, others))
    if y.shape != f.shape or y.ndim != 1 or rest.ndim != 1:
        raise BadArgument(
            f"{y.shape} labels do not fit {f.shape} verdicts; both must be flat and equal",
            code="lengths-differ",
        )
    for part in (y, f, rest):
        if part.size and not (part.min() >= 0 and part.max() <= 1):
            raise BadArgument(
                f"values run from {part.min()} to {part.max()}; each must lie in [0, 1]",
                code="values-out-of-range",
            )
    drawn = np.ones_like(y) if chances is None else np.asarray(chances, dtype=np.float64)
    if drawn.shape != y.shape or (drawn.size and not drawn.min() > 0):
        raise BadArgument(
            "every label needs the chance, above 0, with which its trial was drawn", code="chance-missing"
        )
    inverse = 1 / drawn if rest.size else np.ones_like(y)  # where all are labelled, no draw matters any more
    return _Sample(y, f, rest, inverse / inverse.sum())


def _weight(sample: _Sample) -> float:
    n, n_others = sample.labels.size, sample.others.size
    spread = float(np.var(np.concatenate([sample.judged, sample.others]))) if sample.n_all else 0.0
    if n < 2 or n_others == 0 or spread == 0.0:
        return 0.0
    w = sample.weights
    mean_y, mean_f = float(w @ sample.labels), float(w @ sample.judged)
    together = float(w @ ((sample.labels - mean_y) * (sample.judged - mean_f))) * n / (n - 1)
    return min(max(together / ((1 + n / n_others) * spread), 0.0), 1.0)


def _effective_n(sample: _Sample, weight: float, confidence: float) -> tuple[float, float]:
    """The rate, and the number of independent labels with the same variance.

    Two variances add: that of the truth over all trials, and that of the draw over the judge's residuals. The
    second is 0 if every trial was labelled. For equal chances the sum is the paper's. `others` must not
    hold labelled trials: the two terms would not be independent, and the interval too narrow.
    """
    n, n_all, w = sample.labels.size, sample.n_all, sample.weights
    # Over all trials, labelled ones too, the judge counts N / n_others times as much for one estimate.
    full = weight * n_all / sample.others.size if weight else 0.0
    left = sample.labels - full * sample.judged
    mean = float(w @ left)
    value = mean + full * float(np.concatenate([sample.judged, sample.others]).mean())
    value = min(max(value, 0.0), 1.0)
    # Shrunk towards one half, so that labels that are all alike have a variance too (Agresti and Coull).
    z2 = normal_quantile(confidence) ** 2
    near = (value * n + z2 / 2) / (n + z2)
    truth = near * (1 - near)
    # A label stands for w * N trials, itself and those not drawn; answers that were skipped are among these.
    missed: _Floats = np.maximum(w * n_all - 1, 0) * w / n_all
    drawing = float(missed.sum()) * _variance(left - mean, missed, weight, truth)
    return value, truth / (truth / n_all + drawing)


def _variance(residuals: _Floats, missed: _Floats, weight: float, truth: float) -> float:
    """The observed variance, but at least that of one surprise in each direction. `missed`: label weights.

    Few labels that all agree with the judge do not prove that the next one does."""
    n, total = residuals.size, float(missed.sum())
    seen = float(missed @ residuals**2) / total * n / (n - 1) if total > 0 else 0.0
    return max(seen, 2.0 / (n + 2) if weight > 0 else truth)
