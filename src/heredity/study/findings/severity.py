"""Breaches by the severity of their harm, per model and scope, the worst first.

Promises: a severity that was asked has a row for every model, also with no breach. Baselines are in no row.
Which breaches are listed one by one does not depend on their answers: the first of each severity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import get_args

import numpy as np

from heredity.core.records import Estimate, Record, Severity
from heredity.core.sanitize import plural
from heredity.core.sections import Cell, CountedShare, ModelName, Section, TextTable, TrialLink
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, SCOPES, Estimates
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.outcomes import BROKE, BY_TOOLS
from heredity.study.plan import Grid
from heredity.study.wording import (
    SERIOUS,
    SEVERITIES,
    attack_name,
    interval,
    names,
    severity_words,
    share_words,
)

NAME, ORDER = "severity", 10
MAX_TRIALS = 5  # indices of a row
MAX_LISTED = 20  # breaches one by one
_SCOPES = {JUDGE_FREE: "judge-free", JUDGED: "judged"}
_CLAIM = (
    "The same breaches by how bad each would be. Critical: large, and not to be undone. Serious: "
    "information or money leaves, or data is lost. Limited: within the user's own data. With tools: by a "
    "forbidden call, or a change of the tools' world."
)
_LIST_CLAIM = (
    "The first of each severity, model and kind, in the order in which they were asked. Those with a link"
    " are among the conversations above; heredity show DIR ROW shows any of them."
)


class SeverityRate(Record, frozen=True):
    """The breaches of one severity of harm, of one model in one scope; the worst severity comes first.

    n_with_tools   breaches of them that were done with tools: a forbidden call, or a changed state
    trials         the indices of at most five of them, in the plan's order
    The estimate is over the trials that the plan's endpoint counts.
    """

    model: str
    technique: str  # a scope
    severity: Severity
    n_broke: int
    n_with_tools: int
    estimate: Estimate
    trials: tuple[int, ...]


Row = SeverityRate


def compute(evidence: StudyEvidence) -> Iterator[SeverityRate]:
    """One row per model, scope and severity; nothing if no probe has a severity."""
    outcomes = evidence.outcomes
    broke, counted = outcomes.broke, outcomes.in_rate(outcomes.codes)
    for scope in SCOPES["breach"]:
        probes = outcomes.probes(scope, "breach")
        for severity in reversed(get_args(Severity)):
            if same := [i for i in probes if outcomes.plan.probes[i].severity == severity]:
                for m in range(len(outcomes.plan.models)):
                    plan, indices = outcomes.plan, outcomes.indices_of(m, ALL, same)
                    indices = np.sort(indices[broke[indices]])
                    by_tools = [i for i in same if plan.probes[i].check.kind in BY_TOOLS]
                    with_tools = outcomes.codes_of(m, ALL, by_tools) == BROKE
                    yield SeverityRate(
                        model=plan.models[m].id,
                        technique=scope,
                        severity=severity,
                        n_broke=indices.size,
                        n_with_tools=int(with_tools.sum()),
                        estimate=evidence.share(m, broke, counted, same).estimate,
                        trials=tuple(indices[:MAX_TRIALS].tolist()),
                    )


def show(rows: Sequence[SeverityRate], study: RecordedStudy) -> Section | None:
    """A table of severity by model, and the worst breaches one by one."""
    if not rows:
        return None
    called = names(study.estimates.models)
    cells = {(row.severity, row.technique, row.model): row for row in rows}
    keys = sorted({key[:2] for key in cells}, key=lambda key: (-key[0], list(_SCOPES).index(key[1])))
    table = TextTable(
        "Breaches by severity",
        ["severity", "breaches", *(ModelName(*each) for each in called.items())],
        [
            [severity_words(of), _SCOPES[scope], *(_cell(cells.get((of, scope, model))) for model in called)]
            for of, scope in keys
        ],
    )
    worst = list(islice(_by_turns(rows, study), MAX_LISTED))
    n_worst = sum(row.n_broke for row in rows if row.severity >= SERIOUS)
    summary = (
        f"The worst breaches, one by one: {len(worst)} of {plural(n_worst, 'serious or critical breach')}"
    )
    head = ["severity", "model", "probe", "attack", "row"]
    listed = (TextTable("The worst breaches", head, worst, summary, _LIST_CLAIM),) if worst else ()
    return Section(NAME, "By severity of the harm", _CLAIM, (table, *listed), tuple(_sentences(rows, called)))


def _sentences(rows: Sequence[SeverityRate], called: dict[str, str]) -> Iterator[str]:
    """A sentence for each scope and severity of serious or critical harm, if a model broke at it."""
    for scope, title in _SCOPES.items():
        for severity in (each for each in SEVERITIES if each >= SERIOUS):
            same = [row for row in rows if (row.severity, row.technique) == (severity, scope)]
            if any(row.n_broke for row in same):
                parts = (f"{called[row.model]} {share_words(row.estimate)}" for row in same)
                yield f"{SEVERITIES[severity].capitalize()} harm, {title}: {'; '.join(parts)}."


def _cell(row: SeverityRate | None) -> Cell:
    if row is None:
        return "not asked"
    return CountedShare(
        row.estimate, row.n_broke, f"{row.n_with_tools} with tools" if row.n_with_tools else ""
    )


def _by_turns(rows: Sequence[SeverityRate], study: RecordedStudy) -> Iterator[list[Cell]]:
    grid, called = Grid(study.plan), names(study.estimates.models)
    for severity in (each for each in SEVERITIES if each >= SERIOUS):
        same = [row for row in rows if row.severity == severity]
        for turn in range(max((len(row.trials) for row in same), default=0)):
            for row in (row for row in same if turn < len(row.trials)):
                trial = grid.trial(row.trials[turn])
                attack = attack_name(trial.attack, study.plan.attacks)
                link = TrialLink(trial.index)
                yield [severity_words(severity), called[row.model], trial.probe.id, attack, link]


def worst_harm(estimates: Estimates, models: Sequence[str]) -> tuple[str, ...]:
    """The breaches of the highest severity at which any of these models (ids) broke, in each scope."""
    lines = (_worst_harm_in(scope, estimates, models) for scope in estimates.breach_scopes)
    return tuple(line for line in lines if line)


def _worst_harm_in(scope: str, estimates: Estimates, models: Sequence[str]) -> str:
    called = names(estimates.models)
    rows = [row for row in estimates.rows(NAME, Row) if row.technique == scope and row.model in models]
    worst = max((row.severity for row in rows if row.n_broke), default=0)
    by_model = {row.model: row for row in rows if row.severity == worst}
    parts = []
    for row in (by_model[model] for model in models if model in by_model):
        tools = f", {row.n_with_tools} with tools" if row.n_with_tools else ""
        n = f"{row.n_broke} of {row.estimate.n} ({interval(row.estimate)})"
        parts.append(f"{called[row.model]} {n}{tools}")
    if not parts:
        return ""
    who = "checks" if scope == JUDGE_FREE else "a judge"
    return f"Worst harm that {who} found: {SEVERITIES[worst]} (severity {worst} of 4). {'; '.join(parts)}."
