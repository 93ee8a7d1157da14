"""A statistic of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import heredity as h


class MarkRow(h.Record, frozen=True):
    """How many trials of a model have a verdict."""

    model: str
    n: int


class MarkFinding:
    """Counts the trials of each model that a judge or a check gave a verdict."""

    NAME, ORDER, Row = "marks", 1000, MarkRow

    def compute(self, evidence: h.StudyEvidence) -> Iterable[MarkRow]:
        answered = evidence.outcomes.answered.reshape(evidence.plan.shape)  # model, attack, probe, sample
        for model, of_model in zip(evidence.plan.models, answered, strict=True):
            yield MarkRow(model.id, int(of_model.sum()))  # not errors, and not what was not asked

    def show(self, rows: Sequence[MarkRow], study: h.RecordedStudy) -> h.Section | None:
        if not rows:
            return None
        names = {model.id: model.name for model in study.plan.models}
        cells = [[names[row.model], str(row.n)] for row in rows]
        return h.Section(
            name=self.NAME,
            title="Trials with a verdict",
            claim="Errors have none.",
            tables=(h.TextTable("Trials with a verdict", ["model", "n"], cells),),
            sentences=(f"{sum(row.n for row in rows)} trials of all models have a verdict.",),
        )
