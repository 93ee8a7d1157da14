"""Breach rates by technique from a mixed-effects logit: shrunk rates, this bank's mean, a new technique.

    logit P(breach) = mu + technique effect + behaviour effect
    technique effect ~ Normal(0, sigma_t^2),  behaviour effect ~ Normal(0, sigma_b^2)

Promises: intervals lie in [0, 1], contain their value and have a width above zero, whatever the counts.
The same numbers give the same result: nothing is drawn at random. Fewer than three techniques are refused.
Leaves to others: which trials count.

Both effects are integrated out numerically, and both standard deviations keep their uncertainty. The priors
are weak: the rate at mu is uniform, the standard deviations are half-normal on the logit scale. A plug-in
estimate (Laplace, penalized quasi-likelihood) often puts a standard deviation at 0 if techniques are few.
Its interval for a new technique then has no width. A behaviour belongs to one technique.

Sources: Gelman 2006, Bayesian Anal. 1:515 (priors for few groups). Stroup 2012, Generalized Linear Mixed
Models. Higgins, Thompson and Spiegelhalter 2009, J. R. Stat. Soc. A 172:137 (prediction interval). NIST AI
800-3 (a bank of items as the target of a claim, and as a sample of more).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import ALPHA, CONFIDENCE, refused
from heredity.stats.paired import MARGIN, Comparison, compare, holm, upper_bound

FEWEST = 3  # techniques; two cannot show how techniques vary
SCALE_T, SCALE_B = 2.0, 2.0  # of the half-normal priors of the two standard deviations
_LOGITS = np.linspace(-10.0, 10.0, 241)
_MU = np.linspace(-8.0, 8.0, 65)
_Floats = NDArray[np.float64]


class TechniqueRates(NamedTuple):
    """The rates of one model, each with its interval.

    techniques       in the order of the sorted labels: the rate of each, shrunk towards the others
    bank_mean        the mean over these techniques, each with the same weight
    new_technique    the rate of one more technique of the same kind: a prediction
    sigma_technique  posterior mean of the techniques' standard deviation, on the logit scale
    sigma_behaviour  the same of the behaviours within a technique; 0.0 if no behaviour has two trials
    """

    techniques: tuple[Estimate, ...]
    bank_mean: Estimate
    new_technique: Estimate
    sigma_technique: float | None
    sigma_behaviour: float | None


def technique_rates(
    broke: ArrayLike, techniques: ArrayLike, behaviours: ArrayLike, confidence: float = CONFIDENCE
) -> TechniqueRates:
    """The rate of each technique, of the bank, and of a new technique.

    broke       per trial, True or 1 where the model broke
    techniques  per trial, the label of its technique
    behaviours  per trial, the label of its behaviour; the same label under two techniques is two behaviours

    Refused (every value None, a reason in `note`) below `FEWEST` techniques.
    """
    y, labels = np.asarray(broke, dtype=np.float64), np.asarray(techniques)
    if not (y.shape == labels.shape == np.asarray(behaviours).shape) or y.ndim != 1:
        raise BadArgument(
            f"{y.shape} trials, {labels.shape} techniques and {np.asarray(behaviours).shape} behaviours "
            "do not fit; all must be flat and equal"
        )
    if not np.all((y == 0) | (y == 1)):
        raise BadArgument("a trial is 1 (broke) or 0 (held)")
    names, of = np.unique(labels, return_inverse=True)
    counts = _counts(y, of, np.asarray(behaviours))
    if len(names) < FEWEST:
        why = f"{len(names)} techniques are too few to show how techniques vary, ask at least {FEWEST}"
        none = tuple(refused(int((of == t).sum()), why) for t in range(len(names)))
        return TechniqueRates(none, refused(y.size, why), refused(y.size, why), None, None)
    return _fitted(counts, np.bincount(of), confidence)


class _Counts(NamedTuple):
    """One entry per behaviour."""

    k: NDArray[np.int64]
    n: NDArray[np.int64]
    technique: NDArray[np.intp]


def _counts(y: _Floats, technique: NDArray[np.intp], behaviours: NDArray[np.generic]) -> _Counts:
    _, inner = np.unique(behaviours, return_inverse=True)
    pairs, of = np.unique(technique * (inner.max(initial=0) + 1) + inner, return_inverse=True)
    k, n = np.bincount(of, weights=y), np.bincount(of)
    return _Counts(k.astype(np.int64), n, pairs // (inner.max(initial=0) + 1))


# --- the grid -------------------------------------------------------------------------------------


class _Grid(NamedTuple):
    """Kernels between logits, and the prior.

    around_mu    (mu x sigma_t, logit) the distribution of a technique's logit
    around_logit (sigma_b, logit, logit) the distribution of a behaviour's logit around its technique's
    rate         (logit, sigma_b) the rate of a technique, over its behaviours
    prior        (mu x sigma_t, sigma_b)
    sigma_t      (mu x sigma_t,)
    sigma_b      (sigma_b,)
    """

    around_mu: _Floats
    around_logit: _Floats
    rate: _Floats
    prior: _Floats
    sigma_t: _Floats
    sigma_b: _Floats


@lru_cache(maxsize=2)
def _grid(has_behaviours: bool) -> _Grid:
    sigma_t, prior_t = _half_normal(SCALE_T, 16)
    sigma_b, prior_b = _half_normal(SCALE_B, 10) if has_behaviours else (np.zeros(1), np.ones(1))
    mu, of_mu = np.repeat(_MU, sigma_t.size), np.tile(sigma_t, _MU.size)
    prior = np.repeat(special.expit(_MU) * special.expit(-_MU), sigma_t.size) * np.tile(prior_t, _MU.size)
    around_logit = np.array([_kernel(_LOGITS, np.full(_LOGITS.size, s)) for s in sigma_b])
    rate = np.array([kernel @ special.expit(_LOGITS) for kernel in around_logit]).T
    return _Grid(
        _kernel(mu, of_mu),
        around_logit,
        rate,
        prior[:, None] * prior_b[None, :] / prior.sum(),
        of_mu,
        sigma_b,
    )


def _half_normal(scale: float, n: int) -> tuple[_Floats, _Floats]:
    """Points with their prior mass, closer to each other near 0."""
    edges = 3.0 * scale * np.linspace(0.0, 1.0, n + 1) ** 1.5
    mass = np.diff(special.erf(edges / scale / np.sqrt(2.0)))
    return (edges[1:] + edges[:-1]) / 2, mass / mass.sum()


def _kernel(centres: _Floats, sigmas: _Floats) -> _Floats:
    """(centre, logit) Normal distributions on the grid of logits; each row has the sum 1."""
    half = (_LOGITS[1] - _LOGITS[0]) / 2
    scale = np.maximum(sigmas, 1e-9)[:, None]
    upper, lower = (_LOGITS + half - centres[:, None]) / scale, (_LOGITS - half - centres[:, None]) / scale
    mass = special.ndtr(upper) - special.ndtr(lower)
    return _cut(mass / mass.sum(axis=1, keepdims=True))


def _cut(mass: _Floats) -> _Floats:
    """Without what is too small to count: products of it are denormal numbers, which are slow."""
    return np.asarray(np.where(mass < 1e-120, 0.0, mass))


# --- the posterior --------------------------------------------------------------------------------


def _fitted(counts: _Counts, n_trials: NDArray[np.int64], confidence: float) -> TechniqueRates:
    grid = _grid(bool((counts.n > 1).any()))
    likelihood = _likelihoods(counts, grid, n_trials.size)  # (logit, technique, sigma_b)
    # (mu x sigma_t, technique, sigma_b); a point that rules a technique out keeps a weight that rounds to 0
    evidence = np.maximum(_product(grid.around_mu, likelihood), 1e-120)
    log_weight = np.log(grid.prior) + np.log(evidence).sum(axis=1)
    weight = _cut(np.exp(log_weight - log_weight.max()))
    weight /= weight.sum()
    posterior = likelihood * _product(grid.around_mu.T, weight[:, None, :] / evidence)
    behaviours = np.bincount(counts.technique, minlength=n_trials.size)
    what = f"mixed-effects logit ({n_trials.size} techniques, {counts.k.size} behaviours)"
    techniques = tuple(
        _read(grid.rate, posterior[:, t], int(n), f"{what}, shrunk", int(g), confidence)
        for t, (n, g) in enumerate(zip(n_trials, behaviours, strict=True))
    )
    n, g = int(n_trials.sum()), counts.k.size
    new = _read(grid.rate, grid.around_mu.T @ weight, n, f"{what}, prediction", g, confidence)
    bank = _bank_mean(grid, likelihood, evidence, weight)
    return TechniqueRates(
        techniques,
        Estimate(*_beta(*bank, confidence), n, f"{what}, mean of these", n_clusters=g),
        new,
        float(weight.sum(axis=1) @ grid.sigma_t),
        float(weight.sum(axis=0) @ grid.sigma_b),
    )


def _product(kernel: _Floats, values: _Floats) -> _Floats:
    """`kernel` over the first axis of `values`, as one matrix product."""
    return np.asarray(kernel @ values.reshape(values.shape[0], -1)).reshape(-1, *values.shape[1:])


def _likelihoods(counts: _Counts, grid: _Grid, n_techniques: int) -> _Floats:
    """(logit, technique, sigma_b), each technique up to a factor."""
    pairs, of = np.unique(np.stack([counts.k, counts.n]), axis=1, return_inverse=True)
    k, n = pairs
    log = k * special.log_expit(_LOGITS)[:, None] + (n - k) * special.log_expit(-_LOGITS)[:, None]
    log -= log.max(axis=0)
    by_pair = np.log(np.maximum(grid.around_logit @ np.exp(log), 1e-300))  # (sigma_b, logit, pair)
    log_likelihoods = np.zeros((n_techniques, *by_pair.shape[:2]))
    for t in range(n_techniques):
        times = np.bincount(of.ravel()[counts.technique == t], minlength=k.size)
        log_likelihoods[t] = by_pair @ times
    log_likelihoods -= log_likelihoods.max(axis=(1, 2), keepdims=True)
    return np.ascontiguousarray(_cut(np.exp(log_likelihoods)).transpose(2, 0, 1))


def _bank_mean(grid: _Grid, likelihood: _Floats, evidence: _Floats, weight: _Floats) -> tuple[float, float]:
    """Mean and variance of the mean rate: techniques are independent given mu and the deviations."""
    rate = grid.rate[:, None, :]
    first = _product(grid.around_mu, likelihood * rate) / evidence
    second = _product(grid.around_mu, likelihood * rate**2) / evidence
    n = likelihood.shape[1]
    means, within = first.mean(axis=1), (second - first**2).sum(axis=1) / n**2
    mean = float((weight * means).sum())
    return mean, float((weight * (within + (means - mean) ** 2)).sum())


def _beta(mean: float, variance: float, confidence: float) -> tuple[float, float, float]:
    """Value and interval of the Beta distribution with these moments."""
    size = max(mean * (1 - mean) / variance - 1, 1e-6)
    tail = (1 - confidence) / 2
    low, high = (float(special.betaincinv(mean * size, (1 - mean) * size, q)) for q in (tail, 1 - tail))
    return mean, min(low, mean), max(high, mean)


def _read(rates: _Floats, mass: _Floats, n: int, method: str, n_clusters: int, confidence: float) -> Estimate:
    """Posterior mean and equal-tailed interval of a rate."""
    order = np.argsort(rates, axis=None)
    points, weights = rates.ravel()[order], mass.ravel()[order] / mass.sum()
    below = np.cumsum(weights) - weights / 2
    tail = (1 - confidence) / 2
    low, high = np.interp([tail, 1 - tail], below, points)
    value = float(points @ weights)
    return Estimate(value, min(float(low), value), max(float(high), value), n, method, n_clusters=n_clusters)


# --- differences by technique -------------------------------------------------------------------------
# A paired difference by technique: where it is, where the models are equal, and whether techniques
# differ.
#
# Promises: p-values of single techniques are exact, and Holm's correction runs over the techniques. The
# test of heterogeneity allows each technique its own variance. The same generator state gives the same
# result.
#
# The test turns the signs of what each behaviour differs from the pooled difference (a wild cluster
# bootstrap with the null imposed). A permutation of behaviours between techniques would need equal
# variances, and these depend on the rate of each technique. Its statistic is Cochran's Q with a pooled
# variance: single techniques have few behaviours, and one without a discordant trial has no variance at
# all.
#
# Sources: Cochran 1954, Biometrics 10:101 (Q). Liu 1988, Ann. Stat. 16:1696; Cameron, Gelbach and Miller
# 2008, Rev. Econ. Stat. 90:414 (wild cluster bootstrap). Phipson and Smyth 2010 (p is never 0). Holm
# 1979.

N_DRAWS = 4000
Finding = Literal["worse", "better", "equal", "undecided"]


class TechniqueDifference(NamedTuple):
    """One technique: b's rate minus a's.

    worse, better  p below alpha after Holm over the techniques, and not equal
    equal          both one-sided bounds of the difference lie within the margin
    undecided      none of these
    """

    technique: str
    comparison: Comparison
    p_holm: float
    finding: Finding


class Heterogeneity(NamedTuple):
    """The techniques in the order of their sorted labels, and the test that all have the same difference.

    `p_value` is None with fewer than two techniques, or if all behaviours have the same difference.
    """

    techniques: tuple[TechniqueDifference, ...]
    q: float | None
    p_value: float | None
    test: str

    def count(self, finding: Finding) -> int:
        """The number of techniques with this finding."""
        return sum(each.finding == finding for each in self.techniques)


def heterogeneity(
    a: ArrayLike, b: ArrayLike, techniques: ArrayLike, behaviours: ArrayLike, rng: np.random.Generator,
    margin: float = MARGIN, alpha: float = ALPHA, n_draws: int = N_DRAWS,
) -> Heterogeneity:  # fmt: skip
    """Compare b with a in each technique, and test whether the difference depends on the technique.

    a, b        per trial, whether the model broke
    techniques  per trial, the label of its technique
    behaviours  per trial, the label of its behaviour; the same label under two techniques is two behaviours
    """
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    labels, clusters = np.asarray(techniques), np.asarray(behaviours)
    if not (first.shape == second.shape == labels.shape == clusters.shape) or first.ndim != 1:
        raise BadArgument(
            f"{first.shape} and {second.shape} trials, {labels.shape} techniques and {clusters.shape} "
            "behaviours do not fit; all must be flat and equal"
        )
    names = np.unique(labels)
    fits = [
        compare(first[labels == t], second[labels == t], clusters[labels == t], 1 - alpha, alpha)
        for t in names
    ]
    adjusted = holm([c.p_value for c in fits])
    each = tuple(
        TechniqueDifference(str(t), c, p, _finding(c, p, margin, alpha))
        for t, c, p in zip(names.tolist(), fits, adjusted, strict=True)
    )
    q, p = _flipped_q(second.astype(np.float64) - first, labels, clusters, rng, n_draws)
    return Heterogeneity(each, q, p, f"Cochran's Q, {n_draws:,} wild cluster draws")


def _finding(comparison: Comparison, p: float, margin: float, alpha: float) -> Finding:
    if max(upper_bound(comparison, alpha), upper_bound(comparison.mirrored(), alpha)) < margin:
        return "equal"
    if p >= alpha:
        return "undecided"
    return "worse" if (comparison.difference.value or 0.0) > 0 else "better"


def _flipped_q(
    differences: _Floats, techniques: NDArray[np.generic], behaviours: NDArray[np.generic],
    rng: np.random.Generator, n_draws: int,
) -> tuple[float | None, float | None]:  # fmt: skip
    _, t = np.unique(techniques, return_inverse=True)
    _, inner = np.unique(behaviours, return_inverse=True)
    pairs, of = np.unique(t * (inner.max(initial=0) + 1) + inner, return_inverse=True)
    total, size = np.bincount(of, weights=differences), np.bincount(of).astype(np.float64)
    group = pairs // (inner.max(initial=0) + 1)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2 or np.ptp(total / size) == 0.0:
        return None, None
    mean = total.sum() / size.sum()
    own = np.zeros((total.size, n_groups))
    own[np.arange(total.size), group] = total - size * mean  # what each behaviour differs, by technique
    signs = rng.integers(0, 2, size=(n_draws, total.size), dtype=np.int8) * 2.0 - 1.0
    weights = np.asarray(np.bincount(group, weights=size), dtype=np.float64)
    seen, drawn = _between(own.sum(axis=0), weights), _between(signs @ own, weights)
    reached = int((drawn >= seen - 1e-9).sum())
    variance = float(np.square(own).sum()) / size.sum() * total.size / (total.size - 1)
    return float(seen) / variance, (1 + reached) / (1 + n_draws)


def _between(sums: _Floats, sizes: _Floats) -> _Floats:
    """Sum over techniques of size times the squared distance from the pooled mean; sums in the last axis."""
    return np.asarray((sums**2 / sizes).sum(axis=-1) - sums.sum(axis=-1) ** 2 / sizes.sum())
