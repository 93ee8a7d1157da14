"""The estimates of a study: rates, manners, comparisons and costs, from its verdicts and responses.

Promises: models are compared on the same trials, with a correction for many comparisons. Breaches that a
check decides are never pooled with those that a judge decides. Errors and unclear answers are counted next to
every rate, never inside it. The order of the rows does not matter.
Leaves to others: reading (outcomes.py, storage.py), the formulas (stats/), and judging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate, Probe, digest
from heredity.stats.intervals import refused
from heredity.study import sequential
from heredity.study.attack_cost import attack_costs, success_curves
from heredity.study.comparisons import (
    MEASURES,
    alpha,
    compare_edges,
    compare_models,
    panel_agreement,
    rate_method,
)
from heredity.study.estimates import (
    ALL,
    SCOPES,
    ApplicationCard,
    Bounds,
    Circumstances,
    Estimates,
    Manners,
    Measure,
    ModelCard,
    Rate,
    TechniqueCard,
)
from heredity.study.judge_correction import JudgeCorrection
from heredity.study.labels import LabelledTrials
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    SKIPPED,
    UNCLEAR,
    Codes,
    Outcomes,
    is_decided,
    read_outcomes,
)
from heredity.study.plan import Plan
from heredity.study.storage import RunRecord, judged_responses, run_records


def estimate(plan: Plan, folder: Path, root: Path | None = None) -> Estimates:
    """The content of estimates.json, in one pass over verdicts and responses, with ten bytes per trial.

    root: the store with the user's own judge calibrations; those of this judge are copied into the folder.
    Raises Damaged if a verdict is not about the response in the folder.
    """
    judged = read_outcomes(plan, folder)
    outcomes = judged.outcomes
    correction = JudgeCorrection.of(judged.judges, folder, root)
    rates = tuple(rates_of(outcomes, correction, judged.labels))
    has_verdict = bytearray((outcomes.codes != 0).tobytes())
    responses = judged_responses(folder, has_verdict, judged.digests)
    techniques, runs, application = outcomes.techniques, list(run_records(folder)), plan.application
    is_panel = correction.judge.startswith("panel:")
    return Estimates(
        study=digest(plan),
        confidence=plan.confidence,
        margin=plan.margin,
        alpha=alpha(plan),
        models=_model_cards(plan, runs),
        application=ApplicationCard(application.name, application.digest, application.rendering),
        techniques=tuple(_technique_card(plan.probes, name) for name in techniques),
        attacks=plan.attacks,
        samples=plan.samples,
        seed=plan.seed,
        n_trials=plan.n_trials,
        n_asked=int(np.count_nonzero(outcomes.codes)),
        n_errors=outcomes.count(ERROR),
        n_skipped=outcomes.count(SKIPPED),
        n_unclear=outcomes.count(UNCLEAR),
        rates=rates,
        manners=tuple(count_manners(outcomes, judged.manners)),
        pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, SCOPES[m])),
        technique_pairs=tuple(p for m in MEASURES for p in compare_models(outcomes, m, techniques)),
        judges=correction.quality(),
        judge=correction.judge,
        panel=panel_agreement(outcomes, judged.members) if is_panel else None,
        corrected_by=correction.labels(),
        skipped=plan.skipped,
        circumstances=_circumstances(runs),
        sequential=sequential.StoppingRule(outcomes).replay().record() if plan.is_until_decided else None,
        curves=success_curves(outcomes),
        costs=attack_costs(outcomes, responses, rates),
        edges=tuple(e for m in MEASURES for e in compare_edges(outcomes, m, SCOPES[m])),
        technique_edges=tuple(
            e for m in MEASURES for e in compare_edges(outcomes, m, techniques) if e.compared.n
        ),
    )


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
    n_held, n_broke, n_unclear, n_error, n_skipped = (
        int(np.count_nonzero(codes == code)) for code in (HELD, BROKE, UNCLEAR, ERROR, SKIPPED)
    )
    decided = is_decided(codes)
    broke, clusters = codes[decided] == BROKE, outcomes.clusters_of(cell.attack, cell.probes)[decided]
    is_judged = {
        cell.measure == "over_refusal" or plan.probes[i].check.kind == "refusal" for i in cell.probes
    }
    n = n_held + n_broke + n_unclear
    found = rate_method(plan)(broke, clusters, plan.confidence)
    corrected, by_labels = [], None
    if is_judged == {True}:
        corrected = correction.corrected(broke, clusters, cell.measure, plan, found)
        if labels is not None:
            indices = outcomes.indices_of(cell.model, cell.attack, cell.probes)
            by_labels = _by_labels(plan, labels, broke, indices[decided])
    return Rate(
        model=plan.models[cell.model].id,
        technique=cell.technique,
        attack=cell.attack,
        measure=cell.measure,
        estimate=found,
        corrected=corrected[0].corrected if corrected else None,
        worst_case=Bounds(n_broke / n, (n_broke + n_unclear) / n) if n else None,
        n_held=n_held,
        n_broke=n_broke,
        n_unclear=n_unclear,
        n_error=n_error,
        is_judge_free=is_judged == {False},
        by_family=tuple(corrected[1:]),
        by_labels=by_labels,
        n_skipped=n_skipped,
    )


def _by_labels(
    plan: Plan, labels: LabelledTrials, broke: NDArray[np.bool_], indices: NDArray[np.intp]
) -> Estimate:
    if plan.is_until_decided:
        why = "where answers decided how many there are, labels give no interval"
        return refused(labels.count(indices), why)
    return labels.rate(broke, indices, plan.confidence)


# --- the rest -------------------------------------------------------------------------------------


def count_manners(outcomes: Outcomes, manners: Codes) -> Iterator[Manners]:
    """How answers read, by kind of probe and model. `manners`: one code per trial (outcomes.MANNERS)."""
    plan, by_cell = outcomes.plan, manners.reshape(outcomes.plan.shape)
    for kind in ("breach", "benign"):
        if probes := [i for i, probe in enumerate(plan.probes) if probe.kind == kind]:
            for m, model in enumerate(plan.models):
                counts = np.bincount(by_cell[m][:, probes].ravel(), minlength=5)
                n_error = int(np.count_nonzero(outcomes.array[m][:, probes] == ERROR))
                refusal, compliance, incoherent, empty = (int(c) for c in counts[1:5])
                yield Manners(model.id, kind, refusal, compliance, incoherent, empty, n_error)


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
    is_judge_free = bool(breach) and all(probe.check.kind != "refusal" for probe in breach)
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
