"""How a study departed from the analysis that its plan declared: each departure by code and in words.

Promises: the same folder gives the same deviations. A plan that declared no analysis has
none to depart from, but its seal must be that of its runs.
Leaves to others: the declared analysis (spec.py), and the numbers (aggregate.py).

A folder notes in events.jsonl what no other file shows: verdicts that were given again, and estimates that
were read before the last answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from heredity.core.files import Rows, read_lines
from heredity.core.records import ROW_SCHEMA, SCHEMA, Record
from heredity.core.sanitize import plural
from heredity.study.estimates import Deviation, Estimates, ModelPair
from heredity.study.outcomes import n_in_scope
from heredity.study.plan import Analysis, Plan, PlanFile, plan_seal
from heredity.study.storage import ERRORS, RESPONSES, RunRecord, run_records

EVENTS = "events.jsonl"


class StudyEvent(Record, frozen=True):
    """A row of events.jsonl.

    judged_again  `n` verdicts of `judge` were given again, because it is another one or another version now
    estimated     estimates were computed when `n` trials were answered, and others were still to be asked
    """

    kind: Literal["judged_again", "estimated"]
    at: str  # ISO 8601, UTC
    n: int
    judge: str = ""
    schema: int = SCHEMA


class _Answer(msgspec.Struct):
    """The model of a row of responses.jsonl or errors.jsonl."""

    model: str
    schema: int = ROW_SCHEMA


def note_event(folder: Path, kind: Literal["judged_again", "estimated"], n: int, judge: str = "") -> None:
    """Add a row to events.jsonl."""
    with Rows(folder / EVENTS, StudyEvent) as rows:
        rows.append(StudyEvent(kind, datetime.now(UTC).isoformat(timespec="seconds"), n, judge))


def deviations(
    plan: Plan, folder: Path, found: Estimates, saved: PlanFile | None, n_judged: Sequence[int]
) -> tuple[Deviation, ...]:
    """The deviations of the study in `folder`, whose estimates are `found`.

    A plan without an analysis has only those of its seal: its analysis may have been removed.

    saved:    its plan.json, if there is one
    n_judged: the verdicts of each model, in the plan's order
    """
    declared, runs = plan.analysis, list(run_records(folder))
    answers = dict(zip((model.id for model in plan.models), n_judged, strict=True))
    of_plan = () if saved is None else tuple(_of_plan(saved, found, runs, answers))
    if declared is None:
        return of_plan
    events = list(Rows(folder / EVENTS, StudyEvent))
    return (
        *_of_time(found, runs, saved),
        *of_plan,
        *_of_removed(folder, found, runs, answers),
        *_of_answers(folder, found, runs),
        *_of_attacks(plan, found),
        *_of_judges(declared, found, events),
        *_of_comparisons(declared, found),
        *_of_early_estimates(found, events),
    )


def _of_time(found: Estimates, runs: list[RunRecord], saved: PlanFile | None) -> Iterator[Deviation]:
    """Answers that are older than the plan."""
    at = None if saved is None else saved.at
    if found.is_recorded:
        yield Deviation("recorded-before", "The answers were recorded before the plan was made.")
    elif at is not None and any(run.at < at for run in runs):
        yield Deviation("answered-before", "Answers are older than the plan.")


def _of_plan(
    saved: PlanFile, found: Estimates, runs: list[RunRecord], answers: Mapping[str, int]
) -> Iterator[Deviation]:
    """A plan.json that is another than the runs sealed, or that answers have no seal of."""
    seal = plan_seal(saved)
    if any(run.plan_seal not in ("", seal) for run in runs):
        yield Deviation(
            "plan-edited",
            "plan.json was edited after the first answer: the plan (such as its margin, endpoint or levels), "
            "its time or its forecast.",
        )
    # Only releases before the seal wrote a plan with none of these. An import asks nothing.
    is_old = all(each is None for each in (saved.at, saved.forecast, saved.plan.analysis))
    if is_old or found.is_recorded:
        return
    unsealed = {run.model for run in runs if not run.plan_seal}
    sealed = {run.model for run in runs} - unsealed
    if n := sum(n > 0 and model not in sealed for model, n in answers.items()):
        yield Deviation(
            "plan-unsealed",
            f"Answers of {plural(n, 'model')} are of runs without a seal of plan.json: no edit would show.",
        )


def _of_removed(
    folder: Path, found: Estimates, runs: list[RunRecord], answers: Mapping[str, int]
) -> Iterator[Deviation]:
    """Answers that the runs counted, and that are in no file. A killed run counted none of its own."""
    if found.is_recorded:
        return
    counted: Counter[str] = Counter()
    for run in runs:
        counted[run.model] += run.n_asked
    kept = Counter(answers)
    if any(n > kept[model] for model, n in counted.items()):  # answers without a verdict are kept, too
        files = (folder / RESPONSES, folder / ERRORS)
        kept = Counter(row.model for path in files for row in Rows(path, _Answer))
    if n := sum((counted - kept).values()):
        yield Deviation(
            "answers-removed",
            f"{plural(n, 'answer')} that a run counted cannot be found in responses.jsonl or errors.jsonl. "
            "Rows were removed, and their trials may have been asked again.",
        )


def _of_answers(folder: Path, found: Estimates, runs: list[RunRecord]) -> Iterator[Deviation]:
    """Answers that were reused, asked again, or are missing."""
    if n := found.circumstances.n_cached:
        yield Deviation(
            "answers-reused",
            f"{plural(n, 'trial')} took an answer that an earlier study had stored. It may have been known "
            "when the plan was written.",
        )
    if n := sum(1 for _ in read_lines(folder / ERRORS)):
        yield Deviation("errors-retried", f"The study asked {plural(n, 'trial')} again after an error.")
    if found.n_errors:
        yield Deviation("trials-failed", f"No rate counts {plural(found.n_errors, 'failed trial')}.")
    if found.n_missing > 0:
        yield Deviation("trials-missing", f"The study still lacks {plural(found.n_missing, 'trial')}.")
    if len(versions := sorted({v for run in runs if (v := run.versions.get("heredity"))})) > 1:
        yield Deviation("version-changed", f"Several versions of heredity asked: {', '.join(versions)}.")


def _of_attacks(plan: Plan, found: Estimates) -> Iterator[Deviation]:
    """Trials that were not asked, beyond those of an attack that the plan has for other techniques only."""
    if (n := found.n_skipped - (plan.n_trials - n_in_scope(plan))) > 0:
        why = "because their model does not support the attack"
        yield Deviation("trials-skipped", f"The study did not ask {plural(n, 'trial')}, {why}.")


def _of_judges(declared: Analysis, found: Estimates, events: list[StudyEvent]) -> Iterator[Deviation]:
    if found.judge and found.judge != declared.judge:
        yield Deviation(
            "another-judge", f"The plan declared the judge {declared.judge}, and {found.judge} decided."
        )
    again: dict[str, int] = {}
    for event in events:
        if event.kind == "judged_again":
            again[event.judge] = again.get(event.judge, 0) + event.n
    for judge, n in sorted(again.items()):
        by = "A later version of the checks" if judge == "checks" else f"Another judge or version of {judge}"
        yield Deviation("judged-again", f"{by} gave {plural(n, 'verdict')} again.")


def _of_comparisons(declared: Analysis, found: Estimates) -> Iterator[Deviation]:
    """Families of another size than was declared: Holm corrected for fewer comparisons, or for more."""
    by_kind: dict[str, Sequence[ModelPair]] = {
        "pairs": found.pairs,
        "edges": [edge.compared for edge in found.edges],
        "seeds": [group.inherited.compared for group in found.seeds],
    }
    for family in declared.families:
        rows = by_kind[family.between]
        n = sum(row.measure == family.measure and row.p_holm is not None for row in rows)
        if n != family.n:
            what = f"{family.between} by {family.measure.replace('_', '-')}"
            yield Deviation(
                "family-differs",
                f"Holm's correction ran over {plural(n, 'comparison')} of {what}; declared were {family.n}.",
            )


def _of_early_estimates(found: Estimates, events: list[StudyEvent]) -> Iterator[Deviation]:
    """Estimates that were read before answers that came later, in a study that declared no such analysis."""
    early = [event.n for event in events if event.kind == "estimated" and event.n < found.n_asked]
    if early and found.sequential is None:
        times = "once" if len(early) == 1 else f"{len(early)} times"
        yield Deviation(
            "extended",
            f"Estimates were computed {times} before the last answers, "
            f"first after {plural(early[0], 'trial')}.",
        )
