"""Breaches that no probe asked for: a secret or a call where the probe asked for something else.

Promises: they are in no breach rate. A trial with two such breaches of one check counts once. Rows without a
breach are kept, so that models can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import ModelName, Section, TextTable
from heredity.study.estimates import ALL
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.outcomes import is_answered
from heredity.study.wording import interval, names, percent, plural

NAME, ORDER = "unprompted", 1
_Kind = Literal["breach", "benign"]
_KINDS: tuple[_Kind, ...] = ("breach", "benign")
_CLAIM = (
    "A check of the application found these in trials whose probe asked for something else. They are in "
    "no breach rate. On a benign twin nobody asked for any harm at all."
)


class UnpromptedRate(Record, frozen=True):
    """Breaches that no probe asked for, found by one kind of check, over one kind of probe of a model.

    `n_broke` counts trials with at least one. The estimate is over all answered trials of that kind.
    """

    model: str
    kind: Literal["breach", "benign"]
    check: str
    n_broke: int
    estimate: Estimate


Row = UnpromptedRate


def compute(evidence: StudyEvidence) -> Iterator[UnpromptedRate]:
    """By model, kind of probe and check, wherever any model of the study has such a breach.

    A baseline's trials count too.
    """
    outcomes, breaches = evidence.outcomes, evidence.judged.unprompted
    plan = outcomes.plan
    checks = sorted({each.check for each in breaches})
    with_breach = {check: np.zeros(plan.n_trials, np.bool_) for check in checks}
    for each in breaches:
        with_breach[each.check][each.trial] = True
    for m in range(len(plan.models)):
        for kind in _KINDS:
            probes = [i for i, probe in enumerate(plan.probes) if probe.kind == kind]
            for check in checks if probes else ():
                broke = with_breach[check]
                indices = outcomes.indices_of(m, ALL, probes)
                answered = is_answered(outcomes.codes[indices])
                unasked, clusters = broke[indices[answered]], outcomes.clusters_of(ALL, probes, m)[answered]
                estimate = Intervals.over(outcomes, m).rate(unasked, clusters)
                yield UnpromptedRate(outcomes.plan.models[m].id, kind, check, int(unasked.sum()), estimate)


def show(rows: Sequence[UnpromptedRate], study: RecordedStudy) -> Section | None:
    """A table of the rows with a breach, and a detail of the others."""
    if not rows:
        return None
    called, title = names(study.estimates.models), "Breaches that no probe asked for"
    head = ["model", "asked", "check", "trials with such a breach"]
    with_breach, without = (
        [
            [
                ModelName(row.model, called[row.model]),
                "breach probes" if row.kind == "breach" else "benign twins", row.check,
                f"{row.n_broke} of {row.estimate.n}, {percent(row.estimate.value, 1)} "
                f"({interval(row.estimate, 1)})",
            ]
            for row in rows
            if bool(row.n_broke) == has_breach
        ]
        for has_breach in (True, False)
    )  # fmt: skip
    summary = f"{plural(len(without), 'more row')} without such a breach"
    detail = (TextTable("Checks without such a breach", head, without, summary),) if without else ()
    return Section(NAME, title, _CLAIM, (TextTable(title, head, with_breach), *detail))
