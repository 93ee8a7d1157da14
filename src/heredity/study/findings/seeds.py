"""The children of a parent that differ only in the seed of their training, taken together.

Promises: a behaviour is one cluster, whatever its number of seeds. Holm's correction runs over the groups of
seeds. A sentence names the seeds that it is about: these, or others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import Section, TextTable
from heredity.lineage.graph import Edge
from heredity.stats.intervals import refused
from heredity.stats.paired import CrossedDifference, crossed_difference
from heredity.study.comparisons import ComparedGroup, compare_groups, inheritance_of, places_of, shared_trials
from heredity.study.estimates import MEASURES, SCOPES, Estimates, Inheritance, Measure
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.outcomes import Outcomes
from heredity.study.wording import (
    difference_words,
    names,
    p_words,
    plural,
    points,
    points_interval,
    recipe_words,
    scope_name,
)

NAME, ORDER = "seeds", 0
_CLAIM = (
    "A verdict on several seeds is about these seeds. The interval for other seeds takes them as a sample of "
    "seeds: with two of them it rests on one degree of freedom, and seldom shows anything."
)


class SeedGroup(Record, frozen=True):
    """The children of one parent that differ only in the seed of their training, taken together.

    `inherited` is over the trials of all of them, and about these seeds. Its difference is the mean over
    them, its clusters are behaviours, and its counts are sums. Its `child` is the first of `children`. Its
    `p_holm` is corrected over all such groups of the same measure.
    `other_seeds` is the same difference for other seeds of this recipe, with behaviours and seeds as samples
    (stats/paired.py). Few seeds say little about others: with two it rests on one degree of freedom.
    """

    children: tuple[str, ...]
    seeds: tuple[int, ...]  # in the order of `children`
    inherited: Inheritance
    other_seeds: Estimate
    p_other_seeds: float


Row = SeedGroup


def seed_groups(estimates: Estimates) -> tuple[SeedGroup, ...]:
    """By scope, where children differ only in their seed."""
    return estimates.rows(NAME, Row)


def compute(evidence: StudyEvidence) -> Iterator[SeedGroup]:
    """A row for each scope and group; nothing if no children differ only in their seed."""
    for measure in MEASURES:
        yield from compare_seeds(evidence.outcomes, measure, SCOPES[measure])


def compare_seeds(outcomes: Outcomes, measure: Measure, techniques: Sequence[str]) -> Iterator[SeedGroup]:
    """Every parent and its children that differ in their seed only, with Holm's correction over these groups.

    A behaviour is one cluster, whatever its number of seeds: these intervals and tests are about these seeds.
    """
    place, by_group = places_of(outcomes.plan), dict[str, list[Edge]]()
    for edge in outcomes.plan.edges or ():
        if not isinstance(edge.seeds_of, msgspec.UnsetType):
            by_group.setdefault(edge.seeds_of, []).append(edge)
    by_places = {
        (place[edges[0].parent], tuple(place[edge.child] for edge in edges)): edges
        for edges in by_group.values()
    }
    for group, pair in compare_groups(outcomes, measure, techniques, list(by_places)):
        edges = by_places[group.a, group.bs]
        seeds = tuple(edge.seed for edge in edges if isinstance(edge.seed, int))
        others = _other_seeds(outcomes, group, outcomes.probes(group.technique, measure))
        children = tuple(edge.child for edge in edges)
        yield SeedGroup(children, seeds, inheritance_of(outcomes, edges[0], group, pair), *others)


def _other_seeds(outcomes: Outcomes, compared: ComparedGroup, probes: list[int]) -> CrossedDifference:
    """The difference for other behaviours and other seeds like these: both are a sample."""
    shared = shared_trials(outcomes, compared.a, compared.bs, probes)
    intervals = Intervals.over(outcomes, compared.a, *compared.bs)
    if intervals.is_sequential:
        why = "where answers decided the number of trials, there is no interval for other seeds"
        return CrossedDifference(refused(int(shared.first.size), why), 1.0)
    seeds = np.repeat(np.arange(len(compared.bs)), shared.counted.size // len(compared.bs))[shared.counted]
    trials = shared.first, shared.second, shared.clusters, seeds
    crossed = crossed_difference(*trials, np.random.default_rng(0), intervals.confidence)
    return crossed._replace(p_value=intervals.overall(crossed.p_value))


def show(rows: Sequence[SeedGroup], study: RecordedStudy) -> Section | None:
    """One row and one sentence for all seeds of a recipe."""
    if not rows:
        return None
    estimates, cells, sentences = study.estimates, [], []
    called = names(estimates.models)
    for group in rows:
        compared = group.inherited.compared
        scope, parent = scope_name(estimates, compared.technique), called.get(group.inherited.parent, "?")
        child = f"{recipe_words(group.inherited)} ({plural(len(group.seeds), 'seed')})"
        verdict, difference = group.inherited.verdict, difference_words(compared.difference)
        each, others = "; ".join(_each_seed(estimates, group)), points_interval(group.other_seeds)
        cells.append([scope, child, parent, verdict, difference, p_words(compared.p_holm), each, others])
        sentences.append(
            f"{scope}: {child} of {parent}: {verdict} for these seeds, {difference}; {each}. "
            f"Other seeds: {others}."
        )
    head = ["of", "child", "parent", "verdict, these seeds", "difference, these seeds", "p, Holm"]
    title = "Seeds of the same recipe"
    table = TextTable(title, [*head, "each seed", "other seeds"], cells)
    return Section(NAME, title, _CLAIM, (table,), (*sentences, _CLAIM))


def _each_seed(estimates: Estimates, group: SeedGroup) -> list[str]:
    """The difference of each seed by itself, in the group's order."""
    compared = group.inherited.compared
    alone = {
        edge.child: edge.compared.difference
        for edge in estimates.edges
        if edge.parent == group.inherited.parent
        and (edge.compared.measure, edge.compared.technique) == (compared.measure, compared.technique)
    }
    return [
        f"seed {seed} {points(alone[child].value)}"
        for seed, child in zip(group.seeds, group.children, strict=True)
        if child in alone
    ]
