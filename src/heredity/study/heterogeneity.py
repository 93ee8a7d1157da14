"""Rates by technique, shrunk towards each other, with a prediction for a new technique.

Promises: the scope is the one that the headline rests on. A rate for these techniques and a prediction for
another one are two numbers. The same study gives the same numbers.
Leaves to others: the model and the test (stats/technique_rates.py, stats/heterogeneity.py), which differences
are shown in single techniques (comparisons.py), and the words (wording.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import msgspec
import numpy as np

from heredity.stats.heterogeneity import heterogeneity
from heredity.stats.technique_rates import technique_rates
from heredity.study.estimands import ShrunkRates, TechniqueRate, TechniqueTest
from heredity.study.estimates import ALL, JUDGE_FREE
from heredity.study.intervals import Bools, Intervals
from heredity.study.outcomes import BROKE, Outcomes

_MOST_MODELS, _MOST_TRIALS = 10, 100_000  # of a study, and of a pair: beyond, a report would take minutes


def rates_by_technique(outcomes: Outcomes) -> Iterator[ShrunkRates]:
    """By model, in the headline's scope; nothing for a plan that declares no analysis."""
    plan = outcomes.plan
    if isinstance(plan.analysis, msgspec.UnsetType) or len(plan.models) > _MOST_MODELS:
        return
    scope = next(iter(outcomes.breach_scopes), JUDGE_FREE)
    probes = outcomes.probes(scope, "breach")
    for m, model in enumerate(plan.models):
        codes = outcomes.scored_of(m, ALL, probes)
        counted = outcomes.in_rate(codes)
        if plan.application.decoding.temperature == 0:
            counted = _one_a_prompt(counted, plan.samples)
        techniques = outcomes.techniques_of(ALL, probes)[counted]
        if not techniques.size:
            continue
        clusters = outcomes.clusters_of(ALL, probes, m)[counted]
        found = technique_rates(
            codes[counted] == BROKE, techniques, clusters, Intervals.over(outcomes, m).confidence
        )
        names = [outcomes.techniques[t] for t in np.unique(techniques)]
        each = tuple(TechniqueRate(*pair) for pair in zip(names, found.techniques, strict=True))
        yield ShrunkRates(
            model.id,
            scope,
            each,
            found.bank_mean,
            found.new_technique,
            found.sigma_technique,
            found.sigma_behaviour,
        )


def _one_a_prompt(counted: Bools, n_samples: int) -> Bools:
    """The first counted sample of each prompt: under greedy decoding the others repeat its answer."""
    by_prompt = counted.reshape(-1, n_samples)
    return np.asarray(by_prompt & (np.cumsum(by_prompt, axis=1) == 1)).ravel()


def technique_tests(outcomes: Outcomes) -> Iterator[TechniqueTest]:
    """By pair, whether its difference depends on the technique; not for a study until decided."""
    plan = outcomes.plan
    is_declared = not isinstance(plan.analysis, msgspec.UnsetType)
    if not is_declared or plan.is_until_decided or len(plan.models) > _MOST_MODELS:
        return
    scope = next(iter(outcomes.breach_scopes), JUDGE_FREE)
    probes = outcomes.probes(scope, "breach")
    techniques = outcomes.techniques_of(ALL, probes)
    for a, b in combinations(range(len(plan.models)), 2):
        first, second = outcomes.scored_of(a, ALL, probes), outcomes.scored_of(b, ALL, probes)
        counted = outcomes.in_rate(first) & outcomes.in_rate(second)
        if not 0 < np.count_nonzero(counted) <= _MOST_TRIALS:
            continue
        intervals = Intervals.over(outcomes, a, b)
        found = heterogeneity(
            first[counted] == BROKE,
            second[counted] == BROKE,
            techniques[counted],
            outcomes.clusters_of(ALL, probes, a, b)[counted],
            np.random.default_rng(0),
            plan.margin,
            1 - intervals.confidence,
        )
        q = None if found.q is None else float(found.q)
        p = None if found.p_value is None else intervals.overall(found.p_value)
        yield TechniqueTest(plan.models[a].id, plan.models[b].id, scope, q, p, found.test)
