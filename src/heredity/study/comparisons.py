"""Paired comparisons: any two models, parent and child, all seeds of a child, and a panel's members.

Promises: two models are compared on the trials that both decided, attack by attack and sample by sample.
Holm's correction runs over all pairs together, over all edges together, and over all groups of seeds.
Leaves to others: reading the outcomes (outcomes.py), the rates of one model (aggregate.py), and the interval
and test of each comparison (intervals.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.lineage.graph import Edge
from heredity.redteam.checks import is_judged
from heredity.stats.crossed import CrossedDifference, crossed_difference
from heredity.stats.intervals import refused
from heredity.study.claims import Claims, claims, coded
from heredity.study.competence import is_weak
from heredity.study.estimates import (
    ALL,
    JUDGED,
    Inheritance,
    Measure,
    ModelPair,
    SeedGroup,
    Table2x2,
)
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes, is_decided
from heredity.study.plan import Plan, declared_analysis
from heredity.study.wording import withheld_words

MEASURES: tuple[Measure, ...] = ("breach", "over_refusal")
_VERBS = {"breach": "broke", "over_refusal": "refused"}


class _Compared(NamedTuple):
    """A model and another one, or several seeds of another one, compared under a scope or a technique.

    By their places in the plan.
    """

    a: int
    bs: tuple[int, ...]
    technique: str
    comparison: stats.Comparison


def compare_models(outcomes: Outcomes, measure: Measure, techniques: Sequence[str]) -> list[ModelPair]:
    """Every two models under each technique, with Holm's correction over all returned pairs."""
    every = [(a, (b,)) for a, b in combinations(range(len(outcomes.plan.models)), 2)]
    return [pair for _, pair in _compared(outcomes, measure, techniques, every)]


def compare_edges(outcomes: Outcomes, measure: Measure, techniques: Sequence[str]) -> list[Inheritance]:
    """Every parent and child of the plan under each technique, with Holm's correction over the edges."""
    place = _places(outcomes.plan)
    by_places: dict[tuple[int, tuple[int, ...]], Edge] = {
        (place[edge.parent], (place[edge.child],)): edge for edge in _edges(outcomes.plan)
    }
    return [
        _inheritance(outcomes, by_places[found.a, found.bs], found, pair)
        for found, pair in _compared(outcomes, measure, techniques, list(by_places))
    ]


def compare_seeds(outcomes: Outcomes, measure: Measure, techniques: Sequence[str]) -> Iterator[SeedGroup]:
    """Every parent and its children that differ in their seed only, with Holm's correction over these groups.

    A behaviour is one cluster, whatever its number of seeds: these intervals and tests are about these seeds.
    """
    place, by_group = _places(outcomes.plan), dict[str, list[Edge]]()
    for edge in _edges(outcomes.plan):
        if not isinstance(edge.seeds_of, msgspec.UnsetType):
            by_group.setdefault(edge.seeds_of, []).append(edge)
    by_places = {
        (place[edges[0].parent], tuple(place[edge.child] for edge in edges)): edges
        for edges in by_group.values()
    }
    for found, pair in _compared(outcomes, measure, techniques, list(by_places)):
        edges = by_places[found.a, found.bs]
        seeds = tuple(edge.seed for edge in edges if isinstance(edge.seed, int))
        others = _other_seeds(outcomes, found, outcomes.probes(found.technique, measure))
        children = tuple(edge.child for edge in edges)
        yield SeedGroup(children, seeds, _inheritance(outcomes, edges[0], found, pair), *others)


