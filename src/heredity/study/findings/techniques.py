"""Rates by technique, shrunk towards each other, with a prediction for a new technique.

Promises: the scope is the one that the headline rests on. A rate for these techniques and a prediction for
another one are two numbers. The same study gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import ModelName, Section, TextTable
from heredity.stats.technique_rates import technique_rates
from heredity.study.estimates import ALL, JUDGE_FREE
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.findings.samples import MAX_MODELS
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE
from heredity.study.wording import NONE, interval, names, percent, title

NAME, ORDER = "techniques", 72
_CLAIM = (
    "Each rate is drawn towards the model's other techniques (mixed-effects logit). The last row predicts"
    " one more technique of this kind, which nobody asked. It is wide if techniques differ or are few."
)
_LAST = {"mean": "Mean of these techniques", "new": "A new technique (prediction)"}


class TechniqueRate(Record, frozen=True):
    """The rate of a model in one technique, shrunk towards its other techniques (mixed-effects logit).

    kind: of one "technique"; the "mean" rate of these, each with the same weight; or of a "new" one. The
    last is a prediction, so it is wide.
    sigma_technique, sigma_behaviour: in the row "mean", standard deviations of techniques, and of behaviours
    within one, on the logit scale. Below three techniques they are None and every rate is refused.
    """

    model: str
    scope: str
    technique: str  # "" unless kind is "technique"
    kind: Literal["technique", "mean", "new"]
    estimate: Estimate
    sigma_technique: float | None = None
    sigma_behaviour: float | None = None


Row = TechniqueRate


def compute(evidence: StudyEvidence) -> Iterator[TechniqueRate]:
    """By model, in the headline's scope; nothing for a plan that declares no analysis."""
    outcomes, plan = evidence.outcomes, evidence.plan
    if plan.analysis is None or len(plan.models) > MAX_MODELS:
        return
    scope = next(iter(outcomes.breach_scopes), JUDGE_FREE)
    probes = outcomes.probes(scope, "breach")
    for m, model in enumerate(plan.models):
        codes = outcomes.scored_of(m, ALL, probes)
        counted = outcomes.in_rate(codes)
        if plan.application.decoding.temperature == 0:
            by_prompt = counted.reshape(-1, plan.samples)
            counted = np.asarray(by_prompt & (np.cumsum(by_prompt, axis=1) == 1)).ravel()
        techniques = outcomes.techniques_of(ALL, probes)[counted]
        if not techniques.size:
            continue
        clusters = outcomes.clusters_of(ALL, probes, m)[counted]
        confidence = Intervals.over(outcomes, m).confidence
        shrunk = technique_rates(codes[counted] == BROKE, techniques, clusters, confidence)
        for place, estimate in zip(np.unique(techniques), shrunk.techniques, strict=True):
            yield TechniqueRate(model.id, scope, outcomes.techniques[place], "technique", estimate)
        sigmas = shrunk.sigma_technique, shrunk.sigma_behaviour
        yield TechniqueRate(model.id, scope, "", "mean", shrunk.bank_mean, *sigmas)
        yield TechniqueRate(model.id, scope, "", "new", shrunk.new_technique)


def show(rows: Sequence[TechniqueRate], study: RecordedStudy) -> Section | None:
    """A table of technique by model; None if nothing was estimated, as with a single technique."""
    if not any(row.estimate.value is not None for row in rows):
        return None
    called, heading = names(study.estimates.models), "These techniques, and a new one"
    by_cell = {(row.kind, row.technique, row.model): row.estimate for row in rows}
    models = list(dict.fromkeys(row.model for row in rows))
    keys = sorted(dict.fromkeys((row.kind, row.technique) for row in rows), key=lambda key: key[0] in _LAST)
    cells = [
        [_LAST.get(kind) or title(technique), *(_cell(by_cell.get((kind, technique, m))) for m in models)]
        for kind, technique in keys
    ]
    head: list[str | ModelName] = ["technique", *(ModelName(model, called[model]) for model in models)]
    return Section(NAME, heading, _CLAIM, (TextTable(heading, head, cells),))


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return NONE
    return f"{percent(estimate.value)} ({interval(estimate)})"
