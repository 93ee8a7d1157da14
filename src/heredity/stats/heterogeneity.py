"""A paired difference by technique: where it is, where the models are equal, and whether techniques differ.

Promises: p-values of single techniques are exact, and Holm's correction runs over the techniques. The test of
heterogeneity allows each technique its own variance. The same generator state gives the same result.
Leaves to others: which trials are paired, and the pooled comparison (paired.py).

The test turns the signs of what each behaviour differs from the pooled difference (a wild cluster bootstrap
with the null imposed). A permutation of behaviours between techniques would need equal variances, and these
depend on the rate of each technique. Its statistic is Cochran's Q with a pooled variance: single techniques
have few behaviours, and one without a discordant trial has no variance at all.

Sources: Cochran 1954, Biometrics 10:101 (Q). Liu 1988, Ann. Stat. 16:1696; Cameron, Gelbach and Miller 2008,
Rev. Econ. Stat. 90:414 (wild cluster bootstrap). Phipson and Smyth 2010 (p is never 0). Holm 1979.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.stats.paired import MARGIN, Comparison, compare, holm, upper_bound
from heredity.stats.power import ALPHA

N_DRAWS = 4000
Finding = Literal["worse", "better", "equal", "undecided"]
_Floats = NDArray[np.float64]


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
    a: ArrayLike,
    b: ArrayLike,
    techniques: ArrayLike,
    behaviours: ArrayLike,
    rng: np.random.Generator,
    margin: float = MARGIN,
    alpha: float = ALPHA,
    n_draws: int = N_DRAWS,
) -> Heterogeneity:
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
            "behaviours do not fit; all must be flat and equal",
            code="not-paired",
        )
    names = np.unique(labels)
    found = [
        compare(first[labels == t], second[labels == t], clusters[labels == t], 1 - alpha, alpha)
        for t in names
    ]
    adjusted = holm([c.p_value for c in found])
    each = tuple(
        TechniqueDifference(str(t), c, p, _finding(c, p, margin, alpha))
        for t, c, p in zip(names.tolist(), found, adjusted, strict=True)
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
    differences: _Floats,
    techniques: NDArray[np.generic],
    behaviours: NDArray[np.generic],
    rng: np.random.Generator,
    n_draws: int,
) -> tuple[float | None, float | None]:
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
