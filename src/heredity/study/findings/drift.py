"""Drift of the judge: canary answers, judged again by each run that judges, against recorded verdicts.

Promises: canaries.jsonl has one row for each run in which the judge judged. A judge that drifted is reported,
never swapped or stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from heredity.core.files import Rows
from heredity.core.records import Outcome, Record
from heredity.core.sanitize import label, plural
from heredity.core.sections import Section, TextTable
from heredity.redteam import judges
from heredity.redteam.judges.calibration.quality import (
    CHECKS,
    TASKS,
    CanaryVerdicts,
    drifted,
    judge_canaries,
    newest_calibration,
    recorded_verdicts,
)
from heredity.redteam.no_answer import is_stamped
from heredity.study.estimates import Estimates
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence

NAME, ORDER = "drift", 96
CANARIES = "canaries.jsonl"


class JudgeDrift(Record, frozen=True):
    """The judge's verdicts on the canary answers, against recorded ones; `changed` has the ids that differ.

    `source` of the record: the user's "calibration", the package's "release" or the study's "first run".
    """

    judge: str
    source: str
    n: int
    changed: tuple[str, ...]


Row = JudgeDrift


def judge_again(folder: Path, judge: judges.Judge) -> None:
    """Judge the canaries and add a row. Hold the folder's lock."""
    row = judge_canaries(judge)
    with Rows(folder / CANARIES, CanaryVerdicts) as rows:
        rows.append(row)


def find_drift(folder: Path, judge: str, judged_by: str) -> JudgeDrift | None:
    """The canaries whose verdict differs from the recorded one; None if there is nothing to compare.

    The record is that of the user's calibration of this judge, in the folder, or else that of the package.
    Without either it is the first run of this study, and only a changed verdict is reported.
    """
    rows = [row for row in Rows(folder / CANARIES, CanaryVerdicts) if is_stamped(judged_by, row.judged_by)]
    if not rows:
        return None
    answers = rows[-1].answers
    outcomes: dict[str, Outcome | None] = {}
    for task in TASKS:
        kept = newest_calibration(folder, judge, judged_by, task)
        if kept is not None and kept.canaries is not None and kept.canaries.answers == answers:
            outcomes |= kept.canaries.outcomes
    last, then = rows[-1], (CanaryVerdicts(judge, judged_by, answers, outcomes) if outcomes else None)
    source = "calibration"
    if then is None:
        then, source = recorded_verdicts(judge, judged_by), "release"
    if then is None:
        then, source = rows[0], "first run"
    changed = drifted(last, then)
    if source == "first run" and not changed:
        return None
    return JudgeDrift(judge, source, len(last.outcomes), changed)


def compute(evidence: StudyEvidence) -> Iterator[JudgeDrift]:
    """The judge against its record; in plans that declared no analysis only if it drifted."""
    for judge, judged_by in evidence.judged.judges.items():
        row = find_drift(evidence.folder, judge, judged_by) if judge != CHECKS else None
        if row is not None and (evidence.plan.analysis is not None or row.changed):
            yield row


def show(rows: Sequence[JudgeDrift], study: RecordedStudy) -> Section | None:  # noqa: ARG001
    """A folded row: the canary answers, and those with another verdict."""
    if not rows:
        return None
    (row,) = rows
    summary = (
        f"{plural(row.n, 'canary answer')} judged again, and compared with the {row.source}: "
        f"{plural(len(row.changed), 'verdict')} changed"
    )
    cells = [[label(row.judge), row.source, str(row.n), ", ".join(map(label, row.changed)) or "none"]]
    table = TextTable("Canary answers", ["judge", "recorded in", "canary answers", "changed"], cells, summary)
    return Section(NAME, "The judge against its record", "", (table,))


def drift_warnings(estimates: Estimates) -> Iterator[str]:
    """A sentence on a judge that gives other verdicts on the canary answers than were recorded."""
    for row in estimates.rows(NAME, Row):
        if row.changed:
            named = ", ".join(row.changed[:3]) + (", ..." if len(row.changed) > 3 else "")
            yield (
                f"The judge {label(row.judge)} drifted: {len(row.changed)} of {row.n} canary answers have "
                f"another verdict than in its {row.source} ({named}). Its measured errors may not hold: "
                "calibrate it again."
            )
