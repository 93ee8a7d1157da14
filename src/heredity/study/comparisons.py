"""A study's outcomes as a box, and two models of it compared on the same trials: any two, and along an edge.

Promises: two models are compared on the trials that both decided, attack by attack and sample by sample; many
comparisons are corrected together, pairs and edges each as a family of their own.
Leaves to others: reading the verdicts (seen.py), everything of one model (tally.py), the formulas (stats/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from heredity import stats
from heredity.core.records import Estimate
from heredity.lineage.graph import Edge
from heredity.stats.looks import compare_in_blocks
from heredity.stats.sequential import clustered_rate_sequence
from heredity.study.estimates import ALL, Inheritance, Measure, Pair, Table2x2, is_part
from heredity.study.judge_correction import Errors
from heredity.study.outcomes import BROKE, HELD, Codes, Seen
from heredity.study.plan import Plan

MEASURES: tuple[Measure, ...] = ("breach", "over_refusal")
_KINDS = {"breach": "breach", "over_refusal": "benign"}
_VERBS = {"breach": "broke", "over_refusal": "refused"}


class Cells:
    """The outcomes as a box (model, attack, probe, sample), sliced by technique and measure."""

    def __init__(self, plan: Plan, seen: Seen, errors: Errors) -> None:
        self.plan, self.errors, self.labels = plan, errors, seen.labels
        self._shape = (len(plan.models), len(plan.attacks), len(plan.probes), plan.samples)
        self.box = seen.outcomes.reshape(self._shape)
        self.techniques = list(dict.fromkeys(probe.technique for probe in plan.probes))
        # A cluster belongs to its technique: "override" under two of them is two behaviours.
        behaviours = [f"{probe.technique}\0{probe.cluster}" for probe in plan.probes]
        _, self._clusters = np.unique(behaviours, return_inverse=True)

    def probes(self, technique: str, measure: Measure) -> list[int]:
        """Places of the probes that a cell is about; none for a scope of another measure."""
        kind = _KINDS[measure]
        return [i for i, p in enumerate(self.plan.probes) if p.kind == kind and is_part(p, technique)]

    def outcomes(self, model: int, attack: str, probes: Sequence[int]) -> Codes:
        """One code a trial of the cell, flat, in the same order for every model."""
        return np.asarray(self.box[model, self._attacks(attack)][:, probes]).ravel()

    def places(self, model: int, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The index in the plan of each trial that `outcomes` gives."""
        grid = np.ix_([model], self._attacks(attack), list(probes), range(self.plan.samples))
        return np.asarray(np.ravel_multi_index(grid, self._shape)).ravel()

    def clusters(self, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The behaviour of each trial that `outcomes` gives."""
        once = np.repeat(self._clusters[list(probes)], self.plan.samples)
        return np.tile(once, len(self._attacks(attack)))

    def blocks(self, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The look at which each trial that `outcomes` gives was first seen."""
        once = np.searchsorted(self.plan.ends, list(probes), side="right")
        return np.tile(np.repeat(once, self.plan.samples), len(self._attacks(attack)))

    def _attacks(self, attack: str) -> list[int]:
        return [i for i, name in enumerate(self.plan.attacks) if attack in (ALL, name)]


# --- two models -----------------------------------------------------------------------------------


class _Told(NamedTuple):
    """Two models, by their places in the plan, compared under a scope or a technique."""

    a: int
    b: int
    technique: str
    comparison: stats.Comparison


def pairs(cells: Cells, measure: Measure, techniques: Sequence[str]) -> list[Pair]:
    """Every two models under each technique; Holm's correction runs over all that are returned."""
    every = list(combinations(range(len(cells.plan.models)), 2))
    return [pair for _, pair in _told(cells, measure, techniques, every)]


def inheritances(cells: Cells, measure: Measure, techniques: Sequence[str]) -> list[Inheritance]:
    """Every edge of the plan under each technique; Holm's correction runs over the edges alone."""
    edges = () if isinstance(cells.plan.edges, msgspec.UnsetType) else cells.plan.edges
    place = {model.id: m for m, model in enumerate(cells.plan.models)}
    of = {(place[edge.parent], place[edge.child]): edge for edge in edges}
    return [
        _inheritance(cells, of[told.a, told.b], told, pair)
        for told, pair in _told(cells, measure, techniques, list(of))
    ]


def _told(
    cells: Cells, measure: Measure, techniques: Sequence[str], models: Sequence[tuple[int, int]]
) -> Iterator[tuple[_Told, Pair]]:
    found = [
        _compare(cells, a, b, technique, probes)
        for technique in techniques
        if (probes := cells.probes(technique, measure))
        for a, b in models
    ]
    # A comparison without a shared trial has no p-value, and takes no part in the correction.
    adjusted = iter(stats.holm([t.comparison.p_value for t in found if t.comparison.table.n]))
    names = _names(cells.plan)
    for told in found:
        p_holm = next(adjusted) if told.comparison.table.n else None
        yield told, _pair(cells.plan, told, measure, p_holm, names)


def _compare(cells: Cells, a: int, b: int, technique: str, probes: list[int]) -> _Told:
    plan, (first, second, clusters, decided) = cells.plan, _both(cells, a, b, probes)
    how = (plan.confidence, alpha(plan))
    if plan.is_until_decided:
        blocks = cells.blocks(ALL, probes)[decided]
        return _Told(a, b, technique, compare_in_blocks(first, second, clusters, blocks, *how))
    return _Told(a, b, technique, stats.compare(first, second, clusters, *how))


class _Both(NamedTuple):
    """Where each of two models broke, on the trials that both decided, with the behaviours of these."""

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    clusters: NDArray[np.intp]
    decided: NDArray[np.bool_]  # which of all trials these are


def _both(cells: Cells, a: int, b: int, probes: list[int]) -> _Both:
    one, two = cells.outcomes(a, ALL, probes), cells.outcomes(b, ALL, probes)
    decided = ((one == HELD) | (one == BROKE)) & ((two == HELD) | (two == BROKE))
    clusters = cells.clusters(ALL, probes)[decided]
    return _Both(one[decided] == BROKE, two[decided] == BROKE, clusters, decided)


def _pair(plan: Plan, told: _Told, measure: Measure, p_holm: float | None, names: Sequence[str]) -> Pair:
    a, b, c = told.a, told.b, told.comparison
    how = (plan.margin, alpha(plan), p_holm)
    return Pair(
        a=plan.models[a].id,
        b=plan.models[b].id,
        measure=measure,
        technique=told.technique,
        table=Table2x2(*c.table),
        n=c.table.n,
        difference=c.difference,
        p_value=c.p_value if c.table.n else None,
        p_holm=p_holm,
        test=c.test,
        margin=plan.margin,
        detectable=c.detectable,
        verdict_ab=stats.verdict(c, *how),
        verdict_ba=stats.verdict(c.mirrored(), *how),
        words=stats.verdict_words(names[a], names[b], c, *how, verb=_VERBS[measure]),
    )


def _inheritance(cells: Cells, edge: Edge, told: _Told, pair: Pair) -> Inheritance:
    both = _both(cells, told.a, told.b, cells.probes(told.technique, pair.measure))
    how = (cells.plan.confidence, rate_method(cells.plan))
    kept = stats.retention(both.first, both.second, both.clusters, *how)
    counts = stats.inherited(told.comparison.table)
    return Inheritance(edge.parent, edge.child, edge.recipe, edge.role, *counts, kept, pair)


# --- how ------------------------------------------------------------------------------------------


def rate_method(plan: Plan) -> Callable[[ArrayLike, ArrayLike, float], Estimate]:
    """The interval of a rate whose trials share behaviours."""
    # Where the answers so far decided how many there are, only an anytime-valid interval is one.
    return clustered_rate_sequence if plan.is_until_decided else stats.clustered_rate


def alpha(plan: Plan) -> float:
    """The level of every test."""
    return round(1 - plan.confidence, 12)


def _names(plan: Plan) -> list[str]:
    """Names for sentences; two models of one name are told apart by their ids."""
    names = [model.name for model in plan.models]
    return [m.name if names.count(m.name) == 1 else f"{m.name} ({m.id[:8]})" for m in plan.models]
