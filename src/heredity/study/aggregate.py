"""The content of estimates.json: rates, manners, comparisons and costs, from the verdicts and responses.

Promises: models are compared on the same trials, with a correction for many comparisons. Breaches that a
check decides are never pooled with those that a judge decides. Errors and unclear answers are counted next to
every rate, never inside it. The order of the rows does not matter. A rate that a judge decided is corrected
by that judge's own measured errors, or the correction is refused with a reason. No report shows estimates of
another plan, or estimates that the verdicts do not give.
Leaves to others: reading (outcomes.py, storage.py), every interval (intervals.py), and measuring judges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np

from heredity.core import registry
from heredity.core.errors import Damaged, NotComparable, Unavailable
from heredity.core.files import Rows, read_lines
from heredity.core.records import ROW_SCHEMA, Estimate, Probe, digest
from heredity.core.sanitize import plural
from heredity.lineage.types import CONTROLS
from heredity.redteam import judges
from heredity.redteam.judges import needs_judge
from heredity.redteam.judges.calibration.quality import (
    CHECKS,
    AnswerForm,
    Endpoint,
    check_errors,
    copy_calibrations,
    measured_by_user,
    predicted_errors,
    summarise,
    unlike,
)
from heredity.stats.intervals import refused
from heredity.stats.judge_error import combine_strata
from heredity.study.comparisons import StoppingRule, compare_edges, compare_models
from heredity.study.estimates import (
    ALL,
    MEASURES,
    PROBE_KINDS,
    SCOPES,
    ApplicationCard,
    Bounds,
    Circumstances,
    Deviation,
    Estimates,
    FamilyCorrection,
    Measure,
    ModelCard,
    ModelPair,
    Rate,
    TechniqueCard,
)
from heredity.study.findings import drift
from heredity.study.findings import protocols as findings
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.findings.same_conversations import note_conversations
from heredity.study.intervals import Bools, Intervals, Places, no_narrower, per_attempt, without_uninformative
from heredity.study.labels import LabelledTrials
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    SKIPPED,
    UNCLEAR,
    Codes,
    Outcomes,
    is_answered,
    is_decided,
    n_in_scope,
    read_outcomes,
)
from heredity.study.plan import PLAN, Analysis, Plan, PlanFile, plan_seal, read_plan, read_saved
from heredity.study.storage import (
    COSTS,
    ERRORS,
    ESTIMATES,
    EVENTS,
    RESPONSES,
    RawResponse,
    RunRecord,
    StudyEvent,
    judged_responses,
    read_estimates,
    read_lacking,
    run_records,
)


# --- deviations --------------------------------------------------------------------------------------
# How a study departed from the analysis that its plan declared: each departure by code and in words.
# Promises: the same folder gives the same deviations. A plan that declared no analysis has none to depart
# from, but its seal must be that of its runs. A folder notes in events.jsonl what no other file shows:
# verdicts that were given again, and estimates that were read before the last answer.
class _Answer(msgspec.Struct):
    """The model of a row of responses.jsonl or errors.jsonl."""

    model: str
    schema: int = ROW_SCHEMA


def deviations(
    plan: Plan, folder: Path, estimates: Estimates, saved: PlanFile | None, n_judged: Sequence[int]
) -> tuple[Deviation, ...]:
    """The deviations of the study in `folder`.

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
        "edges": [edge.compared for edge in estimates.edges if edge.role not in CONTROLS],
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


_OF_PLUGINS = ("plugin-broken", "plugin-changed")


def _of_plugins(plan: Plan, faults: Mapping[str, str]) -> Iterator[Deviation]:
    """Plug-ins that are not installed as the plan recorded them, and statistics of packages that fail."""
    for each in plan.every_plugin:
        try:
            now = registry.outside(each.folder, each.name)
        except Unavailable as error:
            yield Deviation("plugin-changed", str(error))
            continue
        had = f"The plan had the plug-in '{each.name}' of {each.release}, file {each.sha256[:8]}"
        if now is None and each.folder == findings.FOLDER:
            yield Deviation("plugin-broken", f"{had}. It is not installed, so the study lacks its statistic.")
        elif now is not None and now.sha256 != each.sha256:
            yield Deviation("plugin-changed", f"{had}. Installed is {now}, file {now.sha256[:8]}.")
    yield from (Deviation("plugin-broken", words) for words in faults.values())


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


