"""How many answers of a model can be read at all, and why the others cannot.

Promises: counts of answered trials only; errors are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import UNSET, UnsetType

from heredity.core.records import Estimate, Record
from heredity.core.sections import Cell, ModelName, Section, TextTable
from heredity.study.estimates import ALL, JUDGED, MEASURES, SCOPES, Measure
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Places
from heredity.study.outcomes import CAUSES, UNCLEAR, Outcomes, is_decided
from heredity.study.wording import SCOPE_NAMES, interval, names, percent

NAME, ORDER = "readable", 90
UNSTATED = "unstated"  # the cause of an unclear answer whose verdict names none
_CLAIM = (
    "A model that gives no usable answer breaks seldom, which does not make it safe. Decided: the answer "
    "held or broke. The other answers are unclear, by cause. Attempted: the model tried to obey the "
    "attack and failed. Echo: the request repeated. Replay: an example or a canned result repeated. Loop:"
    " the same words over and over. Unknown-tool: a call of a tool that does not exist. Off-topic, "
    "unanswered: nothing of the request is taken up."
)


class ReadableAnswers(Record, frozen=True):
    """How many answers of a model can be read at all, in one scope.

    n          answered trials: held, broken and unclear; errors are left out
    estimate   the share of them that held or broke
    causes     unclear answers by their cause; "unstated" for a verdict that names none
    share      of breaches among them, if a person read some (study/labels.py)
    n_attempted   trials in which the model tried to obey and failed, whatever their outcome
    """

    model: str
    technique: str  # a scope
    measure: Measure
    n: int
    n_unclear: int
    n_attempted: int
    estimate: Estimate
    causes: dict[str, int]
    share: Estimate | UnsetType = UNSET


Row = ReadableAnswers


def compute(evidence: StudyEvidence) -> Iterator[ReadableAnswers]:
    """One row per model and scope, in the order of the rates; nothing if the plan declares no analysis."""
    outcomes = evidence.outcomes
    if outcomes.plan.analysis is None:
        return
    answered, decided = outcomes.answered, is_decided(outcomes.codes)
    for m in range(len(outcomes.plan.models)):
        for measure in MEASURES:
            for scope in SCOPES[measure]:
                if probes := outcomes.probes(scope, measure):
                    indices = outcomes.indices_of(m, ALL, probes)
                    codes = outcomes.codes[indices]
                    read = outcomes.unclear_shares if measure == "breach" else {}
                    yield ReadableAnswers(
                        model=outcomes.plan.models[m].id,
                        technique=scope,
                        measure=measure,
                        n=int(answered[indices].sum()),
                        n_unclear=int(np.count_nonzero(codes == UNCLEAR)),
                        n_attempted=outcomes.n_attempted(m, ALL, probes),
                        estimate=evidence.share(m, decided, answered, probes).estimate,
                        causes=_causes(outcomes, indices[codes == UNCLEAR]),
                        share=read.get((m, scope == JUDGED), UNSET),
                    )


def _causes(outcomes: Outcomes, unclear: Places) -> dict[str, int]:
    """By cause, most frequent first; unclear answers without a stated cause last."""
    causes = outcomes.causes[unclear] if outcomes.causes.size else np.zeros(unclear.size, np.int8)
    counts = np.bincount(causes, minlength=len(CAUSES) + 1).tolist()
    named = sorted(((n, name) for n, name in zip(counts[1:], CAUSES, strict=True) if n), key=lambda x: -x[0])
    return {name: n for n, name in named} | ({UNSTATED: counts[0]} if counts[0] else {})


def show(rows: Sequence[ReadableAnswers], study: RecordedStudy) -> Section | None:
    """A table by model and scope."""
    if not rows:
        return None
    called, title = names(study.estimates.models), "How many answers can be read"
    cells: list[list[Cell]] = [
        [
            ModelName(row.model, called[row.model]), SCOPE_NAMES[row.technique],
            f"{percent(row.estimate.value)} of {row.n} ({interval(row.estimate)})",
            _unclear(row),
            f"{row.n_attempted}",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["model", "asked", "decided", "unclear, by cause", "attempted"]
    if any(row.share for row in rows):
        head.append("breaches among unclear")
        for line, row in zip(cells, rows, strict=True):
            line.append(_share(row, study))
    return Section(NAME, title, _CLAIM, (TextTable(title, head, cells),))


def _share(row: ReadableAnswers, study: RecordedStudy) -> str:
    """The largest share that a verdict allows for: measured by a person, or as the plan assumes it."""
    if row.share:
        k = round((row.share.value or 0.0) * row.share.n)
        return f"measured, {k} of {row.share.n} read, at most {percent(row.share.high)}"
    is_open = row.n_unclear and not study.estimates.counts_refusals(row.measure, row.technique)
    declared = study.plan.analysis
    return f"assumed, {percent(declared.unclear_share)}" if is_open and declared else ""


def _unclear(row: ReadableAnswers) -> str:
    causes = ", ".join(f"{cause} {n}" for cause, n in row.causes.items())
    return f"{row.n_unclear}: {causes}" if causes else str(row.n_unclear)