def _other_seeds(outcomes: Outcomes, compared: _Compared, probes: list[int]) -> CrossedDifference:
    """The difference for other behaviours and other seeds like these: both are a sample."""
    shared = _shared(outcomes, compared.a, compared.bs, probes)
    intervals = Intervals.over(outcomes, compared.a, *compared.bs)
    if intervals.is_sequential:
        why = "where answers decided the number of trials, there is no interval for other seeds"
        return CrossedDifference(refused(int(shared.first.size), why), 1.0)
    seeds = np.repeat(np.arange(len(compared.bs)), shared.counted.size // len(compared.bs))[shared.counted]
    trials = shared.first, shared.second, shared.clusters, seeds
    found = crossed_difference(*trials, np.random.default_rng(0), intervals.confidence)
    return found._replace(p_value=intervals.overall(found.p_value))


def _edges(plan: Plan) -> tuple[Edge, ...]:
    return () if isinstance(plan.edges, msgspec.UnsetType) else plan.edges


def _places(plan: Plan) -> dict[str, int]:
    return {model.id: m for m, model in enumerate(plan.models)}


def _compared(
    outcomes: Outcomes,
    measure: Measure,
    techniques: Sequence[str],
    models: Sequence[tuple[int, tuple[int, ...]]],
) -> Iterator[tuple[_Compared, ModelPair]]:
    cells = [(name, probes) for name in techniques if (probes := outcomes.probes(name, measure))]
    # Plans that declare no analysis keep the level of one comparison, as the releases that made them did.
    n_tests = len(cells) * len(models) if declared_analysis(outcomes.plan) is not None else 1
    found = [
        _Compared(a, bs, technique, _compare(outcomes, a, bs, probes, n_tests))
        for technique, probes in cells
        for a, bs in models
    ]
    # A comparison without a shared trial has no p-value, and takes no part in the correction.
    adjusted = iter(stats.holm([c.comparison.p_value for c in found if c.comparison.table.n]))
    names = _names(outcomes.plan)
    for each in found:
        p_holm = next(adjusted) if each.comparison.table.n else None
        yield each, _pair(outcomes, each, measure, p_holm, names)


def _compare(
    outcomes: Outcomes, a: int, bs: tuple[int, ...], probes: list[int], n_tests: int
) -> stats.Comparison:
    shared, intervals = _shared(outcomes, a, bs, probes), Intervals.over(outcomes, a, *bs)
    blocks = None
    if intervals.is_sequential:
        blocks = np.tile(outcomes.blocks_of(ALL, probes), len(bs))[shared.counted]
    return intervals.compare(shared.first, shared.second, shared.clusters, blocks, n_tests)


class _Shared(NamedTuple):
    """The trials that count for both models: where each broke, and the behaviour of each trial."""

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    clusters: NDArray[np.intp]
    counted: NDArray[np.bool_]  # among all trials of the cell, once for each of several seeds


def _shared(outcomes: Outcomes, a: int, bs: Sequence[int], probes: list[int]) -> _Shared:
    first = np.tile(outcomes.scored_of(a, ALL, probes), len(bs))
    second = np.concatenate([outcomes.scored_of(b, ALL, probes) for b in bs])
    counted = outcomes.in_rate(first) & outcomes.in_rate(second)
    clusters = np.tile(outcomes.clusters_of(ALL, probes, a, *bs), len(bs))[counted]
    return _Shared(first[counted] == BROKE, second[counted] == BROKE, clusters, counted)


def _pair(
    outcomes: Outcomes, compared: _Compared, measure: Measure, p_holm: float | None, names: Sequence[str]
) -> ModelPair:
    plan, a, bs, c = outcomes.plan, compared.a, compared.bs, compared.comparison
    intervals, b = Intervals.over(outcomes, a, *bs), bs[0]
    settings = (plan.margin, intervals.alpha, p_holm)
    if isinstance(plan.analysis, msgspec.UnsetType):
        found = Claims(stats.verdict(c, *settings), stats.verdict(c.mirrored(), *settings))
    else:
        trials = coded(outcomes, a, bs, outcomes.probes(compared.technique, measure))
        found = claims(c, trials, intervals, plan.analysis, plan.margin, p_holm)
    withheld, not_better = (
        withheld_words(r, found.tipping_share) for r in (found.reason_ab, found.reason_ba)
    )
    # A judge decides whether a demand was refused. A weak model that did not refuse has not complied.
    is_refused = _counts_refusals(outcomes, compared, measure) or _is_weak(outcomes, compared, measure)
    verb = "did not refuse" if is_refused else _VERBS[measure]
    name_b = names[b] if len(bs) == 1 else f"{names[b]} with {len(bs)} seeds"
    return ModelPair(
        a=plan.models[a].id,
        b=plan.models[b].id,
        measure=measure,
        technique=compared.technique,
        table=Table2x2(*c.table),
        n=c.table.n,
        difference=c.difference,
        p_value=c.p_value if c.table.n else None,
        p_holm=p_holm,
        test=c.test,
        margin=plan.margin,
        detectable=c.detectable,
        verdict_ab=found.verdict_ab,
        verdict_ba=found.verdict_ba,
        words=stats.verdict_words(names[a], name_b, c, *settings, verb, withheld, not_better),
        reason_ab=found.reason_ab,
        reason_ba=found.reason_ba,
        tipping_share=found.tipping_share,
        n_tests=c.n_tests,
    )


def _inheritance(outcomes: Outcomes, edge: Edge, compared: _Compared, pair: ModelPair) -> Inheritance:
    """The table of an edge, on the trials that both decided: an unclear answer holds nothing to be kept.

    Where refusals count, an unclear answer is decided: it did not refuse.
    """
    probes, a, bs = outcomes.probes(compared.technique, pair.measure), compared.a, compared.bs
    parent = np.tile(outcomes.scored_of(a, ALL, probes), len(bs))
    child = np.concatenate([outcomes.scored_of(b, ALL, probes) for b in bs])
    both = is_decided(parent) & is_decided(child)
    broke = parent[both] == BROKE, child[both] == BROKE
    clusters = np.tile(outcomes.clusters_of(ALL, probes, a, *bs), len(bs))[both]
    kept = Intervals.over(outcomes, a, *bs).retention(*broke, clusters)
    counts = stats.inherited(stats.tabulate(*broke))
    weak = _is_weak(outcomes, compared, pair.measure)
    how = "" if isinstance(edge.descent, msgspec.UnsetType) else edge.descent
    return Inheritance(edge.parent, edge.child, edge.recipe, edge.role, *counts, kept, pair, weak, how)


def _counts_refusals(outcomes: Outcomes, compared: _Compared, measure: Measure) -> bool:
    """Whether the rates of this comparison are those of answers that do not refuse."""
    probes = outcomes.probes(compared.technique, measure) if outcomes.counts_refusals else []
    return measure == "breach" and any(is_judged(outcomes.plan.probes[i].check) for i in probes)


def _is_weak(outcomes: Outcomes, compared: _Compared, measure: Measure) -> bool:
    """Whether one of these models is too weak for its judged breaches to be called compliance."""
    if measure != "breach" or compared.technique != JUDGED or declared_analysis(outcomes.plan) is None:
        return False
    probes = outcomes.probes(compared.technique, measure)
    return any(is_weak(outcomes, b, probes) for b in compared.bs)


# --- the members of a panel -----------------------------------------------------------------------


def _names(plan: Plan) -> list[str]:
    """Names for sentences; the id distinguishes two models of one name."""
    names = [model.name for model in plan.models]
    return [m.name if names.count(m.name) == 1 else f"{m.name} ({m.id[:8]})" for m in plan.models]
