"""Prediction-powered estimates: a judge on every trial, a person on a few of them, one interval from both.

Promises: the labels decide the estimate; the judge only narrows the interval. A useless judge costs nothing.
If all trials are labelled, the judge has no influence. Intervals contain their value and have a width above
zero.
Leaves to others: the random sample of trials to label, from the run itself.

With clusters the variance is that of what each cluster contributes to the estimate, labelled and unlabelled
trials together. It is never less than without clusters. Its t quantile has (sum U^2)^2 / sum U^4 degrees of
freedom for contributions U.

Sources: Angelopoulos, Duchi and Zrnic 2311.01453 (PPI++). Zrnic and Candes 2403.03208 (labels drawn with
unequal chances). Duffield, Lund and Thorup 2007 (the variance of such a draw). Miller 2411.00640 (clusters);
Satterthwaite 1946 and Young 2016 (degrees of freedom of a clustered variance); Korn and Graubard 1998.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, normal_quantile, refused, wilson_bounds

FEWEST = 10  # labels; the variance is estimated from them, and below this it says more than is known
_FEWEST_DF = 4.0  # of t: below it the floor of the variance allows for what was not seen (`_variance`)
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
    clusters: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:
    """The rate that people would give, from their labels on some trials and a judge's verdicts on all.

    labels   0 or 1 per labelled trial; `judged` has the judge's verdicts or scores on the same trials
    others   the judge's verdicts on the unlabelled trials only
    chances  with which each labelled trial was drawn, up to a common factor; None: equal chances
    clusters behaviours of labelled trials and of others; None: independent

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
    words, n_clusters = "", None
    if clusters is not None:
        spread = _clustered(sample, weight, _places(clusters, sample))
        n_eff = spread.effective_n(value, n_eff, confidence)
        words, n_clusters = f", {spread.n_clusters} clusters, t with {spread.df:.1f} df", spread.n_clusters
    low, high = wilson_bounds(value, n_eff, confidence)
    how = f"weight {weight:.2f}; wilson on effective n {n_eff:.1f}{words}"
    method = f"prediction-powered ({n_others} unlabelled, {how})"
    return Estimate(value, low, high, n, method, n_clusters=n_clusters)


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
    """For the narrowest interval: `cov(label, judged) / ((1 + n / N) var(judged))`, in [0, 1]."""
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
    full = _full_weight(sample, weight)
    left = sample.labels - full * sample.judged
    mean = float(w @ left)
    value = mean + full * float(np.concatenate([sample.judged, sample.others]).mean())
    value = min(max(value, 0.0), 1.0)
    truth = _spread(value, n, confidence)
    # A label stands for w * N trials, itself and those not drawn; answers that were skipped are among these.
    missed: _Floats = np.maximum(w * n_all - 1, 0) * w / n_all
    drawing = float(missed.sum()) * _variance(left - mean, missed, weight, truth)
    return value, truth / (truth / n_all + drawing)


def _full_weight(sample: _Sample, weight: float) -> float:
    """Over all trials, labelled ones too, the judge counts N / n_others times as much for one estimate."""
    return weight * sample.n_all / sample.others.size if weight else 0.0


def _spread(value: float, n: int, confidence: float) -> float:
    """The variance of one trial, shrunk so that labels that are all alike have one too (Agresti, Coull)."""
    z2 = normal_quantile(confidence) ** 2
    near = (value * n + z2 / 2) / (n + z2)
    return near * (1 - near)


def _variance(residuals: _Floats, missed: _Floats, weight: float, truth: float) -> float:
    """The observed variance, but at least that of one surprise in each direction. `missed`: label weights.

    Few labels that all agree with the judge do not prove that the next one does."""
    n, total = residuals.size, float(missed.sum())
    seen = float(missed @ residuals**2) / total * n / (n - 1) if total > 0 else 0.0
    return max(seen, 2.0 / (n + 2) if weight > 0 else truth)


# --- clusters -------------------------------------------------------------------------------------


class _ClusteredSpread(NamedTuple):
    """The clustered variance of the estimate from n labels, and its degrees of freedom."""

    variance: float
    df: float
    n_labels: int
    n_clusters: int

    def effective_n(self, value: float, unclustered: float, confidence: float) -> float:
        """The effective n of both, at t's quantile; a t is a smaller n (Korn and Graubard)."""
        spread = _spread(value, self.n_labels, confidence)
        variance = max(self.variance, spread / unclustered)
        t = float(special.stdtrit(self.df, 0.5 + confidence / 2))
        return spread / variance * (normal_quantile(confidence) / t) ** 2


def _clustered(sample: _Sample, weight: float, places: NDArray[np.intp]) -> _ClusteredSpread:
    """From each cluster's contribution to the estimate. `places`: labelled trials first, then the others."""
    n, full = sample.labels.size, _full_weight(sample, weight)
    judged = np.concatenate([sample.judged, sample.others])
    each = full * (judged - judged.mean()) / sample.n_all
    left = sample.labels - full * sample.judged
    each[:n] += sample.weights * (left - float(sample.weights @ left))
    sums = np.bincount(places, weights=each)
    g = np.unique(places[:n]).size  # clusters with a label
    variance = float(np.square(sums).sum()) * g / max(g - 1, 1)
    df = float(np.square(sums).sum() ** 2 / (sums**4).sum()) if variance > 0 else 1.0
    return _ClusteredSpread(variance, max(min(df, g - 1.0), _FEWEST_DF), n, int(places.max()) + 1)


def _places(clusters: tuple[ArrayLike, ArrayLike], sample: _Sample) -> NDArray[np.intp]:
    of_labels, of_others = (np.asarray(part) for part in clusters)
    if of_labels.shape != sample.labels.shape or of_others.shape != sample.others.shape:
        raise BadArgument(
            f"{of_labels.shape} and {of_others.shape} clusters do not fit {sample.labels.shape} labels and "
            f"{sample.others.shape} other trials",
            code="lengths-differ",
        )
    _, places = np.unique(np.concatenate([of_labels, of_others]), return_inverse=True)
    return places
