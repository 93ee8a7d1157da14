"""Canary answers of a study: judged again by each run that judges, and compared with the recorded verdicts.

Promises: canaries.jsonl has one row for each run in which the judge judged. A judge that drifted is reported,
never swapped or stopped.
Leaves to others: the canaries (redteam/judges/calibration/quality.py), and the warning (headline.py).
"""

from __future__ import annotations

from pathlib import Path

from heredity.core.files import Rows
from heredity.core.records import Outcome
from heredity.redteam import judges
from heredity.redteam.judges.calibration.quality import (
    CanaryVerdicts,
    drifted,
    judge_canaries,
    recorded_verdicts,
)
from heredity.redteam.no_answer import is_stamped
from heredity.study.estimates import JudgeDrift

CANARIES = "canaries.jsonl"


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
    last, then = rows[-1], _calibrated(folder, judge, judged_by, rows[-1].answers)
    source = "calibration"
    if then is None:
        then, source = recorded_verdicts(judge, judged_by), "release"
    if then is None:
        then, source = rows[0], "first run"
    changed = drifted(last, then)
    if source == "first run" and not changed:
        return None
    return JudgeDrift(judge, source, len(last.outcomes), changed)


def _calibrated(folder: Path, judge: str, judged_by: str, answers: str) -> CanaryVerdicts | None:
    outcomes: dict[str, Outcome | None] = {}
    for task in judges.TASKS:
        kept = judges.newest_calibration(folder, judge, judged_by, task)
        if kept is not None and kept.canaries is not None and kept.canaries.answers == answers:
            outcomes |= kept.canaries.outcomes
    return CanaryVerdicts(judge, judged_by, answers, outcomes) if outcomes else None
