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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from heredity.core.errors import Damaged, NotComparable
from heredity.core.records import Estimate, Probe, digest
from heredity.redteam.judges import needs_judge
from heredity.stats.intervals import refused
from heredity.study import sequential
from heredity.study.comparisons import MEASURES, compare_edges, compare_models, compare_seeds
from heredity.study.decision import COSTS
from heredity.study.deviations import deviations
from heredity.study.estimates import (
    ALL,
    SCOPES,
    ApplicationCard,
    Bounds,
    Circumstances,
    Estimates,
    FamilyCorrection,
    Measure,
    ModelCard,
    Rate,
    TechniqueCard,
)
from heredity.study.findings import protocols as findings
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Bools, Intervals, no_narrower, per_attempt, refuse_uninformative
from heredity.study.judge_correction import TASKS, AnswerSample, CheckedTrials, JudgeCorrection, refuse_unlike
from heredity.study.labels import LabelledTrials
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    SKIPPED,
    UNCLEAR,
    Codes,
    Outcomes,
    count_manners,
    is_answered,
    is_decided,
    read_outcomes,
)
from heredity.study.plan import PLAN, Plan, PlanFile, read_plan, read_saved
from heredity.study.same_conversations import same_conversations
from heredity.study.storage import (
    ESTIMATES,
    RunRecord,
    judged_responses,
    read_estimates,
    read_lacking,
    run_records,
)

_NAMED = 3  # parts of the estimates that an error names


def estimate(plan: Plan, folder: Path, root: Path | None = None) -> Estimates:
    """The content of estimates.json, in one pass over verdicts and responses, with ten bytes per trial.

    root: the store with the user's own judge calibrations; those of this judge are copied into the folder.
    Raises Damaged if a verdict is not about the response in the folder.
    """
    judged = read_outcomes(plan, folder)
    outcomes = judged.outcomes
    repeated = same_conversations(outcomes, folder)
    correction = JudgeCorrection.of(judged.judges, folder, root, plan.analysis)
    rates = tuple(rates_of(outcomes, correction, judged.labels))
    has_verdict = bytearray((outcomes.codes != 0).tobytes())
    sample, evidence = AnswerSample(outcomes), StudyEvidence(folder, judged, rates)
    evidence.watch(sample.see)
    rows = findings.begin(evidence)
    evidence.read(judged_responses(folder, has_verdict, judged.digests))
    rates = tuple(refuse_unlike(rates, sample.forms(), correction))
    techniques, runs, application = outcomes.techniques, list(run_records(folder)), plan.application
    found = Estimates(
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
        same_conversations=repeated,
        lacking=read_lacking(folder),
        rates=rates,
        manners=tuple(count_manners(judged)),
        pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, SCOPES[m])),
        technique_pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, techniques)),
        judges=correction.quality(),
        judge=correction.judge,
        corrected_by={
            task: source
            for task, source in correction.labels().items()
            if not (outcomes.counts_refusals and task == TASKS["breach"])
        },
        drift=correction.drift(),
        skipped=plan.skipped,
        circumstances=_circumstances(runs),
        sequential=sequential.StoppingRule(outcomes).replay().record() if plan.stops_early else None,
        edges=tuple(e for m in MEASURES for e in compare_edges(outcomes, m, SCOPES[m])),
        findings=findings.take(rows),
        limit=plan.limit,
        seeds=tuple(g for m in MEASURES for g in compare_seeds(outcomes, m, SCOPES[m])),
        technique_edges=tuple(
            e for m in MEASURES for e in compare_edges(outcomes, m, techniques) if e.compared.n
        ),
    )
    declared = plan.analysis
    saved = read_saved(folder) if (folder / PLAN).exists() else None
    if declared is not None:
        found = _with_plan(msgspec.structs.replace(found, analysis=declared), saved)
    n_judged = np.count_nonzero(outcomes.codes.reshape(len(plan.models), -1), axis=1).tolist()
    return msgspec.structs.replace(found, deviations=deviations(plan, folder, found, saved, n_judged))


