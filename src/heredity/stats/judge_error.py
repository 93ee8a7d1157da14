"""Rates and comparisons under a judge's known errors and under unclear answers.

Two corrections. `rogan_gladen` takes the labels' error rates as those of this run. `correct_for_family` takes
the run as one more family of answers, whose error rates differ as those of the labelled families do.

Promises: point and interval together, inside [0, 1]. Refused, with a reason, if the judge is near chance or
was never measured. `rogan_gladen` is widened, with a note, if the judged rate lies outside the range that the
labels allow; `correct_for_family` is refused there.
Leaves to others: measuring the judge (redteam/judges), and whether its labels fit this run.

Sources: Rogan and Gladen 1978; Lang and Reiczigel 2014 (adjusted interval); 2511.21140 (LLM judges).
Fieller 1954 (inversion). Higgins, Thompson and Spiegelhalter 2009 (a further family). Zou and Donner 2008
(strata). Smyth 2004 (moderated variance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from statistics import variance
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import (
    ALPHA,
    CONFIDENCE,
    Interval,
    Sums,
    cluster_sums,
    effective,
    normal_quantile,
    refused,
    wilson_bounds,
)
from heredity.stats.paired import tango_bounds_at

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
    k: int, n: int, sens_k: float, sens_n: float, spec_k: float, spec_n: float,
    confidence: float = CONFIDENCE, n_effective: float | None = None,
) -> Estimate:  # fmt: skip
    """The true rate behind k of n judged positive, with its interval.

    The judge caught `sens_k` of `sens_n` labelled breaches, and passed `spec_k` of `spec_n` labelled safe
    answers. Counts may be effective counts (`across`). `n_effective` accounts for clustering (EffectiveN).
    Refused (no value, a reason in `note`) without trials, without labels of a kind, or near chance. If the
    judged rate lies outside the range that the judge's errors allow, the point is clipped. The interval is
    then widened (`_widened`), and `note` reports it.
    """
    for part, whole in ((k, n), (sens_k, sens_n), (spec_k, spec_n)):
        if not 0 <= part <= whole:
            raise BadArgument(f"{part} of {whole} is not a count")
    z = normal_quantile(confidence)
    if why := _refusal(n, sens_k, sens_n, spec_k, spec_n):
        return refused(n, why)
    judge, rate, size = _Judge(sens_k, sens_n, spec_k, spec_n), k / n, n_effective or float(n)
    value = _clip((rate - judge.false_alarms) / (judge.sensitivity - judge.false_alarms))
    bounds = _bounds(rate, size, judge, z)
    raw = wilson_bounds(rate, size, confidence)
    low, high = _widened(bounds, rate, raw, judge, confidence)
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


# --- one more family of answers -------------------------------------------------------------------

_GRID = np.linspace(0.0, 1.0, 2001)  # true rates that are tried: the bounds are exact to 0.0005


class PredictedShare(NamedTuple):
    """A share (sensitivity or specificity) that a further family of answers is predicted to have.

    The variance has two parts: that of the labels' number, and that between families, known with `df`
    degrees of freedom.
    """

    mean: float
    sampling: float
    between: float
    df: float
    n: float  # labels


class Spread(NamedTuple):
    """A variance between families, and the degrees of freedom with which it is known."""

    variance: float
    df: float


def predict_share(
    right: Sequence[float], of: Sequence[float], spread: Spread | None = None
) -> PredictedShare:
    """Predict the share of a further family from `right` of `of` labels in each of several families.

    The mean is over families, not labels. The variance between families is `t^2 (1 + 1/m)`: that of a
    further family around the mean of m families. t^2 is the variance of the shares, less that of their
    labels (DerSimonian and Laird 1986).
    spread: t^2 as other judges show it. The two are averaged, weighted by their degrees of freedom, which add
    up (the moderated variance of Smyth 2004). One family shows none of its own.
    Raises BadArgument without a family, or for one without labels.
    """
    if not of or min(of) <= 0:
        raise BadArgument("every family needs labels")
    m = len(of)
    shares = [k / n for k, n in zip(right, of, strict=True)]
    within = [_shrunk_variance(k, n) for k, n in zip(right, of, strict=True)]
    own = family_variance(right, of) if m > 1 else 0.0
    prior = spread or Spread(0.0, 0.0)
    df = m - 1 + prior.df
    variance = ((m - 1) * own + prior.df * prior.variance) / df if df else 0.0
    return PredictedShare(
        sum(shares) / m, sum(within) / m**2, variance * (1 + 1 / m), df or math.inf, float(sum(of))
    )


def family_variance(right: Sequence[float], of: Sequence[float]) -> float:
    """The variance of the true shares of two or more families: the observed one, less that of the labels."""
    shares = [k / n for k, n in zip(right, of, strict=True)]
    within = [_shrunk_variance(k, n) for k, n in zip(right, of, strict=True)]
    return max(0.0, variance(shares) - sum(within) / len(within))


def _shrunk_variance(k: float, n: float) -> float:
    """The variance of a share, with the share pulled towards one half: never 0."""
    p = (k + 1) / (n + 2)
    return p * (1 - p) / (n + 2)


def correct_for_family(
    k: int, n: int, sens: PredictedShare, spec: PredictedShare, confidence: float = CONFIDENCE,
    n_effective: float | None = None,
) -> Estimate:  # fmt: skip
    """The true rate behind k of n judged positive, where the answers are of one more family.

    The interval has every true rate theta that makes the judged rate p plausible:
    |p - m| <= t s, with m = theta q1 + (1 - theta)(1 - q0). s^2 is the variances of p, q1 and q0 together.
    t has the degrees of freedom of Welch and Satterthwaite. Nothing is divided by q1 + q0 - 1, so a judge
    that may be near chance gives a wide interval. `n_effective` accounts for clustering.
    Refused, with a code, without trials ("no-trials"), near chance ("near-chance"), and if no true rate fits
    the judged one ("rate-outside-labels").
    """
    if not 0 <= k <= n:
        raise BadArgument(f"{k} of {n} is not a count")
    if n == 0:
        return refused(n, "no judged trials", "no-trials")
    chance = sens.mean + spec.mean - 1
    if chance < NEAR_CHANCE:
        why = f"the judge is near chance (sensitivity + specificity - 1 = {chance:.2f}, below {NEAR_CHANCE})"
        return refused(n, why, "near-chance")
    rate, size = k / n, n_effective or float(n)
    fits = _fitting(rate, size, sens, spec, confidence)
    if fits is None:
        limits = f"{1 - spec.mean:.2f} to {sens.mean:.2f}"
        return refused(n, f"no true rate gives a judged rate of {rate:.2f}: labels allow about {limits}",
                       "rate-outside-labels")  # fmt: skip
    value = _clip((rate - (1 - spec.mean)) / chance)
    method = "rogan-gladen for a further family"
    return Estimate(value, min(fits.low, value), max(fits.high, value), n, method)


@lru_cache(maxsize=4096)  # a technique's trials are a row of their own, and part of their scope's
def _fitting(
    rate: float, size: float, sens: PredictedShare, spec: PredictedShare, confidence: float
) -> Interval | None:
    """The lowest and highest true rate that make the judged rate plausible; None if fewer than two do."""
    expected = _GRID * sens.mean + (1 - _GRID) * (1 - spec.mean)
    of_sens, of_spec = _GRID**2 * sens.between, (1 - _GRID) ** 2 * spec.between
    # Pulled towards one half as in Wilson's interval, so that 0 of few is not certain.
    pulled = (expected * size + 1) / (size + 2)
    known = pulled * (1 - pulled) / size + _GRID**2 * sens.sampling + (1 - _GRID) ** 2 * spec.sampling
    total = known + of_sens + of_spec
    with np.errstate(divide="ignore"):
        df = np.minimum(total**2 / (of_sens**2 / sens.df + of_spec**2 / spec.df), 1e6)
    reach = special.stdtrit(df, (1 + confidence) / 2) * np.sqrt(total)
    fits = np.flatnonzero(np.abs(rate - expected) <= reach)
    return Interval(float(_GRID[fits[0]]), float(_GRID[fits[-1]])) if fits.size > 1 else None


def combine_strata(parts: Sequence[Estimate], weights: Sequence[float], method: str) -> Estimate:
    """The weighted mean of independent estimates, with its interval (MOVER: Zou and Donner 2008).

    Each bound is the mean, moved by the root of the summed squares of the weighted distances of the parts'
    own bounds. A part without a value makes the whole refused, with that part's reason.
    """
    n = sum(part.n for part in parts)
    value, below, above = 0.0, 0.0, 0.0
    for part, weight in zip(parts, weights, strict=True):
        if part.value is None or part.low is None or part.high is None:
            return refused(n, part.note, part.code)
        value += weight * part.value
        below += (weight * (part.value - part.low)) ** 2
        above += (weight * (part.high - part.value)) ** 2
    return Estimate(value, _clip(value - math.sqrt(below)), _clip(value + math.sqrt(above)), n, method)


# --- the labels' own error rates ------------------------------------------------------------------


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


def _widened(interval: Interval, rate: float, raw: Interval, judge: _Judge, confidence: float) -> Interval:
    """The clipped interval, no narrower than the run's own sampling error if the point is clipped.

    A judged rate below the false alarm rate of the labels means that this run has fewer false alarms, at
    most `rate`. The upper bound is then that of `raw` with false alarms at `rate`. It is that of `raw` with
    none if the whole interval lies below 0: the labels' figure is refuted. The same holds, mirrored, above
    the sensitivity. The other error rate is taken at the worse end of its own interval.
    """
    low, high = _clip(interval.low), _clip(interval.high)
    caught = wilson_bounds(judge.sensitivity, judge.sens_n, confidence).low
    alarms = wilson_bounds(judge.false_alarms, judge.spec_n, confidence).high
    if rate <= judge.false_alarms:
        within = rate if interval.high > 0 else 0.0  # false alarms that this run may have
        high = max(high, _clip((raw.high - within) / max(NEAR_CHANCE, caught - within)))
    if rate >= judge.sensitivity:
        within = rate if interval.low < 1 else 1.0  # and its sensitivity
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


# --- prediction-powered estimates ---------------------------------------------------------------------
# Prediction-powered estimates: a judge on every trial, a person on a few of them, one interval from both.
#
# Promises: the labels decide the estimate; the judge only narrows the interval. A useless judge costs
# nothing. If all trials are labelled, the judge has no influence. Intervals contain their value and have
# a width above zero.
#
# With clusters the variance is that of what each cluster contributes to the estimate, labelled and
# unlabelled trials together. It is never less than without clusters. Its t quantile has (sum U^2)^2 / sum
# U^4 degrees of freedom for contributions U.
#
# Sources: Angelopoulos, Duchi and Zrnic 2311.01453 (PPI++). Zrnic and Candes 2403.03208 (labels drawn
# with unequal chances). Duffield, Lund and Thorup 2007 (the variance of such a draw). Miller 2411.00640
# (clusters); Satterthwaite 1946 and Young 2016 (degrees of freedom of a clustered variance); Korn and
# Graubard 1998.

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
    labels: ArrayLike, judged: ArrayLike, others: ArrayLike, chances: ArrayLike | None = None,
    confidence: float = CONFIDENCE, clusters: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:  # fmt: skip
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
        raise BadArgument(f"{y.shape} labels do not fit {f.shape} verdicts; both must be flat and equal")
    for part in (y, f, rest):
        if part.size and not (part.min() >= 0 and part.max() <= 1):
            raise BadArgument(f"values run from {part.min()} to {part.max()}; each must lie in [0, 1]")
    drawn = np.ones_like(y) if chances is None else np.asarray(chances, dtype=np.float64)
    if drawn.shape != y.shape or (drawn.size and not drawn.min() > 0):
        raise BadArgument("every label needs the chance, above 0, with which its trial was drawn")
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
    variance, df = variance_of_clusters(each, places, np.unique(places[:n]).size)
    return _ClusteredSpread(variance, df, n, int(places.max()) + 1)


def variance_of_clusters(each: _Floats, places: NDArray[np.intp], g: int) -> tuple[float, float]:
    """The variance of an estimate, with its df, from the part of each trial in it. g: labelled clusters."""
    sums = np.bincount(places, weights=each)
    variance = float(np.square(sums).sum()) * g / max(g - 1, 1)
    df = float(np.square(sums).sum() ** 2 / (sums**4).sum()) if variance > 0 else 1.0
    return variance, max(min(df, g - 1.0), _FEWEST_DF)


def _places(clusters: tuple[ArrayLike, ArrayLike], sample: _Sample) -> NDArray[np.intp]:
    of_labels, of_others = (np.asarray(part) for part in clusters)
    if of_labels.shape != sample.labels.shape or of_others.shape != sample.others.shape:
        raise BadArgument(
            f"{of_labels.shape} and {of_others.shape} clusters do not fit {sample.labels.shape} labels and "
            f"{sample.others.shape} other trials"
        )
    _, places = np.unique(np.concatenate([of_labels, of_others]), return_inverse=True)
    return places


# --- unclear answers --------------------------------------------------------------------------------
# Two models on the same trials where some answers are unclear: codings, declared shares, tipping shares.
#
# Promises: a share of 0 for both models is the comparison with unclear answers counted as held. P-values
# are exact sign-flip tests of clusters. Nothing is drawn at random.
#
# An unclear answer of a model with share s counts s of a breach. So the difference is that of the rates in
# which s of the model's unclear answers were breaches, whichever these are. The test needs no more: the sum
# of a cluster has mean zero if the two rates are equal. Any other allocation would claim to know which of
# the unclear answers were breaches.
#
# Sources: Little and Rubin 2019, chapter 15 (pattern mixtures). Yan, Lee and Li 2009, J. Biopharm. Stat.
# 19:1085 (tipping points of binary outcomes). ICH E9(R1) (sensitivity analysis). Horowitz and Manski 2000,
# J. Am. Stat. Assoc. 95:77 (bounds). Steegen et al. 2016, Perspect. Psychol. Sci. 11:702 (multiverse
# analysis).

Coding = Literal["excluded", "held", "broke"]
CODINGS: tuple[Coding, ...] = ("excluded", "held", "broke")
STEP = 0.05  # of a tipping share
_FINEST = 100  # shares are fractions with a denominator of at most this, so that cluster sums stay exact
_MAX_CELLS = 50_000_000  # clusters times the total, of an exact test


class SharedComparison(NamedTuple):
    """b's rate minus a's, where `share_a` of a's unclear answers and `share_b` of b's count as breaches."""

    share_a: float
    share_b: float
    difference: Estimate
    p_value: float

    def is_worse(self, alpha: float = ALPHA) -> bool:
        """Whether b broke more often, with p below alpha."""
        return self.p_value < alpha and (self.difference.value or 0.0) > 0


def compare_at_shares(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, share_a: float = 0.0, share_b: float = 0.0,
    confidence: float = CONFIDENCE, errors: float = 0.0,
) -> SharedComparison:  # fmt: skip
    """Compare two models where a share of the unclear answers of each counts as breaches.

    "b is worse" survives a declared share s if it holds at `share_a=s`; "b is not worse" if it holds at
    `share_b=s`. Shares are rounded to the nearest fraction with a denominator of at most 100.

    errors: the share of b's breaches that were false alarms, and of a's held trials that were breaches. So
    verdicts erred against b, and in favour of a.
    """
    first, second, labels = _trials(a, b, clusters)
    shares, wrong = (_fraction(share_a), _fraction(share_b)), _fraction(errors)
    if first.size == 0:
        nothing = Estimate(None, -1.0, 1.0, 0, "tango (n = 0: nothing to estimate from)")
        return SharedComparison(float(shares[0]), float(shares[1]), nothing, 1.0)
    filled_a, filled_b = (
        np.nan_to_num(x, nan=float(s)) for x, s in zip((first, second), shares, strict=True)
    )
    if wrong:
        filled_a = np.where(first == 0.0, float(wrong), filled_a)
        filled_b = np.where(second == 1.0, 1.0 - float(wrong), filled_b)
    unit = np.lcm.reduce([shares[0].denominator, shares[1].denominator, wrong.denominator])
    differences = filled_b - filled_a
    sums = cluster_sums(differences, labels)
    p = flip_whole(np.rint(sums.total * unit).astype(np.int64))
    difference = _difference(differences, sums, labels, confidence)
    return SharedComparison(float(shares[0]), float(shares[1]), difference, p)


def flip_whole(sums: ArrayLike) -> float:
    """Two-sided p-value of the sign-flip test of whole-numbered cluster sums, by convolution: exact.

    The same test as `paired.sign_flip`. Its cost grows with clusters times the total, and not with the number
    of distinct sums, of which fractions make many. Chances are only added, so small ones keep their digits.
    Beyond `_MAX_CELLS` it is the normal limit of the same test.
    """
    whole = np.asarray(sums, dtype=np.int64)
    if whole.sum() == 0:
        return 1.0
    whole = whole // np.gcd.reduce(whole)
    steps = np.sort(np.abs(whole[whole != 0]))
    if steps.size * int(steps.sum()) > _MAX_CELLS:  # with so many clusters the normal limit is as good
        z = abs(int(whole.sum())) / float(np.sqrt(np.square(steps, dtype=np.float64).sum()))
        return float(special.erfc(z / np.sqrt(2.0)))
    chance = np.ones(1)  # of each total of the clusters that were turned
    for step in steps.tolist():
        longer = np.zeros(chance.size + step)
        longer[: chance.size] = chance / 2
        longer[step:] += chance / 2
        chance = longer
    most_turned = (int(steps.sum()) - abs(int(whole.sum()))) // 2
    return min(1.0, 2.0 * float(chance[: most_turned + 1].sum()))


def _difference(differences: _Floats, sums: Sums, labels: NDArray[np.intp], confidence: float) -> Estimate:
    """Tango's interval on the effective n; a pair may count as a fraction of a discordant one."""
    n = differences.size
    mean = float(differences.mean())
    discordant = cluster_sums(np.abs(differences), labels).total
    variance = float(discordant.sum()) / n - mean**2
    informative = int((discordant > 0).sum())
    effective_n = effective(sums.total - sums.size * mean, sums.size, variance, informative)
    only_a, only_b = float(np.maximum(-differences, 0).mean()), float(np.maximum(differences, 0).mean())
    bounds = tango_bounds_at(only_a, only_b, effective_n.at(confidence), confidence)
    return effective_n.estimate(mean, bounds, "tango", confidence)


def _fraction(share: float) -> Fraction:
    if not 0.0 <= share <= 1.0:
        raise BadArgument(f"a share of {share} is not in [0, 1], e.g. 0.25")
    return Fraction(share).limit_denominator(_FINEST)


def _trials(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> tuple[_Floats, _Floats, NDArray[np.intp]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise BadArgument(
            f"{first.shape} and {second.shape} trials are not paired; both must be flat and equal"
        )
    for values in (first, second):
        if not np.all((values == 0.0) | (values == 1.0) | np.isnan(values)):
            raise BadArgument("a trial is 1.0 (broke), 0.0 (held) or nan (unclear)")
    _, labels = np.unique(np.asarray(clusters), return_inverse=True)
    if labels.shape != first.shape:
        raise BadArgument(
            f"{first.shape} values do not fit {labels.shape} clusters; both must be flat and equal"
        )
    return first, second, labels