MAX_LABELLED = 200  # answers of one model and measure


# --- judge correction --------------------------------------------------------------------------------
# Rates corrected for the errors of what decided them: a judge, or the probes' own checks. Promises: every
# correction has the spread between families of answers. A rate over several techniques is corrected
# technique by technique. A plan that declares no analysis is corrected as the releases that made it did: by
# pooled labels, and checks not at all. A judge's correction is refused where the study's answers are unlike
# all answers that people labelled. At most 200 a model and measure are read for this.
class AnswerSample:
    """Answers that a judge decided, by model and measure."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._plan = outcomes.plan
        self._wanted: dict[int, tuple[str, Measure]] = {}
        self.probes = set[int]()
        self._answers: dict[tuple[str, Measure], list[tuple[int, str, str]]] = {}
        for m, model in enumerate(self._plan.models):
            for measure in MEASURES:
                self._want(outcomes, m, (model.id, measure))

    def _want(self, outcomes: Outcomes, m: int, key: tuple[str, Measure]) -> None:
        kind = PROBE_KINDS[key[1]]
        probes = [i for i, p in enumerate(self._plan.probes) if p.kind == kind and needs_judge(p)]
        if not probes:
            return
        indices = outcomes.indices_of(m, ALL, probes)
        decided = indices[is_decided(outcomes.codes[indices])]
        places = np.unique(np.linspace(0, decided.size - 1, min(MAX_LABELLED, decided.size)).astype(np.intp))
        self._wanted |= {int(decided[place]): key for place in places}
        self.probes |= {*probes}

    def see(self, row: RawResponse) -> None:
        """Keep a response of the sample."""
        key = self._wanted.get(row.index)
        if key is not None and row.exchanges:
            probe = self._plan.probes[row.index // self._plan.samples % len(self._plan.probes)]
            text = msgspec.json.decode(row.exchanges[-1].text, type=str)
            prompt = probe.turns[-1] if probe.turns else ""
            self._answers.setdefault(key, []).append((row.index, prompt, text))

    def forms(self) -> dict[tuple[str, Measure], AnswerForm]:
        """The form of the answers, by model id and measure."""
        return {
            key: summarise(key[0], [(asked, text) for _, asked, text in sorted(rows)])
            for key, rows in self._answers.items()
        }


def without_unlike(
    rates: Iterable[Rate], forms: dict[tuple[str, Measure], AnswerForm], correction: JudgeCorrection
) -> Iterator[Rate]:
    """The rates; a judged one whose model's answers are unlike all labelled ones is not corrected."""
    reasons = {key: unlike(form, correction.families(key[1])) for key, form in forms.items()}
    for rate in rates:
        why = reasons.get((rate.model, rate.measure), "")
        if rate.is_judge_free or not why or rate.corrected is None or rate.corrected.value is None:
            yield rate
            continue
        reason = f"{why}. Label some of this study's answers: heredity label"
        corrected = refused(rate.corrected.n, reason, "unlike-labels")
        yield msgspec.structs.replace(rate, corrected=corrected, by_family=())


TASKS: dict[Measure, judges.Task] = {"breach": "harm", "over_refusal": "refusal"}


class CheckedTrials(NamedTuple):
    """The trials of a rate that checks decided: which broke, with behaviour and technique of each."""

    broke: Bools
    clusters: Places
    techniques: Places


