"""The rate by each member of a panel of judges, and the agreement of every two.

Promises: agreement is over the answers that both decided. Agreement is not accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.stats import paired as stats
from heredity.stats.intervals import CONFIDENCE
from heredity.study.estimates import ALL, MEASURES, Measure, Table2x2
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Codes, Outcomes, is_decided
from heredity.study.wording import names, share_words

NAME, ORDER = "panel", 95
_WORDS = {"breach": "breach, judged", "over_refusal": "over-refusal"}
_CLAIM = (
    "The rate by each member, and the agreement of each two beyond chance (Cohen's kappa). Agreement is "
    "not accuracy: members that err alike agree. If they differ, the verdict is unclear."
)


class PanelRow(Record, frozen=True):
    """How often a model broke, or refused, by one member of a panel; or the agreement of two members.

    other: not "": another member; `estimate` is then kappa over the answers of every model that both decided,
    `table` counts their breaches, and `model` is "".
    """

    judge: str
    other: str
    measure: Measure
    model: str
    estimate: Estimate
    table: Table2x2 | None = None


Row = PanelRow


def compute(evidence: StudyEvidence) -> Iterator[PanelRow]:
    """By measure and member the rates, then the pairs; nothing unless a panel judged."""
    outcomes, members = evidence.outcomes, evidence.judged.members
    if not any(name.startswith("panel:") for name in evidence.judged.judges):
        return
    for measure in MEASURES:
        where = outcomes.twin_trials if measure == "over_refusal" else ~outcomes.twin_trials
        codes = {name: each * where for name, each in members.items()}
        for name, each in codes.items():
            yield from _rates(outcomes, name, each, measure)
    for measure in MEASURES:
        where = outcomes.twin_trials if measure == "over_refusal" else ~outcomes.twin_trials
        for a, b in combinations(members, 2):
            first = members[a] * where
            second = members[b] * where
            both = is_decided(first) & is_decided(second)
            table = stats.tabulate(first[both] == BROKE, second[both] == BROKE)
            # Stored studies have it at 95 %, whatever the plan's confidence.
            confidence = CONFIDENCE if outcomes.plan.analysis is None else outcomes.plan.confidence
            yield PanelRow(a, b, measure, "", Intervals(confidence).kappa(table), Table2x2(*table))


def _rates(outcomes: Outcomes, member: str, codes: Codes, measure: Measure) -> Iterator[PanelRow]:
    plan = outcomes.plan
    clusters = outcomes.clusters_of(ALL, range(len(plan.probes)))
    for m, (model, each) in enumerate(zip(plan.models, codes.reshape(len(plan.models), -1), strict=True)):
        intervals = Intervals.over(outcomes, m)
        broke, decided = each == BROKE, each != 0
        if plan.analysis is None:  # as stored studies have it: every trial by itself
            rate = intervals.rate_of_counts(int(np.count_nonzero(broke)), int(np.count_nonzero(decided)))
        else:
            rate = intervals.rate(broke[decided], clusters[decided])
        yield PanelRow(member, "", measure, model.id, rate)


def show(rows: Sequence[PanelRow], study: RecordedStudy) -> Section | None:
    """A table of the members, then of every two."""
    called, title = names(study.estimates.models), "The panel's members"
    cells: list[list[Cell]] = [
        [
            f"{row.judge} and {row.other}" if row.other else row.judge, _WORDS[row.measure],
            "all" if row.other else ModelName(row.model, called[row.model]),
            _kappa(row.estimate) if row.other else share_words(row.estimate),
        ]
        for row in rows
        if row.estimate.n
    ]  # fmt: skip
    return (
        Section(NAME, title, _CLAIM, (TextTable(title, ["judges", "rate", "model", "found"], cells),))
        if cells
        else None
    )


def _kappa(kappa: Estimate) -> str:
    if kappa.value is None or kappa.low is None or kappa.high is None:
        return f"no kappa, n {kappa.n}: {kappa.method}"
    return f"kappa {kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}], n {kappa.n}"
