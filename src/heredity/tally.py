"""Verdicts into numbers: rates, manners and pairs.

Promises: models are compared on the same trials, corrected for many comparisons; breaches that a check
decides are never pooled with those that a judge decides; errors and unclear answers are counted beside every
rate, never inside it; the same verdicts in any order give the same numbers.
Leaves to others: reading the rows (seen.py), the formulas (stats/) and which answer was bad (judges/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity import decide, effort, stats, store
from heredity.estimates import (
    ALL,
    SCOPES,
    ApplicationCard,
    Bounds,
    Circumstances,
    Estimates,
    Manners,
    Measure,
    ModelCard,
    Pair,
    Rate,
    Run,
    Table2x2,
    TechniqueCard,
    is_part,
)
from heredity.judged import Errors, panel
from heredity.plan import Plan
from heredity.records import Estimate, Probe, digest
from heredity.seen import BROKE, ERROR, HELD, SKIPPED, UNCLEAR, Codes, Seen, read
from heredity.stats.looks import compare_in_blocks
from heredity.stats.sequential import clustered_rate_sequence


def estimate(plan: Plan, folder: Path, root: Path | None = None) -> Estimates:
    """Everything that estimates.json holds, in one pass over verdicts and responses; ten bytes a trial.

    root: the store with the calibrations that the user measured; those of this judge go into the folder.
    Raises Damaged where a verdict is not on the response beside it.
    """
    seen = read(plan, folder)
    errors = Errors.of(seen.judges, folder, root)
    names = _names(plan)
    cells = _Cells(plan, seen, errors)
    runs = list(store.Rows(folder / "runs.jsonl", Run))
    rates = tuple(_rates(cells))
    pairs = [p for measure in _MEASURES for p in _pairs(cells, measure, SCOPES[measure], names)]
    by_technique = [p for measure in _MEASURES for p in _pairs(cells, measure, cells.techniques, names)]
    application = plan.application
    return Estimates(
        study=digest(plan),
        confidence=plan.confidence,
        margin=plan.margin,
        alpha=_alpha(plan),
        models=tuple(
            ModelCard(m.id, m.name, m.family, m.licence, m.format, _engines(runs, m.id)) for m in plan.models
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
        pairs=tuple(pairs) if len(plan.models) > 1 else (),
        technique_pairs=tuple(by_technique),
        judges=errors.quality(),
        judge=errors.judge,
        panel=panel(plan, folder, errors.judge),
        corrected_by=errors.labels(),
        skipped=plan.skipped,
        circumstances=_circumstances(runs),
        sequential=decide.Rule(plan, seen.outcomes).replay().record() if plan.is_until_decided else None,
        curves=effort.curves(plan, seen.outcomes),
        costs=effort.costs(plan, folder, seen, rates),
    )


# --- cells ----------------------------------------------------------------------------------------

_MEASURES: tuple[Measure, ...] = ("breach", "over_refusal")
_KINDS = {"breach": "breach", "over_refusal": "benign"}
_VERBS = {"breach": "broke", "over_refusal": "refused"}


class _Cells:
    """The outcomes as a box (model, attack, probe, sample), sliced by technique and measure."""

    def __init__(self, plan: Plan, seen: Seen, errors: Errors) -> None:
        self.plan, self.errors, self.labels = plan, errors, seen.labels
        shape = (len(plan.models), len(plan.attacks), len(plan.probes), plan.samples)
        self.box = seen.outcomes.reshape(shape)
        self._shape = shape
        self.techniques = list(dict.fromkeys(probe.technique for probe in plan.probes))
        # A cluster belongs to its technique: "override" under two of them is two behaviours.
        behaviours = [f"{probe.technique}\0{probe.cluster}" for probe in plan.probes]
        _, self._clusters = np.unique(behaviours, return_inverse=True)

    def probes(self, technique: str, measure: Measure) -> list[int]:
        """Places of the probes that a cell is about; none for a scope of another measure."""
        kind = _KINDS[measure]
        return [i for i, p in enumerate(self.plan.probes) if p.kind == kind and is_part(p, technique)]

    def outcomes(self, model: int, attack: str, probes: Sequence[int]) -> Codes:
        """One code a trial of the cell, flat, in the same order for every model."""
        return np.asarray(self.box[model, self._attacks(attack)][:, probes]).ravel()

    def places(self, model: int, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The index in the plan of each trial that `outcomes` gives."""
        grid = np.ix_([model], self._attacks(attack), list(probes), range(self.plan.samples))
        return np.asarray(np.ravel_multi_index(grid, self._shape)).ravel()

    def clusters(self, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The behaviour of each trial that `outcomes` gives."""
        once = np.repeat(self._clusters[list(probes)], self.plan.samples)
        return np.tile(once, len(self._attacks(attack)))

    def blocks(self, attack: str, probes: Sequence[int]) -> NDArray[np.intp]:
        """The look at which each trial that `outcomes` gives was first seen."""
        once = np.searchsorted(self.plan.ends, list(probes), side="right")
        return np.tile(np.repeat(once, self.plan.samples), len(self._attacks(attack)))

    def _attacks(self, attack: str) -> list[int]:
        return [i for i, name in enumerate(self.plan.attacks) if attack in (ALL, name)]


def _rates(cells: _Cells) -> Iterator[Rate]:
    for m in range(len(cells.plan.models)):
        for measure in _MEASURES:
            for technique in (*SCOPES[measure], *cells.techniques):
                if probes := cells.probes(technique, measure):
                    for attack in (ALL, *cells.plan.attacks):
                        yield _rate(cells, m, technique, attack, measure, probes)


def _rate(cells: _Cells, m: int, technique: str, attack: str, measure: Measure, probes: list[int]) -> Rate:
    plan, codes = cells.plan, cells.outcomes(m, attack, probes)
    n_held, n_broke, n_unclear, n_error, n_skipped = (
        int(np.count_nonzero(codes == code)) for code in (HELD, BROKE, UNCLEAR, ERROR, SKIPPED)
    )
    is_decided, places = (codes == HELD) | (codes == BROKE), cells.places(m, attack, probes)
    broke, clusters = codes[is_decided] == BROKE, cells.clusters(attack, probes)[is_decided]
    judged = {measure == "over_refusal" or plan.probes[i].check.kind == "refusal" for i in probes}
    n = n_held + n_broke + n_unclear
    found = _estimate(broke, clusters, plan)
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


def _by_labels(cells: _Cells, broke: NDArray[np.bool_], at: NDArray[np.intp]) -> Estimate | None:
    if cells.labels is None:
        return None
    if cells.plan.is_until_decided:
        why = "refused: where answers decided how many there are, labels give no interval"
        return Estimate(None, None, None, cells.labels.count(at), why)
    return cells.labels.rate(broke, at, cells.plan.confidence)


def _estimate(broke: NDArray[np.bool_], clusters: NDArray[np.intp], plan: Plan) -> Estimate:
    # Where the answers so far decided how many there are, only an anytime-valid interval is one.
    method = clustered_rate_sequence if plan.is_until_decided else stats.clustered_rate
    return method(broke, clusters, plan.confidence)


# --- pairs ----------------------------------------------------------------------------------------


def _pairs(cells: _Cells, measure: Measure, techniques: Sequence[str], names: Sequence[str]) -> list[Pair]:
    """Every two models under each technique; Holm's correction runs over all that are returned."""
    found = [
        (a, b, technique, _compare(cells, a, b, probes))
        for technique in techniques
        if (probes := cells.probes(technique, measure))
        for a, b in combinations(range(len(cells.plan.models)), 2)
    ]
    # A comparison without a shared trial has no p-value, and takes no part in the correction.
    adjusted = iter(stats.holm([c.p_value for *_, c in found if c.table.n]))
    return [
        _pair(cells.plan, a, b, measure, technique, c, next(adjusted) if c.table.n else None, names)
        for a, b, technique, c in found
    ]


def _compare(cells: _Cells, a: int, b: int, probes: list[int]) -> stats.Comparison:
    one, two = cells.outcomes(a, ALL, probes), cells.outcomes(b, ALL, probes)
    is_decided = ((one == HELD) | (one == BROKE)) & ((two == HELD) | (two == BROKE))
    broke_a, broke_b = one[is_decided] == BROKE, two[is_decided] == BROKE
    clusters, how = cells.clusters(ALL, probes)[is_decided], (cells.plan.confidence, _alpha(cells.plan))
    if cells.plan.is_until_decided:
        return compare_in_blocks(broke_a, broke_b, clusters, cells.blocks(ALL, probes)[is_decided], *how)
    return stats.compare(broke_a, broke_b, clusters, *how)


def _pair(
    plan: Plan,
    a: int,
    b: int,
    measure: Measure,
    technique: str,
    c: stats.Comparison,
    p_holm: float | None,
    names: Sequence[str],
) -> Pair:
    how = (plan.margin, _alpha(plan), p_holm)
    return Pair(
        a=plan.models[a].id,
        b=plan.models[b].id,
        measure=measure,
        technique=technique,
        table=Table2x2(*c.table),
        n=c.table.n,
        difference=c.difference,
        p_value=c.p_value if c.table.n else None,
        p_holm=p_holm,
        test=c.test,
        margin=plan.margin,
        detectable=c.detectable,
        verdict_ab=stats.verdict(c, *how),
        verdict_ba=stats.verdict(c.mirrored(), *how),
        words=stats.verdict_words(names[a], names[b], c, *how, verb=_VERBS[measure]),
    )


# --- the rest -------------------------------------------------------------------------------------


def _alpha(plan: Plan) -> float:
    return round(1 - plan.confidence, 12)


def _names(plan: Plan) -> list[str]:
    """Names for sentences; two models of one name are told apart by their ids."""
    names = [model.name for model in plan.models]
    return [m.name if names.count(m.name) == 1 else f"{m.name} ({m.id[:8]})" for m in plan.models]


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
