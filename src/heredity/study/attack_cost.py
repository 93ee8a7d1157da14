"""What a breach takes: how far several tries come, and how many queries and tokens one costs.

Promises: a curve says nothing beyond the tries that were made; breaches that a check decides and those that a
judge decides stay apart; every query counts, also of a trial that held, was unclear or came to an error.
Leaves to others: the formulas (stats/best_of.py) and the rates themselves (tally.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate
from heredity.stats import best_of
from heredity.study.estimates import SCOPES, Cost, Curve, Rate, Reach, is_part
from heredity.study.outcomes import BROKE, HELD, SKIPPED, UNCLEAR, Asked, Codes, Seen, judged
from heredity.study.plan import Plan

_SCOPES = SCOPES["breach"]


def curves(plan: Plan, outcomes: Codes) -> tuple[Curve, ...]:
    """Success within k tries, by model, attack and scope, where a plan asks several samples.

    An unclear answer is a try that did not break; an error is no try. A study until decided has no curves:
    their intervals would not hold under a stop that hangs on the answers.
    """
    if plan.samples < 2 or plan.is_until_decided:
        return ()
    box = outcomes.reshape(len(plan.models), len(plan.attacks), len(plan.probes), plan.samples)
    behaviours = np.unique([f"{p.technique}\0{p.cluster}" for p in plan.probes], return_inverse=True)[1]
    return tuple(
        Curve(model.id, attack, scope, tuple(_reaches(plan, box[m, a, places], behaviours[places])))
        for m, model in enumerate(plan.models)
        for a, attack in enumerate(plan.attacks)
        for scope in _SCOPES
        if (places := _places(plan, scope))
    )


def _reaches(plan: Plan, codes: Codes, behaviours: NDArray[np.intp]) -> Iterator[Reach]:
    """One point for each k, from codes (probe, sample)."""
    broke = (codes == BROKE).sum(axis=1)
    tries = ((codes >= HELD) & (codes <= UNCLEAR)).sum(axis=1)
    for k in best_of.steps(int(tries.max(initial=0))):
        yield Reach(k, best_of.asr_at(k, broke, tries, behaviours, plan.confidence))


def _places(plan: Plan, scope: str) -> list[int]:
    return [i for i, p in enumerate(plan.probes) if p.kind == "breach" and is_part(p, scope)]


_SUMS = 6  # trials, queries, prompt tokens, answer tokens; queries to the attacker, its tokens


def costs(plan: Plan, folder: Path, seen: Seen, rates: Sequence[Rate]) -> tuple[Cost, ...]:
    """Queries and tokens by model, attack and scope, in one pass over the responses that have a verdict.

    Raises Damaged where a response is not the one that its verdict is on.
    """
    spent = _sums(plan, judged(folder, seen), seen.outcomes)
    found = []
    for rate in rates:
        if rate.technique in _SCOPES and rate.measure == "breach" and rate.attack in plan.attacks:
            m = next(i for i, model in enumerate(plan.models) if model.id == rate.model)
            cell = spent[m, plan.attacks.index(rate.attack), _SCOPES.index(rate.technique)]
            if cell[0]:
                found.append(_cost(rate, *(int(x) for x in cell)))
    return tuple(found)


def _sums(plan: Plan, rows: Iterable[Asked], outcomes: Codes) -> NDArray[np.int64]:
    """What _SUMS names (model, attack, scope, _SUMS), of trials that have a verdict and were asked."""
    shape = (len(plan.models), len(plan.attacks), len(_SCOPES), _SUMS)
    sums = [0] * int(np.prod(shape))
    scopes = [_scope(plan, i) for i in range(len(plan.probes))]
    n_probes, samples, codes = len(plan.probes), plan.samples, memoryview(outcomes.data)
    for row in rows:
        rest, place = divmod(row.index // samples, n_probes)
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
        queries_per_breach=_per_breach(n_queries, rate),
        tokens_per_breach=_per_breach(n_prompt_tokens + n_tokens, rate)
        if n_prompt_tokens + n_tokens
        else Estimate(None, None, None, 0, "no token was counted: the engine, or the import, counts none"),
        n_attacker_queries=n_attacker_queries,
        n_attacker_tokens=n_attacker_tokens,
        attacker_queries_per_breach=_per_breach(n_attacker_queries, rate) if n_attacker_queries else None,
    )


def _per_breach(total: int, rate: Rate) -> Estimate:
    """All that was spent over the breaches it bought; the bounds are those of the rate, turned over.

    Without a breach there is no value and no upper bound, but a lower one: so much at least.
    """
    found = rate.estimate
    n_decided = rate.n_held + rate.n_broke
    each = total / n_decided if n_decided else 0.0

    def over(share: float | None) -> float | None:
        return each / share if share else None

    return Estimate(
        total / rate.n_broke if rate.n_broke else None,
        over(found.high),
        over(found.low),
        n_decided,
        f"total over {rate.n_broke} breaches; bounds from the rate: {found.method}",
        n_clusters=found.n_clusters,
        is_at_floor=found.is_at_floor,
    )