class JudgeCorrection:
    """One judge with its calibrations; the user's own calibrations are copied into the study's folder."""

    def __init__(self, judge: str, judged_by: str, folder: Path, analysis: Analysis | None = None) -> None:
        self.judge, self._judged_by, self._folder, self._analysis = judge, judged_by, folder, analysis
        self._has_checks = False
        self._checks: dict[str, judges.ReadErrors | None] = {}  # errors by technique, each computed once
        self._known = {task: judges.calibrations(task, judge, judged_by, folder) for task in TASKS.values()}
        self._predicted = {task: predicted_errors(task, judge, judged_by, folder) for task in TASKS.values()}

    @classmethod
    def of(
        cls, names: Mapping[str, str], folder: Path, root: Path | None, analysis: Analysis | None = None
    ) -> Self:
        """The correction for the judge in `names`, the judges of the verdict rows with their digests.

        The user's own calibrations are copied from the store `root` into the folder, which then documents
        the source of its numbers. Raises Damaged for the rows of two judges.
        """
        judged_by_of = {judge: judged_by for judge, judged_by in names.items() if judge != CHECKS}
        if len(judged_by_of) > 1:
            raise Damaged(
                f"The verdicts are of {len(judged_by_of)} judges ({', '.join(sorted(judged_by_of))}); one"
                " study has one. Run it again with --judge and the one that you want."
            )
        judge, judged_by = next(iter(judged_by_of.items()), ("", ""))
        if root is not None and judge:
            copy_calibrations(root, folder, judge, judged_by)
        made = cls(judge, judged_by, folder, analysis)
        made._has_checks = CHECKS in names
        return made

    def labels(self) -> dict[str, str]:
        """By task the source of the labels that correct this judge."""
        if self._analysis is None:
            return {task: known[0].labels for task, known in sorted(self._known.items()) if known}
        by_task = {task: errors.labels for task, errors in self._predicted.items() if errors is not None}
        return dict(sorted(by_task.items()))

    def families(self, measure: Measure) -> tuple[str, ...]:
        """The families of labels that correct this judge's rates; empty before plans declared an analysis."""
        errors = self._predicted[TASKS[measure]] if self._analysis is not None else None
        return tuple(each.labels for each in errors.families) if errors is not None else ()

    def quality(self) -> tuple[judges.JudgeQuality, ...]:
        """The measurements of this judge, the user's labels first, then shipped ones; and of the checks."""
        shipped = tuple(row for row in judges.quality() if row.judge == self.judge)
        own = measured_by_user(self.judge, self._judged_by, self._folder, TASKS.values())
        is_known = self._analysis is not None and self._has_checks
        checks = judges.check_quality(self._endpoint_of_checks) if is_known else ()
        return (*own, *shipped, *checks)

    @property
    def _endpoint_of_checks(self) -> Endpoint:
        """How checks count an unclear answer; under "not_refused" as in "all_trials"."""
        is_decided = self._analysis is not None and self._analysis.endpoint == "decided_trials"
        return "decided_trials" if is_decided else "all_trials"

    def corrected(
        self, broke: Bools, clusters: Places, measure: Measure, intervals: Intervals, raw: Estimate
    ) -> list[FamilyCorrection]:
        """The rate `raw` of a judge, corrected by all labels, then by each family's; empty without trials."""
        if not broke.size:
            return []
        task = TASKS[measure]
        if self._analysis is None:
            if not self._known[task]:
                return [FamilyCorrection("", refused(broke.size, self._why_not(task)))]
            return [
                FamilyCorrection(each.labels, intervals.corrected(broke, clusters, raw, each))
                for each in self._known[task]
            ]
        errors = self._predicted[task]
        if errors is None:
            return [FamilyCorrection("", refused(broke.size, self._why_not(task), "not-measured"))]
        whole = intervals.corrected_for_family(broke, clusters, raw, errors.sens, errors.spec)
        both = [each for each in errors.families if each.sens_n and each.spec_n]
        by_family = [
            FamilyCorrection(each.labels, intervals.corrected(broke, clusters, raw, each))
            for each in (both if len(both) > 1 else ())
        ]
        return [FamilyCorrection(errors.labels, whole), *by_family]

    def of_checks(
        self, trials: CheckedTrials, names: Sequence[str], intervals: Intervals
    ) -> list[FamilyCorrection]:
        """The rate of trials that checks decided, corrected technique by technique; empty without trials.

        names: of the techniques, by their places in `trials`.
        """
        if self._analysis is None or not trials.broke.size:
            return []
        places, n = np.unique(trials.techniques), trials.broke.size
        errors = {place: self._errors_of_checks(names[place]) for place in places}
        missing = [names[place] for place, error in errors.items() if error is None]
        if len(missing) == len(errors):
            why = f"nobody read answers to {_few(missing)} (heredity label reads this study's)"
            return [FamilyCorrection("", refused(n, f"not measured: {why}", "not-measured"))]
        # Unread techniques must not make the rate look better known than the read ones alone: were the whole
        # left uncorrected, two probes of one's own would take the checks' errors out of a gate. They get the
        # errors of all checks read, at the widest bounds that these or those of a technique beside them give.
        elsewhere = judges.check_errors_elsewhere(self._endpoint_of_checks) if missing else None
        parts, weights = [], []
        for place, known in errors.items():
            own = trials.techniques == place
            if known is None:
                beside = [error for error in errors.values() if error is not None]
                parts.append(_widest(trials, own, [elsewhere or beside[0], *beside], intervals))
            else:
                parts.append(_corrected_stratum(trials, own, known, intervals))
            weights.append(float(np.mean(own)))
        if len(parts) == 1:
            return [FamilyCorrection(CHECKS, parts[0])]
        whole = combine_strata(parts, weights, f"{parts[0].method}, by technique")
        if missing and whole.value is not None:
            note = f"nobody read answers to {_few(missing)}: corrected by the errors of the other checks"
            whole = msgspec.structs.replace(whole, note=note)
        return [FamilyCorrection(CHECKS, whole)]

    def _errors_of_checks(self, technique: str) -> judges.ReadErrors | None:
        if technique not in self._checks:
            self._checks[technique] = check_errors(technique, self._endpoint_of_checks)
        return self._checks[technique]

    def _why_not(self, task: judges.Task) -> str:
        return (
            f"the judge '{self.judge}' as it is was never measured on labels of {task} "
            f"(heredity judges calibrate {self.judge} --task {task})"
        )


