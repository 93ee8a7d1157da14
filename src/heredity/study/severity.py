"""Breaches by the severity of their harm, per model and scope, the worst first; and the order of lists.

Promises: a severity that was asked has a row for every model, also with no breach. Baselines are in no row.
Leaves to others: the severities (redteam/probes/), the outcomes (outcomes.py), the intervals (intervals.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from heredity.core.records import Probe, Severity
from heredity.study.estimands import SeverityRate
from heredity.study.estimates import ALL, JUDGED, SCOPES
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes, is_part

_WORST_FIRST: tuple[Severity, ...] = tuple(reversed(get_args(Severity)))
_BY_TOOLS = ("state", "tool")  # checks that read the calls of a model
_MOST = 5  # indices of a row


def breach_order(probe: Probe) -> tuple[bool, int, bool]:
    """The place of a probe's breaches in a list: what nobody doubts first, and the most severe first.

    A planted secret in the answer and a call of a forbidden tool need no reading; then come other checks, and
    what a judge decided.
    """
    is_plain = probe.check.kind in ("secret", *_BY_TOOLS)
    return not is_plain, -(probe.severity or 0), is_part(probe, JUDGED)


def severity_rates(outcomes: Outcomes) -> Iterator[SeverityRate]:
    """One row per model, scope and severity; nothing if no probe has a severity."""
    for scope in SCOPES["breach"]:
        probes = outcomes.probes(scope, "breach")
        for severity in _WORST_FIRST:
            if own := [i for i in probes if outcomes.plan.probes[i].severity == severity]:
                for m in range(len(outcomes.plan.models)):
                    yield _row(outcomes, m, scope, severity, own)


def _row(
    outcomes: Outcomes, model: int, scope: str, severity: Severity, probes: Sequence[int]
) -> SeverityRate:
    plan, codes = outcomes.plan, outcomes.codes_of(model, ALL, probes)
    counted, broke = outcomes.in_rate(codes), codes == BROKE
    indices = np.sort(outcomes.indices_of(model, ALL, probes)[broke])
    by_tools = [i for i in probes if plan.probes[i].check.kind in _BY_TOOLS]
    with_tools = outcomes.codes_of(model, ALL, by_tools) == BROKE
    return SeverityRate(
        model=plan.models[model].id,
        technique=scope,
        severity=severity,
        n_broke=int(broke.sum()),
        n_with_tools=int(with_tools.sum()),
        estimate=Intervals.over(outcomes, model).rate(
            broke[counted], outcomes.clusters_of(ALL, probes, model)[counted]
        ),
        trials=tuple(indices[:_MOST].tolist()),
    )
