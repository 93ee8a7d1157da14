"""Verdicts into numbers: rates, manners and pairs.

Promises: models are compared on the same trials, corrected for many comparisons; breaches that a check
decides are never pooled with those that a judge decides; errors and unclear answers are counted beside every
rate, never inside it; the same verdicts in any order give the same numbers.
Leaves to others: reading the rows (seen.py), the formulas (stats/) and which answer was bad (judges/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate, Probe, digest
from heredity.core.rows import Rows
from heredity.stats.intervals import refused
from heredity.study import attack_cost, sequential
from heredity.study.comparisons import MEASURES, Cells, alpha, inheritances, pairs, rate_method
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
    Run,
    TechniqueCard,
)
from heredity.study.judge_correction import Errors, panel
from heredity.study.legacy import run_from_schema_1
from heredity.study.outcomes import BROKE, ERROR, HELD, SKIPPED, UNCLEAR, Seen, read
from heredity.study.plan import Plan


def estimate(plan: Plan, folder: Path, root: Path | None = None) -> Estimates:
    """Everything that estimates.json holds, in one pass over verdicts and responses; ten bytes a trial.

    root: the store with the calibrations that the user measured; those of this judge go into the folder.
    Raises Damaged where a verdict is not on the response beside it.
    """
    seen = read(plan, folder)
    errors = Errors.of(seen.judges, folder, root)
    cells = Cells(plan, seen, errors)
    runs = list(Rows(folder / "runs.jsonl", Run, run_from_schema_1))
    rates = tuple(_rates(cells))
    application = plan.application
    return Estimates(
        study=digest(plan),
        confidence=plan.confidence,
        margin=plan.margin,
        alpha=alpha(plan),
        models=tuple(
            ModelCard(
                m.id,
                m.name,
                m.family,
                m.licence,
                m.format,
                _engines(runs, m.id),
                is_batch_unverified=any(run.is_batch_unverified for run in runs if run.model == m.id),
            )
            for m in plan.models
        ),
        application=ApplicationCard(application.name, application.digest, application.rendering),
        techniques=tuple(_card(plan.probes, name) for name in cells.techniques),
        attacks=plan.attacks,
        samples=plan.samples,
        seed=plan.seed,
        n_trials=plan.n_trials,
        n_asked=int(np.count_nonzero(seen.outcomes)),
        n_errors=int(np.count_nonzero(seen.outcomes == ERROR)),
        n_skipped=int(np.count_nonzero(seen.outcomes == SKIPPED)),
        n_unclear=int(np.count_nonzero(seen.outcomes == UNCLEAR)),
        rates=rates,
        manners=tuple(_manners(plan, seen)),
        pairs=tuple(p for m in MEASURES for p in pairs(cells, m, SCOPES[m])),
        technique_pairs=tuple(p for m in MEASURES for p in pairs(cells, m, cells.techniques)),
        judges=errors.quality(),
        judge=errors.judge,
        panel=panel(plan, folder, errors.judge),
        corrected_by=errors.labels(),
        skipped=plan.skipped,
        circumstances=_circumstances(runs),
        sequential=sequential.Rule(plan, seen.outcomes).replay().record() if plan.is_until_decided else None,
        curves=attack_cost.curves(plan, seen.outcomes),
        costs=attack_cost.costs(plan, folder, seen, rates),
        edges=tuple(e for m in MEASURES for e in inheritances(cells, m, SCOPES[m])),
        technique_edges=tuple(
            e for m in MEASURES for e in inheritances(cells, m, cells.techniques) if e.compared.n
        ),
    )


# --- rates ---------------------------------------------------------------------------------------


def _rates(cells: Cells) -> Iterator[Rate]:
    for m in range(len(cells.plan.models)):
        for measure in MEASURES:
            for technique in (*SCOPES[measure], *cells.techniques):
                if probes := cells.probes(technique, measure):
                    for attack in (ALL, *cells.plan.attacks):
                        yield _rate(cells, m, technique, attack, measure, probes)


def _rate(cells: Cells, m: int, technique: str, attack: str, measure: Measure, probes: list[int]) -> Rate:
    plan, codes = cells.plan, cells.outcomes(m, attack, probes)
    n_held, n_broke, n_unclear, n_error, n_skipped = (
        int(np.count_nonzero(codes == code)) for code in (HELD, BROKE, UNCLEAR, ERROR, SKIPPED)
    )
    is_decided, places = (codes == HELD) | (codes == BROKE), cells.places(m, attack, probes)
    broke, clusters = codes[is_decided] == BROKE, cells.clusters(attack, probes)[is_decided]
    judged = {measure == "over_refusal" or plan.probes[i].check.kind == "refusal" for i in probes}
    n = n_held + n_broke + n_unclear
    found = rate_method(plan)(broke, clusters, plan.confidence)
    corrected = cells.errors.corrected(broke, clusters, measure, plan, found) if judged == {True} else ()
    return Rate(
        model=plan.models[m].id,
        technique=technique,
        attack=attack,
        measure=measure,
        estimate=found,
        corrected=corrected[0].corrected if corrected else None,
        worst_case=Bounds(n_broke / n, (n_broke + n_unclear) / n) if n else None,
        n_held=n_held,
        n_broke=n_broke,
        n_unclear=n_unclear,
        n_error=n_error,
        is_judge_free=judged == {False},
        by_family=tuple(corrected[1:]),
        by_labels=_by_labels(cells, broke, places[is_decided]) if judged == {True} else None,
        n_skipped=n_skipped,
    )


def _by_labels(cells: Cells, broke: NDArray[np.bool_], at: NDArray[np.intp]) -> Estimate | None:
    if cells.labels is None:
        return None
    if cells.plan.is_until_decided:
        why = "where answers decided how many there are, labels give no interval"
        return refused(cells.labels.count(at), why)
    return cells.labels.rate(broke, at, cells.plan.confidence)


# --- the rest -------------------------------------------------------------------------------------


def _card(probes: Sequence[Probe], name: str) -> TechniqueCard:
    own = [probe for probe in probes if probe.technique == name]
    breach = [probe for probe in own if probe.kind == "breach"]
    threats = tuple(dict.fromkeys(threat for probe in breach or own for threat in probe.threats))
    is_judge_free = bool(breach) and all(probe.check.kind != "refusal" for probe in breach)
    is_baseline = all(probe.is_baseline for probe in own)
    return TechniqueCard(name, threats, is_judge_free, len(breach), len(own) - len(breach), is_baseline)


def _manners(plan: Plan, seen: Seen) -> Iterator[Manners]:
    shape = (len(plan.models), len(plan.attacks), len(plan.probes), plan.samples)
    outcomes, manners = seen.outcomes.reshape(shape), seen.manners.reshape(shape)
    for kind in ("breach", "benign"):
        if of := [i for i, probe in enumerate(plan.probes) if probe.kind == kind]:
            for m, model in enumerate(plan.models):
                counts = np.bincount(manners[m][:, of].ravel(), minlength=5)
                n_error = int(np.count_nonzero(outcomes[m][:, of] == ERROR))
                refusal, compliance, incoherent, empty = (int(c) for c in counts[1:5])
                yield Manners(model.id, kind, refusal, compliance, incoherent, empty, n_error)


def _engines(runs: Sequence[Run], model: str) -> str:
    return "; ".join(dict.fromkeys(run.engine for run in runs if run.model == model))


def _circumstances(runs: Sequence[Run]) -> Circumstances:
    if not runs:
        return Circumstances("", "", 0.0, 0, {})
    seconds, n_cached = round(sum(r.seconds for r in runs), 3), sum(r.n_cached for r in runs)
    last = runs[-1]
    return Circumstances(last.at, last.host, seconds, n_cached, last.versions, _accounts(runs))


def _accounts(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By model what its runs told: numbers added up, lists joined in the order in which they were told."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, told in run.account.items():
            mine = found.setdefault(run.model, {})
            if isinstance(told, list):
                mine[name] = list(dict.fromkeys([*mine.get(name, []), *told]))
            elif isinstance(told, int | float):
                mine[name] = round(mine.get(name, 0) + told, 6)
    return found