def _corrected_stratum(
    trials: CheckedTrials, own: Bools, errors: judges.ReadErrors, intervals: Intervals
) -> Estimate:
    """The corrected rate of one technique's trials."""
    broke, clusters = trials.broke[own], trials.clusters[own]
    raw = intervals.rate(broke, clusters)
    return intervals.corrected_for_family(broke, clusters, raw, errors.sens, errors.spec)


def _widest(
    trials: CheckedTrials, own: Bools, errors: Sequence[judges.ReadErrors], intervals: Intervals
) -> Estimate:
    """The rate by the first of these errors, with bounds that hold all; [0, 1] if one fits no true rate."""
    corrections = [_corrected_stratum(trials, own, each, intervals) for each in errors]
    value = corrections[0].value if corrections[0].value is not None else float(np.mean(trials.broke[own]))
    low = min(0.0 if each.low is None else each.low for each in corrections)
    high = max(1.0 if each.high is None else each.high for each in corrections)
    return Estimate(value, low, high, corrections[0].n, "rogan-gladen for a further family")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


_NAMED = 3  # parts of the estimates that an error names


def estimate(plan: Plan, folder: Path, root: Path | None = None) -> Estimates:
    """The content of estimates.json, in one pass over verdicts and responses, with ten bytes per trial.

    root: the store with the user's own judge calibrations; those of this judge are copied into the folder.
    Raises Damaged if a verdict is not about the response in the folder.
    """
    judged = read_outcomes(plan, folder)
    outcomes = judged.outcomes
    note_conversations(outcomes, folder)
    correction = JudgeCorrection.of(judged.judges, folder, root, plan.analysis)
    rates = tuple(rates_of(outcomes, correction, judged.labels))
    has_verdict = bytearray((outcomes.codes != 0).tobytes())
    sample, evidence = AnswerSample(outcomes), StudyEvidence(folder, judged, rates)
    evidence.watch(sample.see, sample.probes)
    rows = findings.begin(evidence)
    evidence.read(judged_responses(folder, has_verdict, judged.digests))
    rates = tuple(without_unlike(rates, sample.forms(), correction))
    techniques, runs, application = outcomes.techniques, list(run_records(folder)), plan.application
    saved = read_saved(folder) if (folder / PLAN).exists() else None
    declared = saved if plan.analysis is not None else None  # without an analysis nothing was declared
    estimates = Estimates(
        study=digest(plan),
        confidence=plan.confidence,
        margin=plan.margin,
        alpha=Intervals.of(plan).alpha,
        models=_model_cards(plan, runs),
        application=ApplicationCard(
            application.name, application.digest, application.rendering, application.is_default_system
        ),
        techniques=tuple(_technique_card(plan.probes, name) for name in techniques),
        attacks=plan.attacks,
        samples=plan.samples,
        seed=plan.seed,
        n_trials=plan.n_trials,
        n_asked=int(np.count_nonzero(outcomes.codes)),
        n_errors=outcomes.count(ERROR),
        n_skipped=outcomes.count(SKIPPED),
        n_unclear=outcomes.count(UNCLEAR),
        lacking=read_lacking(folder),
        rates=rates,
        pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, SCOPES[m])),
        technique_pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, techniques)),
        judges=correction.quality(),
        judge=correction.judge,
        corrected_by={
            task: source
            for task, source in correction.labels().items()
            if not (outcomes.counts_refusals and task == TASKS["breach"])
        },
        skipped=plan.skipped,
        circumstances=_circumstances(runs),
        sequential=StoppingRule(outcomes).replay().record() if plan.stops_early else None,
        edges=tuple(e for m in MEASURES for e in compare_edges(outcomes, m, SCOPES[m])),
        analysis=plan.analysis,
        declared_at="" if declared is None else declared.at or "",
        forecast=None if declared is None else declared.forecast,
        findings=findings.take(evidence, rows),
        limit=plan.limit,
        public=plan.public or (),
        technique_edges=tuple(
            e for m in MEASURES for e in compare_edges(outcomes, m, techniques) if e.compared.n
        ),
    )
    n_judged = np.count_nonzero(outcomes.codes.reshape(len(plan.models), -1), axis=1).tolist()
    findings.note_unshown(evidence, RecordedStudy(plan, estimates))
    departures = *deviations(plan, folder, estimates, saved, n_judged), *_of_plugins(plan, evidence.faults)
    return msgspec.structs.replace(estimates, deviations=departures)


