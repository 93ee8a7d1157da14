"""The rows and the section of one finding of a study."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from heredity.core.records import Record
from heredity.core.sections import Section
from heredity.study.estimates import Estimates, Rate
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence, sections
from heredity.study.outcomes import Codes, JudgedOutcomes, Outcomes, UnpromptedBreach
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse

Row = TypeVar("Row", bound=Record)


def rows_of(
    compute: Callable[[StudyEvidence], Iterable[Row]],
    outcomes: Outcomes,
    responses: Iterable[RawResponse] = (),
    rates: Sequence[Rate] = (),
    members: dict[str, Codes] | None = None,
    unprompted: tuple[UnpromptedBreach, ...] = (),
) -> list[Row]:
    """The rows that a finding computes. members: of a panel, by name; unprompted: of the verdicts."""
    judge = {"panel:one+other": ""} if members else {}
    judged = JudgedOutcomes(outcomes, outcomes.codes, members or {}, judge, None, array("Q"), unprompted)
    evidence = StudyEvidence(Path(), judged, rates)
    rows = compute(evidence)
    evidence.read(responses)
    return list(rows)


def section(plan: Plan, estimates: Estimates, name: str) -> Section | None:
    """The section named `name`; None if the study has none."""
    return next((each for each in sections(RecordedStudy(plan, estimates)) if each.name == name), None)


def with_rows(estimates: Estimates, finding: str, *rows: Record) -> Estimates:
    """The estimates with these rows of a finding."""
    findings = estimates.findings | {finding: [msgspec.to_builtins(row) for row in rows]}
    return msgspec.structs.replace(estimates, findings=findings)
