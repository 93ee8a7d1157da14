"""Which model costs least: expected cost by the user's own costs, the chance to be the best, and ranks.

    cost of a model = sum over kinds of failure: cost of one failure x share of the kind's trials that fail

Promises: models are drawn together, behaviour by behaviour, so that pairing is kept. Kinds of failure that
share a behaviour are drawn together too. No interval has width zero. The same generator state gives the same
result.

Each draw gives every behaviour a weight (Bayesian bootstrap). One more behaviour, which nobody asked, fails
or holds with equal chance, separately for each model and kind. So a model without a failure is not free of
risk: at 0 of n the upper end is near 3 / n.

Ranks come from simultaneous intervals of all differences. A model's lowest rank is one more than the number
of models shown to cost less. Its highest rank leaves out the models shown to cost more.

Sources: Rubin 1981, Ann. Stat. 9:130 (Bayesian bootstrap). Muliere and Secchi 1996, Ann. Inst. Stat. Math.
48:663 (with a prior guess). Mogstad, Romano, Shaikh and Wilhelm 2024, Rev. Econ. Stud. 91:476 (ranks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, refused

N_DRAWS = 10_000
MAX_COST = 1e12  # a higher cost would overflow in sums
_Floats = NDArray[np.float64]


class FailureKind(NamedTuple):
    """One kind of failure over the same trials of all models, e.g. breaches.

    name      for messages, e.g. "breach"
    cost      of one failure, 0 to 1e12
    failed    (model, trial) 1.0 for a failure, 0.0 for none, nan for an undecided trial
    clusters  (trial,) the behaviour of each trial; the same label in two kinds is the same behaviour
    """

    name: str
    cost: float
    failed: ArrayLike
    clusters: ArrayLike


class ModelCost(NamedTuple):
    """One model: its expected cost, the part of each kind, the chance that no model costs less, and its rank.

    Rank 1 is the cheapest. Everything but `cost` is None if the cost is refused.
    """

    cost: Estimate
    parts: tuple[float, ...] | None
    p_best: float | None
    rank_low: int | None
    rank_high: int | None


def expected_costs(
    kinds: Sequence[FailureKind], rng: np.random.Generator, confidence: float = CONFIDENCE,
    n_draws: int = N_DRAWS,
) -> tuple[ModelCost, ...]:  # fmt: skip
    """The expected cost of each model over one trial of every kind, and how the models rank.

    Refused for all models if one of them has no decided trial of a kind: costs of different kinds of failure
    would be compared.
    """
    tables = _tables(kinds)
    n_models = tables[0].sizes.shape[0]
    n_trials = [int(sum(t.sizes[m].sum() for t in tables)) for m in range(n_models)]
    for kind, table in zip(kinds, tables, strict=True):
        if not table.sizes.sum(axis=1).all():
            why = f"a model has no decided trial of the kind '{kind.name}'"
            return tuple(ModelCost(refused(n, why), None, None, None, None) for n in n_trials)
    parts = np.array(
        [k.cost * t.totals.sum(axis=1) / t.sizes.sum(axis=1) for k, t in zip(kinds, tables, strict=True)]
    )
    drawn = _draws(kinds, tables, rng, n_draws)
    method = f"bayesian bootstrap over {tables[0].sizes.shape[1]} behaviours, {n_draws:,} draws"
    return tuple(_ranked(parts, drawn, n_trials, method, tables[0].sizes.shape[1], confidence))


def _ranked(
    parts: _Floats, drawn: _Floats, n_trials: Sequence[int], method: str, n_clusters: int, confidence: float
) -> Iterator[ModelCost]:
    costs = parts.sum(axis=0)
    best = drawn <= drawn.min(axis=1, keepdims=True)
    p_best = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    for m, rank in enumerate(_ranks(costs, drawn, confidence)):
        value, low, high = float(costs[m]), float(lows[m]), float(highs[m])
        cost = Estimate(value, min(low, value), max(high, value), n_trials[m], method, n_clusters=n_clusters)
        yield ModelCost(cost, tuple(float(x) for x in parts[:, m]), float(p_best[m]), *rank)


class _Table(NamedTuple):
    """(model, behaviour) failures and decided trials of one kind; behaviours are those of all kinds."""

    totals: _Floats
    sizes: _Floats


def _tables(kinds: Sequence[FailureKind]) -> list[_Table]:
    if not kinds or all(kind.cost == 0 for kind in kinds):
        raise BadArgument("no kind of failure has a cost above 0")
    labels = np.unique(np.concatenate([np.asarray(kind.clusters) for kind in kinds]))
    tables = []
    for kind in kinds:
        failed, place = np.asarray(kind.failed, dtype=np.float64), np.searchsorted(labels, kind.clusters)
        if not 0 <= kind.cost <= MAX_COST:
            raise BadArgument(f"the cost of '{kind.name}' is {kind.cost}; it must be 0 to {MAX_COST:g}")
        if failed.ndim != 2 or failed.shape[1:] != place.shape:
            raise BadArgument(f"{failed.shape} trials of '{kind.name}' do not fit {place.shape} clusters")
        decided = ~np.isnan(failed)
        if not np.all((failed[decided] >= 0) & (failed[decided] <= 1)):
            raise BadArgument(f"a trial of '{kind.name}' lies outside [0, 1]")
        sums = [np.bincount(place, weights=row, minlength=labels.size) for row in np.nan_to_num(failed)]
        sizes = [np.bincount(place, weights=row, minlength=labels.size) for row in decided]
        tables.append(_Table(np.array(sums), np.array(sizes)))
    if len({table.sizes.shape[0] for table in tables}) > 1:
        raise BadArgument("the kinds of failure have different numbers of models")
    return tables


def _draws(
    kinds: Sequence[FailureKind], tables: Sequence[_Table], rng: np.random.Generator, n_draws: int
) -> _Floats:
    """(draw, model) costs."""
    n_models, n_clusters = tables[0].sizes.shape
    weights = rng.standard_exponential((n_draws, n_clusters))
    costs = np.zeros((n_draws, n_models))
    for kind, table in zip(kinds, tables, strict=True):
        sizes = table.sizes.sum(axis=1) / np.maximum((table.sizes > 0).sum(axis=1), 1)  # of a mean behaviour
        unseen = rng.standard_exponential((n_draws, n_models)) * sizes
        fails = unseen * rng.integers(0, 2, (n_draws, n_models))
        costs += kind.cost * (weights @ table.totals.T + fails) / (weights @ table.sizes.T + unseen)
    return costs


def _ranks(costs: _Floats, drawn: _Floats, confidence: float) -> list[tuple[int, int]]:
    """The lowest and highest rank of each model, all of them right with this confidence."""
    n = costs.size
    if n == 1:
        return [(1, 1)]
    first, second = np.triu_indices(n, 1)
    differences = drawn[:, second] - drawn[:, first]
    spread = differences.std(axis=0)
    furthest = (np.abs(differences - differences.mean(axis=0)) / spread).max(axis=1)
    shown = np.abs(costs[second] - costs[first]) > np.quantile(furthest, confidence) * spread
    is_dearer = np.zeros((n, n), np.bool_)  # [m, k]: m is shown to cost more than k
    is_dearer[second, first] = shown & (costs[second] > costs[first])
    is_dearer[first, second] = shown & (costs[first] > costs[second])
    return [(1 + int(is_dearer[m].sum()), n - int(is_dearer[:, m].sum())) for m in range(n)]
