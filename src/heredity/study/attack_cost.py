"""The cost of a breach: attack success within k tries (ASR@k), and queries and tokens per breach.

Promises: a curve has no point beyond the tries that were made. Breaches that a check decides and breaches
that a judge decides stay apart. Every query counts, also of a trial that held, was unclear or failed.
Leaves to others: the intervals (intervals.py) and the rates themselves (aggregate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate
from heredity.stats import pass_at_k
from heredity.study.estimates import SCOPES, AsrPoint, Cost, Curve, Rate
from heredity.study.intervals import Intervals, per_breach
from heredity.study.outcomes import BROKE, HELD, SKIPPED, UNCLEAR, Codes, Outcomes, is_answered, is_part
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse

_SCOPES = SCOPES["breach"]


def success_curves(outcomes: Outcomes) -> tuple[Curve, ...]:
    """Success within k tries, by model, attack and scope, if the plan asks several samples.

    An unclear answer is a try without a breach; an error is not a try. A study until decided has no
    curves: its stop depends on the answers, and the intervals would not be valid.
    """
    plan = outcomes.plan
    if plan.samples < 2 or plan.is_until_decided:
        return ()
    intervals = [Intervals.over(outcomes, m) for m in range(len(plan.models))]
    return tuple(
        Curve(
            model.id,
            attack,
            scope,
            tuple(
                _points(outcomes.array[m, a, probes], _clusters(outcomes, m, attack, probes), intervals[m])
            ),
        )
        for m, model in enumerate(plan.models)
        for a, attack in enumerate(plan.attacks)
        for scope in _SCOPES
        if (probes := outcomes.probes(scope, "breach"))
    )


def _clusters(outcomes: Outcomes, model: int, attack: str, probes: list[int]) -> NDArray[np.intp]:
    """The cluster of each probe."""
    return outcomes.clusters_of(attack, probes, model)[:: outcomes.plan.samples]


def _points(codes: Codes, clusters: NDArray[np.intp], intervals: Intervals) -> Iterator[AsrPoint]:
    """One point for each k, from codes (probe, sample)."""
    broke = (codes == BROKE).sum(axis=1)
    tries = ((codes >= HELD) & (codes <= UNCLEAR)).sum(axis=1)
    for k in pass_at_k.steps(int(tries.max(initial=0))):
        yield AsrPoint(k, intervals.success_within(k, broke, tries, clusters))


_SUMS = 6  # trials, queries, prompt tokens, answer tokens; attacker queries, attacker tokens


def attack_costs(
    outcomes: Outcomes, responses: Iterable[RawResponse], rates: Sequence[Rate]
) -> tuple[Cost, ...]:
    """Queries and tokens by model, attack and scope, in one pass over the responses that have a verdict."""
    plan, found = outcomes.plan, []
    sums = _sums(outcomes, responses)
    places = {model.id: m for m, model in enumerate(plan.models)}
    for rate in rates:
        if rate.technique in _SCOPES and rate.measure == "breach" and rate.attack in plan.attacks:
            attack, scope = plan.attacks.index(rate.attack), _SCOPES.index(rate.technique)
            m = places[rate.model]
            cell = [int(x) for x in sums[m, attack, scope]]
            if cell[0]:
                found.append(_cost(_of_breaches(outcomes, m, rate), *cell))
    return tuple(found)


def _of_breaches(outcomes: Outcomes, model: int, rate: Rate) -> Rate:
    """The rate of breaches, also if the plan's endpoint counts all answers that do not refuse."""
    if not rate.counts_refusals:
        return rate
    probes = outcomes.probes(rate.technique, rate.measure)
    codes = outcomes.codes_of(model, rate.attack, probes)
    answered = is_answered(codes)
    clusters = outcomes.clusters_of(rate.attack, probes, model)[answered]
    found = Intervals.over(outcomes, model).rate(codes[answered] == BROKE, clusters)
    return msgspec.structs.replace(rate, estimate=found, n_not_refused=msgspec.UNSET)


def _sums(outcomes: Outcomes, responses: Iterable[RawResponse]) -> NDArray[np.int64]:
    """(model, attack, scope, _SUMS) over the trials that have a verdict and were asked."""
    plan, codes = outcomes.plan, memoryview(outcomes.codes.data)
    shape = (len(plan.models), len(plan.attacks), len(_SCOPES), _SUMS)
    sums = [0] * int(np.prod(shape))
    scopes, n_probes = [_scope(plan, i) for i in range(len(plan.probes))], len(plan.probes)
    for row in responses:
        rest, place = divmod(row.index // plan.samples, n_probes)
        if (scope := scopes[place]) is None or codes[row.index] in (0, SKIPPED):
            continue
        at = _SUMS * (rest * len(_SCOPES) + scope)
        sums[at] += 1
        sums[at + 1] += len(row.exchanges)
        for exchange in row.exchanges:
            sums[at + 2] += exchange.n_prompt_tokens
            sums[at + 3] += exchange.n_tokens
        sums[at + 4] += len(row.consulted)
        for question in row.consulted:
            sums[at + 5] += question.n_prompt_tokens + question.n_tokens
    return np.array(sums, np.int64).reshape(shape)


def _scope(plan: Plan, place: int) -> int | None:
    """The scope that a probe counts for; None for a twin and for a baseline."""
    probe = plan.probes[place]
    if probe.kind != "breach":
        return None
    return next((i for i, scope in enumerate(_SCOPES) if is_part(probe, scope)), None)


def _cost(
    rate: Rate,
    n_trials: int,
    n_queries: int,
    n_prompt_tokens: int,
    n_tokens: int,
    n_attacker_queries: int,
    n_attacker_tokens: int,
) -> Cost:
    return Cost(
        model=rate.model,
        attack=rate.attack,
        technique=rate.technique,
        n_trials=n_trials,
        n_queries=n_queries,
        n_prompt_tokens=n_prompt_tokens,
        n_tokens=n_tokens,
        n_broke=rate.n_broke,
        queries_per_breach=per_breach(n_queries, rate),
        tokens_per_breach=per_breach(n_prompt_tokens + n_tokens, rate)
        if n_prompt_tokens + n_tokens
        else Estimate(None, None, None, 0, "no token was counted: the engine, or the import, counts none"),
        n_attacker_queries=n_attacker_queries,
        n_attacker_tokens=n_attacker_tokens,
        attacker_queries_per_breach=per_breach(n_attacker_queries, rate) if n_attacker_queries else None,
    )
