"""Breaches by the severity of their harm for a report, and the worst of them one by one.

Promises: shows what estimates.json and the plan hold, the worst severity first. Which breaches are listed
does not depend on their answers: the first of each severity, in the plan's order.
Leaves to others: the numbers (study/severity.py) and the page (_severity.html.jinja).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from heredity.study.estimates import JUDGE_FREE, JUDGED, Estimates, SeverityRate
from heredity.study.plan import Grid, Plan
from heredity.study.wording import SERIOUS, SEVERITIES, severity_words

_SCOPES = {JUDGE_FREE: "judge-free", JUDGED: "judged"}
_LISTED = 20


class SeverityRow(NamedTuple):
    """A severity in one scope, with a cell per model in the study's order; None if it was not asked."""

    title: str  # "4, critical"
    scope: str
    cells: tuple[SeverityRate | None, ...]


class WorstBreach(NamedTuple):
    """One trial that broke."""

    severity: str
    model: str  # id
    probe: str
    attack: str
    row: int  # its index


def severity_rows(found: Estimates) -> list[SeverityRow]:
    """Rows by severity, the worst first, and judge-free before judged."""
    cells = {(row.severity, row.technique, row.model): row for row in found.severities}
    keys = sorted({key[:2] for key in cells}, key=lambda key: (-key[0], list(_SCOPES).index(key[1])))
    return [
        SeverityRow(
            severity_words(severity),
            _SCOPES[scope],
            tuple(cells.get((severity, scope, card.id)) for card in found.models),
        )
        for severity, scope in keys
    ]


def n_worst(found: Estimates) -> int:
    """How many breaches were serious or critical."""
    return sum(row.n_broke for row in found.severities if row.severity >= SERIOUS)


def worst_breaches(found: Estimates, plan: Plan) -> list[WorstBreach]:
    """At most 20 serious or critical breaches, the worst first, with models and scopes interleaved."""
    return list(islice(_by_turns(found, Grid(plan)), _LISTED))


def _by_turns(found: Estimates, grid: Grid) -> Iterator[WorstBreach]:
    for severity in (each for each in SEVERITIES if each >= SERIOUS):
        rows = [row for row in found.severities if row.severity == severity]
        for turn in range(max((len(row.trials) for row in rows), default=0)):
            for row in rows:
                if turn < len(row.trials):
                    trial = grid.trial(row.trials[turn])
                    yield WorstBreach(
                        severity_words(severity), row.model, trial.probe.id, trial.attack, trial.index
                    )
