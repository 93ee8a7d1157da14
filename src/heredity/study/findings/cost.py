"""The cost of a breach: queries, tokens and money per breach, by attack and model.

Promises: breaches that a check decides and those that a judge decides stay apart. Every query counts, also
of a trial that held, was unclear or failed. Without a breach a cost is a lower bound ("at least"), never 0.
Money is shown only if all runs of a model had the same price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.study.estimates import SCOPES, Estimates, Rate
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals, per_breach
from heredity.study.outcomes import BROKE, SKIPPED, Outcomes, is_answered, is_part
from heredity.study.storage import RawResponse
from heredity.study.wording import attack_name, names, scope_title

NAME, ORDER = "cost", 60
_SCOPES = SCOPES["breach"]
_SUMS = 6  # trials, queries, prompt tokens, answer tokens; attacker queries, attacker tokens
_SMALL = 20  # counts per breach below it are shown with one decimal place
_CLAIM = (
    "All requests to a model, divided by its breaches. The bounds are the inverse of those of the breach "
    "rate. Tokens are those of prompts and answers. Money is for these tokens only, at the given price, "
    "as if no cache had saved any."
)


class Cost(Record, frozen=True):
    """The queries and tokens of one attack on one model, over breach probes; `technique` is a scope.

    `n_queries` counts requests to the model, those that a tool's result called for among them, of all
    `n_trials`: held, broken, unclear and errors. The estimates divide by `n_broke`.
    Without a breach they have a lower bound only.
    """

    model: str
    attack: str
    technique: str
    n_trials: int
    n_queries: int
    n_prompt_tokens: int
    n_tokens: int
    n_broke: int
    queries_per_breach: Estimate
    tokens_per_breach: Estimate
    n_attacker_queries: int = 0  # questions to the attacker model, beside those to this one
    n_attacker_tokens: int = 0  # of these prompts and answers together
    attacker_queries_per_breach: Estimate | None = None  # None: the attack asks no attacker


Row = Cost


def compute(evidence: StudyEvidence) -> Iterator[Cost]:
    """By model, attack and scope, over the responses that have a verdict."""
    sums = _CostSums(evidence.outcomes)
    evidence.watch(sums.see, sums.scopes)
    return _rows(evidence.outcomes, sums, evidence.rates)


def _rows(outcomes: Outcomes, sums: _CostSums, rates: Sequence[Rate]) -> Iterator[Cost]:
    plan, by_cell = outcomes.plan, sums.array
    places = {model.id: m for m, model in enumerate(plan.models)}
    for rate in rates:
        if rate.technique in _SCOPES and rate.measure == "breach" and rate.attack in plan.attacks:
            attack, scope = plan.attacks.index(rate.attack), _SCOPES.index(rate.technique)
            m = places[rate.model]
            cell = [int(x) for x in by_cell[m, attack, scope]]
            if cell[0]:
                yield _cost(_of_breaches(outcomes, m, rate), *cell)


def _of_breaches(outcomes: Outcomes, model: int, rate: Rate) -> Rate:
    """The rate of breaches, also if the plan's endpoint counts all answers that do not refuse."""
    if not rate.counts_refusals:
        return rate
    probes = outcomes.probes(rate.technique, rate.measure)
    codes = outcomes.codes_of(model, rate.attack, probes)
    answered = is_answered(codes)
    clusters = outcomes.clusters_of(rate.attack, probes, model)[answered]
    estimate = Intervals.over(outcomes, model).rate(codes[answered] == BROKE, clusters)
    return msgspec.structs.replace(rate, estimate=estimate, n_not_refused=msgspec.UNSET)