def _with_plan(found: Estimates, saved: PlanFile | None) -> Estimates:
    """The estimates with what plan.json has outside the plan."""
    if saved is None:
        return found
    return msgspec.structs.replace(found, declared_at=saved.at or "", forecast=saved.forecast)


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
    found = _rate_over(outcomes, cell, scored, is_answered(codes)) if outcomes.is_per_attempt else of_decided
    by_judge = _by_judge(_CellRate(outcomes, cell, codes, correction, labels), of_decided)
    corrected = by_judge.corrected[0].corrected if by_judge.corrected else None
    if corrected is not None and plan.analysis is not None:
        corrected = refuse_uninformative(no_narrower(corrected, found))
    return Rate(
        model=plan.models[cell.model].id,
        technique=cell.technique,
        attack=cell.attack,
        measure=cell.measure,
        estimate=found,
        corrected=corrected,
        worst_case=Bounds(n_failed / n, (n_broke + n_unclear) / n) if n else None,
        n_held=n_held,
        n_broke=n_broke,
        n_unclear=n_unclear,
        n_error=n_error,
        is_judge_free=_judged(plan, cell) == {False},
        by_family=tuple(by_judge.corrected[1:]),
        by_labels=by_judge.by_labels,
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


class _Judged(NamedTuple):
    """A judged rate corrected by all labels, then by each family's; and the rate by labels of this study."""

    corrected: Sequence[FamilyCorrection] = ()
    by_labels: Estimate | None = None


def _judged(plan: Plan, cell: _Cell) -> set[bool]:
    """Whether a judge decides the probes of a cell: all of them, none, or some."""
    return {needs_judge(plan.probes[i]) for i in cell.probes}


def _is_of_refusals(outcomes: Outcomes, cell: _Cell) -> bool:
    """Whether the rate of a cell is that of answers that do not refuse."""
    return outcomes.counts_refusals and cell.measure == "breach" and True in _judged(outcomes.plan, cell)


def _by_judge(at: _CellRate, of_decided: Estimate) -> _Judged:
    """The corrections of a rate for what decided it; none if both checks and a judge did."""
    if _is_of_refusals(at.outcomes, at.cell):
        return _Judged(_uncorrected_refusals(int(np.count_nonzero(is_answered(at.codes)))))
    judged = _judged(at.outcomes.plan, at.cell)
    if judged == {True}:
        return _for_the_judge(at, of_decided)
    return _for_checks(at) if judged == {False} else _Judged()


def _uncorrected_refusals(n: int) -> list[FamilyCorrection]:
    """Why a rate of answers that do not refuse is not corrected; nothing without answers.

    A judge's errors are known among answers that it decided. Among unclear ones it may have missed refusals.
    """
    why = "the judge's errors were not measured over all answers, unclear ones among them"
    return [FamilyCorrection("", refused(n, why, "not-measured"))] if n else []


def _for_the_judge(at: _CellRate, of_decided: Estimate) -> _Judged:
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
        return _Judged(corrected, by_labels)
    answered = is_answered(codes)
    share = intervals.rate(decided[answered], every[answered])
    each = [FamilyCorrection(c.labels, per_attempt(c.corrected, share)) for c in corrected]
    if by_labels is not None:  # its n stays the number of labels
        by_labels = msgspec.structs.replace(per_attempt(by_labels, share), n=by_labels.n)
    return _Judged(each, by_labels)


def _for_checks(at: _CellRate) -> _Judged:
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
    return _Judged(correction.of_checks(trials, outcomes.techniques, intervals), by_labels)


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
    return Circumstances(last.at, last.host, seconds, n_cached, last.versions, _accounts(runs))


def _accounts(runs: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """By model the accounts of its runs: numbers are added up, lists are joined in order."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, value in run.account.items():
            mine = found.setdefault(run.model, {})
            if isinstance(value, list):
                mine[name] = list(dict.fromkeys([*mine.get(name, []), *value]))
            elif isinstance(value, int | float):
                mine[name] = round(mine.get(name, 0) + value, 6)
    return found


# --- reading what was estimated ---------------------------------------------------------------------


@dataclass
class _LastProof:
    """The files of the folder whose estimates this process computed last, and the estimates."""

    files: tuple[object, ...] = ()
    estimates: Estimates | None = None


_last_proof = _LastProof()


def _proven(plan: Plan, folder: Path) -> Estimates:
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


def estimate_and_prove(plan: Plan, folder: Path, root: Path | None) -> Estimates:
    """The estimates, remembered for the reports that this process writes next."""
    found = estimate(plan, folder, root)  # copies the user's calibrations into the folder
    _last_proof.estimates, _last_proof.files = found, _state(plan, folder)
    return found


def read_study(folder: Path) -> RecordedStudy:
    """Read the plan and the estimates of the study in `folder`.

    Raises UsageError if one is missing, NotComparable if they are of different studies or schemas, and
    Damaged if the verdicts give other estimates. Corrections for the judge's errors and wordings are not
    compared, because an older study keeps its own.
    """
    study = _together(folder)
    _compare(folder, _counted(study.estimates), _counted(_proven(study.plan, folder)))
    return study


def read_proven(folder: Path) -> Estimates:
    """Read the estimates in `folder`, and check that its verdicts give the same ones now.

    Raises as `read_study` does, and Damaged also if a correction or a wording differs.
    """
    plan, estimates = _together(folder)
    _compare(folder, estimates, _proven(plan, folder))
    return estimates


def _compare(folder: Path, held: Estimates, found: Estimates) -> None:
    # Drift is a warning about the judge, and an older release recorded other verdicts.
    found = msgspec.structs.replace(found, circumstances=held.circumstances, drift=held.drift)
    # A finding that is installed on one side only, a plug-in's, is not compared.
    computed = {name: rows for name, rows in found.findings.items() if name in held.findings}
    found = msgspec.structs.replace(found, findings=held.findings | computed)
    if not held.same_conversations:  # an older release looked for none
        found = msgspec.structs.replace(found, same_conversations=())
    if all(row.incoherent_broke is None for row in held.manners):  # it did not count these breaches either
        manners = tuple(msgspec.structs.replace(row, incoherent_broke=None) for row in found.manners)
        found = msgspec.structs.replace(found, manners=manners)
    parts = (
        (n, *(msgspec.to_builtins(getattr(each, n)) for each in (held, found)))
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


def _counted(found: Estimates) -> Estimates:
    """The estimates without corrections, wordings and judges: counts and what follows from them."""
    replace = msgspec.structs.replace
    return replace(
        found,
        models=tuple(replace(card, engine="") for card in found.models),
        rates=tuple(replace(rate, corrected=None, by_family=()) for rate in found.rates),
        pairs=tuple(replace(pair, words="") for pair in found.pairs),
        technique_pairs=tuple(replace(pair, words="") for pair in found.technique_pairs),
        edges=tuple(replace(e, compared=replace(e.compared, words="")) for e in found.edges),
        seeds=tuple(
            replace(g, inherited=replace(g.inherited, compared=replace(g.inherited.compared, words="")))
            for g in found.seeds
        ),
        technique_edges=tuple(
            replace(e, compared=replace(e.compared, words="")) for e in found.technique_edges
        ),
        judges=(),
        corrected_by={},
    )


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
