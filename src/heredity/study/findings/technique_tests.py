"""Whether the difference of two models depends on the technique.

Promises: not for a study that stops early. The same study gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from heredity.core.records import Record
from heredity.core.sections import Section, TextTable
from heredity.stats.technique_rates import heterogeneity
from heredity.study.estimates import ALL, JUDGE_FREE
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.findings.samples import is_fixed
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE
from heredity.study.wording import names, p_words

NAME, ORDER = "technique_tests", 73
MAX_TRIALS = 100_000  # of a pair: beyond, a report would take minutes


class TechniqueTest(Record, frozen=True):
    """Whether the difference of two models depends on the technique; None if nothing differs."""

    a: str
    b: str
    scope: str
    q: float | None
    p_value: float | None
    test: str


Row = TechniqueTest


def compute(evidence: StudyEvidence) -> Iterator[TechniqueTest]:
    """By pair, whether its difference depends on the technique; not for a study until decided."""
    outcomes, plan = evidence.outcomes, evidence.plan
    if not is_fixed(plan):
        return
    scope = next(iter(outcomes.breach_scopes), JUDGE_FREE)
    probes = outcomes.probes(scope, "breach")
    techniques = outcomes.techniques_of(ALL, probes)
    for a, b in plan.pairs:
        first, second = outcomes.scored_of(a, ALL, probes), outcomes.scored_of(b, ALL, probes)
        counted = outcomes.in_rate(first) & outcomes.in_rate(second)
        if not 0 < np.count_nonzero(counted) <= MAX_TRIALS:
            continue
        intervals = Intervals.over(outcomes, a, b)
        tested = heterogeneity(
            first[counted] == BROKE,
            second[counted] == BROKE,
            techniques[counted],
            outcomes.clusters_of(ALL, probes, a, b)[counted],
            np.random.default_rng(0),
            plan.margin,
            1 - intervals.confidence,
        )
        q = None if tested.q is None else float(tested.q)
        p = None if tested.p_value is None else intervals.overall(tested.p_value)
        yield TechniqueTest(plan.models[a].id, plan.models[b].id, scope, q, p, tested.test)


def show(rows: Sequence[TechniqueTest], study: RecordedStudy) -> Section | None:
    """A table of the pairs with a test."""
    called, title = names(study.estimates.models), "Does a difference depend on the technique?"
    cells = [
        [
            called[row.a], called[row.b], "yes" if row.p_value < study.estimates.alpha else "not shown",
            p_words(row.p_value), row.test,
        ]
        for row in rows
        if row.p_value is not None
    ]  # fmt: skip
    head = ["model", "against", "depends", "p", "test"]
    return Section(NAME, title, "", (TextTable(title, head, cells),)) if cells else None
