"""The members of a panel under a declared analysis: their rates have clusters, their kappa its confidence."""

from __future__ import annotations

import msgspec
import numpy as np

from heredity.core.records import Check, Probe
from heredity.study.estimates import JUDGED
from heredity.study.findings import panel
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Analysis, Plan
from tests.support.findings import rows_of
from tests.support.small_study import small_plan


def plan_of(samples: int = 4, n: int = 20, attacks: int = 1, kind: str = "marker", per: int = 1) -> Plan:
    probes = tuple(
        Probe(f"t/{i}", "t", "breach", ("Do it.",), Check(kind, text="zorq"), str(i // per)) for i in range(n)
    )
    names = ("direct", "prefill", "roleplay")[:attacks]
    return msgspec.structs.replace(small_plan(samples), attacks=names, probes=probes, analysis=Analysis())


def test_a_panel_member_has_clusters_and_the_confidence_of_a_declared_plan() -> None:
    plan = msgspec.structs.replace(plan_of(1, 40, kind="refusal", per=10), confidence=0.8)
    opinions = np.tile(np.repeat(np.array([BROKE, HELD], np.int8), 20), 2)
    other = opinions.copy()
    other[::5] = HELD
    members = {"one": opinions, "two": other}
    declared = rows_of(panel.compute, Outcomes(plan), members=members)
    older = msgspec.structs.replace(plan, analysis=None)
    before = rows_of(panel.compute, Outcomes(older), members=members)
    rate, was = declared[0].estimate, before[0].estimate
    assert rate.value == was.value == 0.5 and rate.n_clusters == 4 and was.n_clusters is None
    assert rate.low is not None and was.low is not None and rate.low < was.low
    pair, pair_was = (next(row for row in rows if row.other) for rows in (declared, before))
    kappa, kappa_was = pair.estimate, pair_was.estimate
    assert kappa.value == kappa_was.value
    assert kappa.low is not None and kappa_was.low is not None and kappa.low > kappa_was.low
    assert pair.measure == "breach" and JUDGED in Outcomes(plan).breach_scopes
