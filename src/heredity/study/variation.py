"""Variation beyond behaviours: between samples of one prompt, and between attacks.

Promises: nothing is computed for a plan that declares no analysis, or of a study until decided. The same
study gives the same numbers.
Leaves to others: the formulas (stats/repeats.py, stats/crossed.py), and the words (report/).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from heredity.stats.crossed import crossed_difference, crossed_rate
from heredity.stats.repeats import repeats
from heredity.study.estimands import AttackPair, AttackRate, RepeatedSamples
from heredity.study.estimates import ALL
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes
from heredity.study.plan import declared_analysis

_MOST_MODELS, _SEED = 10, 0


def repeated_samples(outcomes: Outcomes) -> Iterator[RepeatedSamples]:
    """By model and scope of breaches, of plans with several samples; a prompt is a probe under an attack."""
    plan = outcomes.plan
    if not _is_fixed(outcomes) or plan.samples < 2:
        return
    for m, model in enumerate(plan.models):
        for scope in outcomes.breach_scopes:
            probes = outcomes.probes(scope, "breach")
            codes = outcomes.scored_of(m, ALL, probes)
            values = np.where(outcomes.in_rate(codes), codes == BROKE, np.nan).reshape(-1, plan.samples)
            clusters = outcomes.clusters_of(ALL, probes, m)[:: plan.samples]
            found = repeats(values, clusters, Intervals.over(outcomes, m).confidence)
            yield RepeatedSamples(
                model.id, scope, found.n_prompts, found.n_samples, found.flips, found.disagreement,
                found.item_variance, found.sample_variance, found.standard_error, found.limit,
            )  # fmt: skip


def attack_rates(outcomes: Outcomes) -> Iterator[AttackRate]:
    """By model and scope: the rate with an interval for other attacks like these, if the plan has several."""
    for scope, probes in _crossed(outcomes):
        columns = _attacks_of(outcomes, probes)
        for m, model in enumerate(outcomes.plan.models):
            codes = outcomes.scored_of(m, ALL, probes)
            counted = outcomes.in_rate(codes)
            rows = outcomes.clusters_of(ALL, probes, m)
            trials = codes[counted] == BROKE, rows[counted], columns[counted]
            if trials[0].size:
                rng = np.random.default_rng(_SEED)
                found = crossed_rate(*trials, rng, Intervals.over(outcomes, m).confidence)
                yield AttackRate(model.id, scope, len(np.unique(trials[2])), found)


def attack_pairs(outcomes: Outcomes) -> Iterator[AttackPair]:
    """By pair and scope: the difference and its test for other attacks like these; exploratory."""
    for scope, probes in _crossed(outcomes):
        columns = _attacks_of(outcomes, probes)
        for a, b in combinations(range(len(outcomes.plan.models)), 2):
            first, second = (outcomes.scored_of(m, ALL, probes) for m in (a, b))
            counted = outcomes.in_rate(first) & outcomes.in_rate(second)
            if counted.any():
                rows = outcomes.clusters_of(ALL, probes, a, b)
                trials = first[counted] == BROKE, second[counted] == BROKE, rows[counted], columns[counted]
                rng = np.random.default_rng(_SEED)
                intervals = Intervals.over(outcomes, a, b)
                found = crossed_difference(*trials, rng, intervals.confidence)
                ids = outcomes.plan.models[a].id, outcomes.plan.models[b].id
                yield AttackPair(*ids, scope, found.difference, intervals.overall(found.p_value))


def _is_fixed(outcomes: Outcomes) -> bool:
    plan = outcomes.plan
    is_small = len(plan.models) <= _MOST_MODELS
    return declared_analysis(plan) is not None and not plan.is_until_decided and is_small


def _crossed(outcomes: Outcomes) -> Iterator[tuple[str, list[int]]]:
    if _is_fixed(outcomes) and len(outcomes.plan.attacks) > 1:
        for scope in outcomes.breach_scopes:
            yield scope, outcomes.probes(scope, "breach")


def _attacks_of(outcomes: Outcomes, probes: list[int]) -> NDArray[np.intp]:
    """The place of the attack of each trial that `codes_of` returns."""
    return np.repeat(np.arange(len(outcomes.plan.attacks)), len(probes) * outcomes.plan.samples)