# --- rates ---------------------------------------------------------------------------------------


def rates_of(
    outcomes: Outcomes, correction: JudgeCorrection, labels: LabelledTrials | None = None
) -> Iterator[Rate]:
    """The rate of every cell, in order: model, measure, technique or scope, attack."""
    for m in range(len(outcomes.plan.models)):
        for measure in MEASURES:
            for technique in (*SCOPES[measure], *outcomes.techniques):
                if probes := outcomes.probes(technique, measure):
                    for attack in (ALL, *outcomes.plan.attacks):
                        cell = _Cell(m, technique, attack, measure, probes)
                        yield _rate(outcomes, cell, correction, labels)


class _Cell(NamedTuple):
    """One model under one technique or scope, and one attack or all."""

    model: int
    technique: str
    attack: str
    measure: Measure
    probes: list[int]


def _rate(
    outcomes: Outcomes, cell: _Cell, correction: JudgeCorrection, labels: LabelledTrials | None
) -> Rate:
    plan, codes = outcomes.plan, outcomes.codes_of(cell.model, cell.attack, cell.probes)
    scored = outcomes.scored_of(cell.model, cell.attack, cell.probes)
    n_held, n_broke, n_unclear, n_error, n_skipped = (
        int(np.count_nonzero(codes == code)) for code in (HELD, BROKE, UNCLEAR, ERROR, SKIPPED)
    )
    is_of_refusals = _is_of_refusals(outcomes, cell)
    n_failed = int(np.count_nonzero(scored == BROKE))
    n = n_held + n_broke + n_unclear
    of_decided = _rate_over(outcomes, cell, codes, is_decided(codes))
    rate = _rate_over(outcomes, cell, scored, is_answered(codes)) if outcomes.is_per_attempt else of_decided
    corrections = _corrections(_CellRate(outcomes, cell, codes, correction, labels), of_decided)
    corrected = corrections.corrected[0].corrected if corrections.corrected else None
    if corrected is not None and plan.analysis is not None:
        corrected = without_uninformative(no_narrower(corrected, rate))
    return Rate(
        model=plan.models[cell.model].id,
        technique=cell.technique,
        attack=cell.attack,
        measure=cell.measure,
        estimate=rate,
        corrected=corrected,
        worst_case=Bounds(n_failed / n, (n_broke + n_unclear) / n) if n else None,
        n_held=n_held,
        n_broke=n_broke,
        n_unclear=n_unclear,
        n_error=n_error,
        is_judge_free=_needs_judge(plan, cell) == {False},
        by_family=tuple(corrections.corrected[1:]),
        by_labels=corrections.by_labels,
        n_skipped=n_skipped,
        conditional=of_decided if outcomes.is_per_attempt else None,
        n_attempted=outcomes.n_attempted(cell.model, cell.attack, cell.probes),
        n_not_refused=n_failed if is_of_refusals else msgspec.UNSET,
    )


