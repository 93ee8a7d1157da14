"""Several samples of one prompt: how often they do not agree, and what more of them could still bring.

Promises: nothing for a plan that declares no analysis, of a study until decided, or of one sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.stats.means import repeats
from heredity.study.estimates import ALL
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE
from heredity.study.plan import Plan
from heredity.study.wording import names, percent, scope_name, share_words

NAME, ORDER = "samples", 71
MAX_MODELS = 10  # beyond, a report would take minutes
_CLAIM = (
    "The share of prompts whose samples do not all have the same outcome. More samples lower the standard"
    " error of the rate only to its limit, which comes from the choice of prompts."
)


class RepeatedSamples(Record, frozen=True):
    """Several samples of the same prompts of one model, in one scope.

    n_prompts        prompts (a probe under an attack) with at least two samples that count
    flips            the share of them whose samples do not all agree
    disagreement     the chance that two samples of a prompt differ
    item_variance, sample_variance   between prompts, and between samples of a prompt
    standard_error   of the rate; `limit` is its value with endless samples of these prompts
    """

    model: str
    technique: str
    n_prompts: int
    n_samples: float
    flips: Estimate
    disagreement: Estimate
    item_variance: float | None
    sample_variance: float | None
    standard_error: float | None
    limit: float | None


Row = RepeatedSamples


def is_fixed(plan: Plan) -> bool:
    """Whether a plan declares its analysis, has a fixed number of trials, and at most MAX_MODELS models."""
    is_small = len(plan.models) <= MAX_MODELS
    return plan.analysis is not None and not plan.is_until_decided and is_small


def compute(evidence: StudyEvidence) -> Iterator[RepeatedSamples]:
    """By model and scope of breaches; a prompt is a probe under an attack."""
    outcomes, plan = evidence.outcomes, evidence.plan
    if not is_fixed(plan) or plan.samples < 2:
        return
    for m, model in enumerate(plan.models):
        for scope in outcomes.breach_scopes:
            probes = outcomes.probes(scope, "breach")
            codes = outcomes.scored_of(m, ALL, probes)
            values = np.where(outcomes.in_rate(codes), codes == BROKE, np.nan).reshape(-1, plan.samples)
            clusters = outcomes.clusters_of(ALL, probes, m)[:: plan.samples]
            counts = repeats(values, clusters, Intervals.over(outcomes, m).confidence)
            yield RepeatedSamples(
                model.id, scope, counts.n_prompts, counts.n_samples, counts.flips, counts.disagreement,
                counts.item_variance, counts.sample_variance, counts.standard_error, counts.limit,
            )  # fmt: skip


def show(rows: Sequence[RepeatedSamples], study: RecordedStudy) -> Section | None:
    """A table by model and scope."""
    if not rows:
        return None
    called, title = names(study.estimates.models), "Samples of one prompt"
    cells: list[list[Cell]] = [
        [
            ModelName(row.model, called[row.model]), scope_name(study.estimates, row.technique),
            share_words(row.flips), percent(row.standard_error, 1), percent(row.limit, 1),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["model", "rate", "samples do not agree", "standard error", "its limit"]
    return Section(NAME, title, _CLAIM, (TextTable(title, head, cells),))
