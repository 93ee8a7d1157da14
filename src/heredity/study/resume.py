"""Resume a study: which trials are still to ask, and which rows of earlier runs still count.

    earlier = read_earlier_runs(folder, grid, meter)
    for index in earlier.still_to_ask(grid.of_model(0)): ...

Only `EarlierRuns.still_to_ask` decides which trials are asked. Look there if a resumed study asks twice, or
too little.

Promises: a trial with a row in responses.jsonl is not asked again. Answers of one model are never mixed from
engines with different arithmetic. A verdict counts only for the response and the judges that it is from.
Leaves to others: the order of the trials (study.py), asking (runner.py), rows (storage.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.files import Rows, read_lines, rewrite
from heredity.core.progress import TrialMeter
from heredity.core.records import ROW_SCHEMA, SCHEMA, Record, Response, Verdict, is_failed, is_out_of_scope
from heredity.core.sanitize import plural
from heredity.redteam.judges import Decider
from heredity.study.estimates import Deviation, Estimates, ModelPair
from heredity.study.outcomes import n_in_scope
from heredity.study.plan import Analysis, Grid, Plan, PlanFile, PlannedModel, TrialSet, plan_seal
from heredity.study.storage import (
    ERRORS,
    RESPONSES,
    RESTORE,
    RUNS,
    VERDICTS,
    Prefixes,
    ResponseDigests,
    RunRecord,
    VerdictRow,
    answered_rows,
    open_responses,
    run_records,
    verdict_rows,
)

EVENTS = "events.jsonl"


# --- deviations --------------------------------------------------------------------------------------
# How a study departed from the analysis that its plan declared: each departure by code and in words.
# Promises: the same folder gives the same deviations. A plan that declared no analysis has none to depart
# from, but its seal must be that of its runs. A folder notes in events.jsonl what no other file shows:
# verdicts that were given again, and estimates that were read before the last answer.
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
    plan: Plan, folder: Path, estimates: Estimates, saved: PlanFile | None, n_judged: Sequence[int]
) -> tuple[Deviation, ...]:
    """The deviations of the study in `folder`, whose estimates are `found`.

    A plan without an analysis has only those of its seal: its analysis may have been removed.

    saved:    its plan.json, if there is one
    n_judged: the verdicts of each model, in the plan's order
    """
    declared, runs = plan.analysis, list(run_records(folder))
    answers = dict(zip((model.id for model in plan.models), n_judged, strict=True))
    of_plan = () if saved is None else tuple(_of_plan(saved, estimates, runs, answers))
    if declared is None:
        return of_plan
    events = list(Rows(folder / EVENTS, StudyEvent))
    return (
        *_of_time(estimates, runs, saved),
        *of_plan,
        *_of_removed(folder, estimates, runs, answers),
        *_of_answers(folder, estimates, runs),
        *_of_attacks(plan, estimates),
        *_of_judges(declared, estimates, events),
        *_of_comparisons(declared, estimates),
        *_of_early_estimates(estimates, events),
    )


def _of_time(estimates: Estimates, runs: list[RunRecord], saved: PlanFile | None) -> Iterator[Deviation]:
    """Answers that are older than the plan."""
    at = None if saved is None else saved.at
    if estimates.is_recorded:
        yield Deviation("recorded-before", "The answers were recorded before the plan was made.")
    elif at is not None and any(run.at < at for run in runs):
        yield Deviation("answered-before", "Answers are older than the plan.")


def _of_plan(
    saved: PlanFile, estimates: Estimates, runs: list[RunRecord], answers: Mapping[str, int]
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
    if is_old or estimates.is_recorded:
        return
    unsealed = {run.model for run in runs if not run.plan_seal}
    sealed = {run.model for run in runs} - unsealed
    if n := sum(n > 0 and model not in sealed for model, n in answers.items()):
        yield Deviation(
            "plan-unsealed",
            f"Answers of {plural(n, 'model')} are of runs without a seal of plan.json: no edit would show.",
        )


def _of_removed(
    folder: Path, estimates: Estimates, runs: list[RunRecord], answers: Mapping[str, int]
) -> Iterator[Deviation]:
    """Answers that the runs counted, and that are in no file. A killed run counted none of its own."""
    if estimates.is_recorded:
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


def _of_answers(folder: Path, estimates: Estimates, runs: list[RunRecord]) -> Iterator[Deviation]:
    """Answers that were reused, asked again, or are missing."""
    if n := estimates.circumstances.n_cached:
        yield Deviation(
            "answers-reused",
            f"{plural(n, 'trial')} took an answer that an earlier study had stored. It may have been known "
            "when the plan was written.",
        )
    if n := sum(1 for _ in read_lines(folder / ERRORS)):
        yield Deviation("errors-retried", f"The study asked {plural(n, 'trial')} again after an error.")
    if estimates.n_errors:
        yield Deviation("trials-failed", f"No rate counts {plural(estimates.n_errors, 'failed trial')}.")
    if estimates.n_missing > 0:
        yield Deviation("trials-missing", f"The study still lacks {plural(estimates.n_missing, 'trial')}.")
    if len(versions := sorted({v for run in runs if (v := run.versions.get("heredity"))})) > 1:
        yield Deviation("version-changed", f"Several versions of heredity asked: {', '.join(versions)}.")


def _of_attacks(plan: Plan, estimates: Estimates) -> Iterator[Deviation]:
    """Trials that were not asked, beyond those of an attack that the plan has for other techniques only."""
    if (n := estimates.n_skipped - (plan.n_trials - n_in_scope(plan))) > 0:
        why = "because their model does not support the attack"
        yield Deviation("trials-skipped", f"The study did not ask {plural(n, 'trial')}, {why}.")


def _of_judges(declared: Analysis, estimates: Estimates, events: list[StudyEvent]) -> Iterator[Deviation]:
    if estimates.judge and estimates.judge != declared.judge:
        yield Deviation(
            "another-judge", f"The plan declared the judge {declared.judge}, and {estimates.judge} decided."
        )
    again: dict[str, int] = {}
    for event in events:
        if event.kind == "judged_again":
            again[event.judge] = again.get(event.judge, 0) + event.n
    for judge, n in sorted(again.items()):
        by = "A later version of the checks" if judge == "checks" else f"Another judge or version of {judge}"
        yield Deviation("judged-again", f"{by} gave {plural(n, 'verdict')} again.")


def _of_comparisons(declared: Analysis, estimates: Estimates) -> Iterator[Deviation]:
    """Families of another size than was declared: Holm corrected for fewer comparisons, or for more."""
    by_kind: dict[str, Sequence[ModelPair]] = {
        "pairs": estimates.pairs,
        "edges": [edge.compared for edge in estimates.edges],
        "seeds": [group.inherited.compared for group in estimates.seeds],
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


def _of_early_estimates(estimates: Estimates, events: list[StudyEvent]) -> Iterator[Deviation]:
    """Estimates that were read before answers that came later, in a study that declared no such analysis."""
    early = [event.n for event in events if event.kind == "estimated" and event.n < estimates.n_asked]
    if early and estimates.sequential is None:
        times = "once" if len(early) == 1 else f"{len(early)} times"
        yield Deviation(
            "extended",
            f"Estimates were computed {times} before the last answers, "
            f"first after {plural(early[0], 'trial')}.",
        )


@dataclass(frozen=True)
class EarlierRuns:
    """The state of a study's folder after the runs so far.

    answered  the trials that have a row in responses.jsonl
    engines   by model, in the plan's order: the engines that answered
    digests   of the responses, for their verdicts
    """

    answered: TrialSet
    engines: tuple[set[str], ...]
    digests: ResponseDigests

    def still_to_ask(self, indices: Iterable[int]) -> Iterator[int]:
        """The trials among `indices` that this run has to ask: those without a row in responses.jsonl.

        An error is a row, too, so its trial is not asked again; `--retry-errors` first moves such rows away
        (`set_errors_aside`). So is a trial that its model does not support. A torn last line is not a row. A
        trial whose answer is in the response cache is asked, but reaches no engine (runner.py).
        """
        return self.answered.missing(indices)

    def of_block(self, grid: Grid, m: int, low: int, high: int) -> Iterator[int]:
        """The trials of a model in a block of probes that are still to ask."""
        return self.still_to_ask(grid.of_probes(m, low, high))


def read_earlier_runs(folder: Path, grid: Grid, meter: TrialMeter) -> EarlierRuns:
    """Read responses.jsonl once, and count its rows in `meter`.

    Raises Damaged for a row of another plan, a second row of a trial, or a lost prefix. It also does for an
    engine that no run recorded, because its answers could not be continued.
    """
    answered, engines = TrialSet(len(grid)), tuple(set[str]() for _ in grid.plan.models)
    digests, prefixes = ResponseDigests(len(grid)), set[str]()
    for row in answered_rows(open_responses(folder), grid, answered):
        digests.add(row)
        if not is_out_of_scope(row):
            meter.had(is_failed(row), row.is_cached, row.index // meter.n_per_part)
        engines[row.index // grid.plan.n_per_model].add(row.engine)
        prefixes.update(exchange.prefix for exchange in row.exchanges)
    Prefixes(folder).check(prefixes)
    _refuse_unknown_arithmetic(folder, grid.plan, engines)
    return EarlierRuns(answered, engines, digests)


def read_digests(folder: Path, grid: Grid) -> ResponseDigests:
    """The digests of the responses in a folder."""
    digests = ResponseDigests(len(grid))
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        digests.add(row)
    return digests


def set_errors_aside(folder: Path, grid: Grid) -> None:
    """Move every error row from responses.jsonl to errors.jsonl, so that its trial is asked again.

    A trial that its model does not support stays, because it is not an error. If the process is killed in
    between, a row is in both files, and twice in errors.jsonl after the next call. It is never lost. Raises
    UsageError for an import, whose models are not here.
    """
    if grid.plan.application.rendering == "recorded":
        raise UsageError(
            f"{folder} holds answers that were recorded elsewhere: they cannot be asked again here. "
            "Record what is missing, and import it into another folder."
        )
    n = 0
    with Rows(folder / ERRORS, Response) as aside:
        for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
            if is_failed(row):
                aside.append(row)
                n += 1
    if n:
        rewrite(folder / RESPONSES, Response, lambda row: not is_failed(row))


def drop_stale_verdicts(
    folder: Path, digests: ResponseDigests, grid: Grid, decider: Decider | None = None
) -> None:
    """Drop every verdict that is not about the current response, or not by the current judges.

    Its response is gone, was asked again or was edited, or the judges changed: it is judged again.
    """
    chosen, probes, samples = decider or Decider(), grid.plan.probes, grid.plan.samples
    now = [chosen.judged_by(probe) for probe in probes]

    def is_own(row: VerdictRow | Verdict) -> bool:
        return row.judged_by == now[row.index // samples % len(probes)] and digests.is_judged_by(row)

    # It reads to the end: damage anywhere is reported before a row is dropped.
    stale = [row for row in verdict_rows(folder, grid) if not is_own(row)]
    for judge, n in sorted(Counter(row.judge for row in stale if digests.is_judged_by(row)).items()):
        note_event(folder, "judged_again", n, judge)
    if stale:
        rewrite(folder / VERDICTS, Verdict, is_own)


# --- the arithmetic of earlier answers --------------------------------------------------------------


def refuse_other_arithmetic(folder: Path, model: PlannedModel, numerics: str, earlier: set[str]) -> None:
    """Raise NotComparable if `earlier` engines of this model have other numerics than these."""
    held = {run.base_numerics for run in run_records(folder) if run.engine in earlier}
    if held - {numerics}:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{held.pop()}' computes, this engine is "
            f"'{numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or in another folder."
        )


def _refuse_unknown_arithmetic(folder: Path, plan: Plan, earlier: Iterable[set[str]]) -> None:
    """Raise Damaged if no run records the arithmetic of an engine of `earlier` (by model)."""
    held = {(run.model, run.engine) for run in run_records(folder)}
    for model, engines in zip(plan.models, earlier, strict=True):
        for engine in sorted(engines):
            if (model.id, engine) not in held:
                raise Damaged(
                    f"{folder / RUNS}: no run of '{model.name}' by '{engine}', which answered here: "
                    f"its arithmetic is not known. {RESTORE}"
                )