def _rate_over(outcomes: Outcomes, cell: _Cell, codes: Codes, counted: Bools) -> Estimate:
    """The rate over the counted trials of a cell."""
    clusters = outcomes.clusters_of(cell.attack, cell.probes, cell.model)[counted]
    return Intervals.over(outcomes, cell.model).rate(codes[counted] == BROKE, clusters)


class _CellRate(NamedTuple):
    """The codes of a cell, and what corrects the rate over them."""

    outcomes: Outcomes
    cell: _Cell
    codes: Codes
    correction: JudgeCorrection
    labels: LabelledTrials | None


class _Corrections(NamedTuple):
    """A judged rate corrected by all labels, then by each family's; and the rate by labels of this study."""

    corrected: Sequence[FamilyCorrection] = ()
    by_labels: Estimate | None = None


def _needs_judge(plan: Plan, cell: _Cell) -> set[bool]:
    """Whether a judge decides the probes of a cell: all of them, none, or some."""
    return {needs_judge(plan.probes[i]) for i in cell.probes}


def _is_of_refusals(outcomes: Outcomes, cell: _Cell) -> bool:
    """Whether the rate of a cell is that of answers that do not refuse."""
    return outcomes.counts_refusals and cell.measure == "breach" and True in _needs_judge(outcomes.plan, cell)


def _corrections(at: _CellRate, of_decided: Estimate) -> _Corrections:
    """The corrections of a rate for what decided it; none if both checks and a judge did."""
    if _is_of_refusals(at.outcomes, at.cell):
        n = int(np.count_nonzero(is_answered(at.codes)))
        why = "the judge's errors were not measured over all answers, unclear ones among them"
        return _Corrections([FamilyCorrection("", refused(n, why, "not-measured"))] if n else [])
    judged = _needs_judge(at.outcomes.plan, at.cell)
    if judged == {True}:
        return _for_the_judge(at, of_decided)
    return _for_checks(at) if judged == {False} else _Corrections()


def _for_the_judge(at: _CellRate, of_decided: Estimate) -> _Corrections:
    """The corrections of a rate that a judge decided.

    A judge's errors were measured on answers that it decided, so the conditional rate is corrected. Over all
    attempts that is multiplied by the share of decided trials.
    """
    outcomes, cell, codes, correction, labels = at
    intervals, decided = Intervals.over(outcomes, cell.model), is_decided(codes)
    every = outcomes.clusters_of(cell.attack, cell.probes, cell.model)
    broke, clusters = codes[decided] == BROKE, every[decided]
    corrected = correction.corrected(broke, clusters, cell.measure, intervals, of_decided)
    by_labels = None
    if labels is not None:
        indices = outcomes.indices_of(cell.model, cell.attack, cell.probes)
        is_declared = outcomes.plan.analysis is not None
        by_labels = intervals.from_labels(labels, broke, indices[decided], clusters if is_declared else None)
    if not outcomes.is_per_attempt:
        return _Corrections(corrected, by_labels)
    answered = is_answered(codes)
    share = intervals.rate(decided[answered], every[answered])
    each = [FamilyCorrection(c.labels, per_attempt(c.corrected, share)) for c in corrected]
    if by_labels is not None:  # its n stays the number of labels
        by_labels = msgspec.structs.replace(per_attempt(by_labels, share), n=by_labels.n)
    return _Corrections(each, by_labels)


