"""Rates and differences with intervals for other attacks like these, if a plan has several attacks.

Promises: nothing for a plan that declares no analysis, or of a study until decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate, Record
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.stats.paired import crossed_difference, crossed_rate
from heredity.study.estimates import ALL
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.findings.samples import is_fixed
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes
from heredity.study.wording import names, p_words, points, points_interval, scope_name, share_words

NAME, ORDER = "other_attacks", 70
_SEED = 0
_CLAIM = (
    "These intervals are for other behaviours and other attacks like these. They are wide if attacks are few."
)


class OtherAttacks(Record, frozen=True):
    """A model's rate in one scope, with an interval for other behaviours and other attacks like these.

    against: not "": the id of another model; `estimate` is the rate of `model` minus its rate, with a t test.
    """

    model: str
    against: str
    technique: str
    n_attacks: int
    estimate: Estimate
    p_value: float | None = None


Row = OtherAttacks


def compute(evidence: StudyEvidence) -> Iterator[OtherAttacks]:
    """By scope and model the rate, then by scope and pair the difference, which is exploratory."""
    yield from _rates(evidence.outcomes)
    yield from _differences(evidence.outcomes)


def _rates(outcomes: Outcomes) -> Iterator[OtherAttacks]:
    for scope, probes in _crossed(outcomes):
        columns = _attacks_of(outcomes, probes)
        for m, model in enumerate(outcomes.plan.models):
            codes = outcomes.scored_of(m, ALL, probes)
            counted = outcomes.in_rate(codes)
            rows = outcomes.clusters_of(ALL, probes, m)
            trials = codes[counted] == BROKE, rows[counted], columns[counted]
            if trials[0].size:
                rng = np.random.default_rng(_SEED)
                rate = crossed_rate(*trials, rng, Intervals.over(outcomes, m).confidence)
                yield OtherAttacks(model.id, "", scope, len(np.unique(trials[2])), rate)


def _differences(outcomes: Outcomes) -> Iterator[OtherAttacks]:
    ids = [model.id for model in outcomes.plan.models]
    for scope, probes in _crossed(outcomes):
        columns = _attacks_of(outcomes, probes)
        for a, b in outcomes.plan.pairs:
            first, second = (outcomes.scored_of(m, ALL, probes) for m in (a, b))
            counted = outcomes.in_rate(first) & outcomes.in_rate(second)
            if counted.any():
                rows = outcomes.clusters_of(ALL, probes, a, b)
                trials = first[counted] == BROKE, second[counted] == BROKE, rows[counted], columns[counted]
                rng = np.random.default_rng(_SEED)
                intervals = Intervals.over(outcomes, a, b)
                crossed = crossed_difference(*trials, rng, intervals.confidence)
                n_attacks, p = len(np.unique(trials[3])), intervals.overall(crossed.p_value)
                yield OtherAttacks(ids[b], ids[a], scope, n_attacks, crossed.difference, p)


def _crossed(outcomes: Outcomes) -> Iterator[tuple[str, list[int]]]:
    if is_fixed(outcomes.plan) and len(outcomes.plan.attacks) > 1:
        for scope in outcomes.breach_scopes:
            yield scope, outcomes.probes(scope, "breach")


def _attacks_of(outcomes: Outcomes, probes: list[int]) -> NDArray[np.intp]:
    """The place of the attack of each trial that `codes_of` returns."""
    return np.repeat(np.arange(len(outcomes.plan.attacks)), len(probes) * outcomes.plan.samples)


def show(rows: Sequence[OtherAttacks], study: RecordedStudy) -> Section | None:
    """A table of rates, and one of differences."""
    if not rows:
        return None
    estimates, title = study.estimates, "For other attacks like these"
    called = names(estimates.models)
    rates: list[list[Cell]] = [
        [
            ModelName(row.model, called[row.model]), scope_name(estimates, row.technique), f"{row.n_attacks}",
            row.estimate.note if row.estimate.value is None else share_words(row.estimate),
        ]
        for row in rows
        if not row.against
    ]  # fmt: skip
    differences = [
        [
            called[row.model], called[row.against], scope_name(estimates, row.technique),
            row.estimate.note
            if row.estimate.value is None
            else f"{points(row.estimate.value)} ({points_interval(row.estimate)})",
            p_words(row.p_value),
        ]
        for row in rows
        if row.against
    ]  # fmt: skip
    head = ["model", "against", "rate", "difference", "p"]
    tables = [TextTable(title, ["model", "rate", "attacks", "found"], rates)]
    if differences:
        tables.append(TextTable(f"{title}: differences", head, differences, "Differences of two models"))
    return Section(NAME, title, _CLAIM, tuple(tables))