class _CostSums:
    """(model, attack, scope, _SUMS) over the trials that have a verdict and were asked."""

    def __init__(self, outcomes: Outcomes) -> None:
        plan, self._samples = outcomes.plan, outcomes.plan.samples
        self._codes = memoryview(outcomes.codes.data)
        self._shape = (len(plan.models), len(plan.attacks), len(_SCOPES), _SUMS)
        self._sums = [0] * int(np.prod(self._shape))
        breaches = [place for place, probe in enumerate(plan.probes) if probe.kind == "breach"]
        self.scopes = {  # by place; a baseline has none
            place: i
            for place in breaches
            for i, scope in enumerate(_SCOPES)
            if is_part(plan.probes[place], scope)
        }
        cells = (divmod(cell, len(plan.probes)) for cell in range(plan.n_trials // plan.samples))
        self._at = [_SUMS * (rest * len(_SCOPES) + self.scopes.get(place, 0)) for rest, place in cells]

    @property
    def array(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.array(self._sums, np.int64).reshape(self._shape)

    def see(self, row: RawResponse) -> None:
        if self._codes[row.index] in (0, SKIPPED):
            return
        at, sums = self._at[row.index // self._samples], self._sums
        sums[at] += 1
        sums[at + 1] += len(row.exchanges)
        for exchange in row.exchanges:
            sums[at + 2] += exchange.n_prompt_tokens
            sums[at + 3] += exchange.n_tokens
        sums[at + 4] += len(row.consulted)
        for question in row.consulted:
            sums[at + 5] += question.n_prompt_tokens + question.n_tokens


def _cost(
    rate: Rate, n_trials: int, n_queries: int, n_prompt_tokens: int, n_tokens: int,
    n_attacker_queries: int, n_attacker_tokens: int,
) -> Cost:  # fmt: skip
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


def show(rows: Sequence[Cost], study: RecordedStudy) -> Section | None:
    """A table of attack by model: judge-free before judged, attacks in the study's order."""
    if not rows:
        return None
    estimates, title = study.estimates, "What a breach takes"
    called = names(estimates.models)
    cells = {(row.technique, row.attack, row.model): row for row in rows}
    lines: list[list[Cell]] = [
        [
            scope_title(scope), attack_name(attack, estimates.attacks),
            *(_cell(cells.get((scope, attack, model)), estimates) for model in called),
        ]
        for scope in _SCOPES
        for attack in estimates.attacks
        if any((scope, attack, model) in cells for model in called)
    ]  # fmt: skip
    head: list[str | ModelName] = ["breaches", "attack"]
    head += [ModelName(*each) for each in called.items()]
    return Section(NAME, title, _CLAIM, (TextTable(title, head, lines),))


def _cell(cost: Cost | None, estimates: Estimates) -> str:
    if cost is None:
        return "not asked"
    attacker = f", {cost.n_attacker_queries:,} to the attacker" if cost.n_attacker_queries else ""
    counts = f"{cost.n_queries:,} queries{attacker}, {cost.n_broke} of {cost.queries_per_breach.n} broke"
    return "\n".join([*cost_lines(cost, estimates), counts])


def per_breach_words(estimate: Estimate, count: Callable[[float], str] | None = None) -> str:
    """`12.5 (9.8 to 17.1)`; without a breach `none; at least 40`."""
    count = count or _count
    if estimate.value is None and not estimate.n:
        return "unknown"
    if estimate.value is None:
        return "none" if estimate.low is None else f"none; at least {count(estimate.low)}"
    high = "no bound" if estimate.high is None else count(estimate.high)
    return f"{count(estimate.value)} ({count(estimate.low or 0.0)} to {high})"


def cost_lines(cost: Cost, estimates: Estimates) -> list[str]:
    """The cost of one breach, one line each: queries, tokens, attacker queries and money if known."""
    costs = [
        f"{per_breach_words(cost.queries_per_breach)} queries",
        f"{per_breach_words(cost.tokens_per_breach)} tokens",
    ]
    if cost.attacker_queries_per_breach is not None:
        costs.append(f"{per_breach_words(cost.attacker_queries_per_breach)} queries to the attacker")
    if (money := _money(cost, estimates)) is not None:
        costs.append(f"{per_breach_words(money, _amount)} in money")
    return costs


def _money(cost: Cost, estimates: Estimates) -> Estimate | None:
    """The price of the tokens per breach; None if the model has no price.

    Prompt tokens count at full price even if they were cached, because the next user pays that.
    """
    prices = estimates.circumstances.accounts.get(cost.model, {}).get("price", [])
    tokens = cost.n_prompt_tokens + cost.n_tokens
    if len(prices) != 1 or not tokens:
        return None
    prompt, answer = map(float, str(prices[0]).split(","))
    each = (cost.n_prompt_tokens * prompt + cost.n_tokens * answer) / 1e6 / tokens
    of = cost.tokens_per_breach
    value, low, high = (None if x is None else x * each for x in (of.value, of.low, of.high))
    return msgspec.structs.replace(of, value=value, low=low, high=high)


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _count(value: float) -> str:
    return f"{value:.1f}" if value < _SMALL else f"{value:,.0f}"