def _for_checks(at: _CellRate) -> _Corrections:
    """The corrections of a rate that checks decided, over the trials that the rate counts."""
    outcomes, cell, codes, correction, labels = at
    counted = is_answered(codes) if outcomes.is_per_attempt else is_decided(codes)
    clusters = outcomes.clusters_of(cell.attack, cell.probes, cell.model)[counted]
    techniques = outcomes.techniques_of(cell.attack, cell.probes)[counted]
    trials = CheckedTrials(codes[counted] == BROKE, clusters, techniques)
    intervals, by_labels = Intervals.over(outcomes, cell.model), None
    if labels is not None and outcomes.plan.analysis is not None:
        indices = outcomes.indices_of(cell.model, cell.attack, cell.probes)
        by_labels = intervals.from_labels(labels, trials.broke, indices[counted], clusters)
    return _Corrections(correction.of_checks(trials, outcomes.techniques, intervals), by_labels)


# --- the rest -------------------------------------------------------------------------------------


def _model_cards(plan: Plan, runs: Sequence[RunRecord]) -> tuple[ModelCard, ...]:
    cards = []
    for m in plan.models:
        own = [run for run in runs if run.model == m.id]
        engines = "; ".join(dict.fromkeys(run.engine for run in own))
        is_unverified = any(run.is_batch_unverified for run in own)
        about = (m.id, m.name, m.family, m.licence, m.format, engines)
        cards.append(ModelCard(*about, is_batch_unverified=is_unverified))
    return tuple(cards)


def _technique_card(probes: Sequence[Probe], name: str) -> TechniqueCard:
    own = [probe for probe in probes if probe.technique == name]
    breach = [probe for probe in own if probe.kind == "breach"]
    threats = tuple(dict.fromkeys(threat for probe in breach or own for threat in probe.threats))
    is_judge_free = bool(breach) and not any(map(needs_judge, breach))
    is_baseline = all(probe.is_baseline for probe in own)
    return TechniqueCard(name, threats, is_judge_free, len(breach), len(own) - len(breach), is_baseline)


def _circumstances(runs: Sequence[RunRecord]) -> Circumstances:
    if not runs:
        return Circumstances("", "", 0.0, 0, {})
    seconds, n_cached = round(sum(r.seconds for r in runs), 3), sum(r.n_cached for r in runs)
    last = runs[-1]
    by_model: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, value in run.account.items():
            mine = by_model.setdefault(run.model, {})
            if isinstance(value, list):
                mine[name] = list(dict.fromkeys([*mine.get(name, []), *value]))
            elif isinstance(value, int | float):
                mine[name] = round(mine.get(name, 0) + value, 6)
    return Circumstances(last.at, last.host, seconds, n_cached, last.versions, by_model)


# --- reading what was estimated ---------------------------------------------------------------------


@dataclass
class _LastProof:
    """The files of the folder whose estimates this process computed last, and the estimates."""

    files: tuple[object, ...] = ()
    estimates: Estimates | None = None


_last_proof = _LastProof()


def _recomputed(plan: Plan, folder: Path) -> Estimates:
    """The estimates that the rows give. They are computed once a process, until a file changes."""
    files = _state(plan, folder)
    if _last_proof.estimates is None or _last_proof.files != files:
        _last_proof.estimates, _last_proof.files = estimate(plan, folder), files
    return _last_proof.estimates


def _state(plan: Plan, folder: Path) -> tuple[object, ...]:
    """Every file that estimates are computed from, as it is on the disk, and the plan."""
    paths = (path for pattern in ("*.json", "*.jsonl", "judges/*") for path in sorted(folder.glob(pattern)))
    stats = ((path, path.lstat()) for path in paths if path.name not in (ESTIMATES, COSTS))
    return (digest(plan), *((path, of.st_ino, of.st_size, of.st_mtime_ns) for path, of in stats))


def estimate_and_remember(plan: Plan, folder: Path, root: Path | None) -> Estimates:
    """The estimates, remembered for the reports that this process writes next."""
    estimates = estimate(plan, folder, root)  # copies the user's calibrations into the folder
    _last_proof.estimates, _last_proof.files = estimates, _state(plan, folder)
    return estimates


def read_study(folder: Path) -> RecordedStudy:
    """Read the plan and the estimates of the study in `folder`.

    Findings of a newer release are added. Raises UsageError if a file is missing, NotComparable if they are
    of different studies or schemas, and Damaged if the verdicts give other estimates. Corrections for the
    judge's errors and wordings are not compared, because an older study keeps its own.
    """
    plan, held = _together(folder)
    estimates = _recomputed(plan, folder)
    _compare(folder, _counted(held), _counted(estimates))
    return RecordedStudy(plan, _completed(held, estimates))


def read_proven(folder: Path) -> Estimates:
    """Read the estimates in `folder`, and check that its verdicts give the same ones now.

    Raises as `read_study` does, and Damaged also if a correction or a wording differs.
    """
    plan, held = _together(folder)
    estimates = _recomputed(plan, folder)
    _compare(folder, held, estimates)
    return _completed(held, estimates)


def _completed(held: Estimates, estimates: Estimates) -> Estimates:
    """The held estimates with the findings that they lack: a gate would pass what nobody counted.

    Plug-ins are as they are installed now.
    """
    now = findings.keys_of_packages()  # of one that fails there are no rows
    kept = {name: rows for name, rows in held.findings.items() if name not in now}
    return msgspec.structs.replace(held, findings=estimates.findings | kept, deviations=estimates.deviations)


def _compare(folder: Path, held: Estimates, estimates: Estimates) -> None:
    # Drift is a warning about the judge, and an older release recorded other verdicts. A finding on one side
    # only, of another release, is not compared, nor what depends on the plug-ins that are installed now.
    apart = {drift.NAME, *findings.keys_of_packages()}
    computed = {
        name: rows for name, rows in estimates.findings.items() if name in held.findings and name not in apart
    }
    own = (each for each in estimates.deviations if each.code not in _OF_PLUGINS)
    estimates = msgspec.structs.replace(
        estimates,
        circumstances=held.circumstances,
        findings=held.findings | computed,
        deviations=(*own, *(each for each in held.deviations if each.code in _OF_PLUGINS)),
    )
    parts = (
        (n, *(msgspec.to_builtins(getattr(each, n)) for each in (held, estimates)))
        for n in Estimates.__struct_fields__
    )
    names = [name for name, one, other in parts if not _are_same(one, other)]
    if names:
        others = f" and {len(names) - _NAMED} other parts" if len(names) > _NAMED else ""
        raise Damaged(
            f"{folder / ESTIMATES}: {', '.join(names[:_NAMED])}{others} differ from the estimates that the "
            f"verdicts give. To estimate again, without asking anything twice: heredity study {folder}"
        )


def _are_same(one: object, other: object) -> bool:
    """Whether two values are equal up to the rounding of numbers, which is the processor's."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return type(one) is type(other) and one == other


def _counted(estimates: Estimates) -> Estimates:
    """The estimates without corrections, wordings and judges: counts and what follows from them."""
    replace = msgspec.structs.replace
    return replace(
        estimates,
        models=tuple(replace(card, engine="") for card in estimates.models),
        rates=tuple(replace(rate, corrected=None, by_family=()) for rate in estimates.rates),
        pairs=tuple(replace(pair, words="") for pair in estimates.pairs),
        technique_pairs=tuple(replace(pair, words="") for pair in estimates.technique_pairs),
        edges=tuple(replace(e, compared=replace(e.compared, words="")) for e in estimates.edges),
        findings={name: [_wordless(row) for row in rows] for name, rows in estimates.findings.items()},
        technique_edges=tuple(
            replace(e, compared=replace(e.compared, words="")) for e in estimates.technique_edges
        ),
        judges=(),
        corrected_by={},
    )


def _wordless(value: object) -> object:
    """A row of a finding without its wordings."""
    if isinstance(value, dict):
        return {key: _wordless(each) for key, each in value.items() if key != "words"}
    return [_wordless(each) for each in value] if isinstance(value, list) else value


def _together(folder: Path) -> RecordedStudy:
    plan, estimates = read_plan(folder), read_estimates(folder)
    if estimates.study != digest(plan):
        raise NotComparable(
            f"{folder / ESTIMATES} is of another plan than {PLAN} in that folder. Estimate again.",
            code="another-study",
        )
    if estimates.application.digest != plan.application.digest:
        raise NotComparable(f"{folder / ESTIMATES} is of another application than {PLAN}. Estimate again.")
    return RecordedStudy(plan, estimates)
