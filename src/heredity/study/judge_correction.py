"""The judge that decided where no check did, what is known of its errors, and the rates corrected by it.

Promises: a judge's rates are corrected by that judge's own errors and by no other's; where none was measured
the correction is refused, in words; what the user measured comes before what is shipped.
Leaves to others: the formulas (stats/), measuring a judge (judges/), labels of the run itself (labels.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.errors import Damaged
from heredity.core.records import ROW_SCHEMA, Estimate, Outcome
from heredity.core.rows import Rows
from heredity.redteam import judges
from heredity.stats.agreement import cohens_kappa
from heredity.stats.intervals import cluster_sums, rate_worth, refused, wilson
from heredity.stats.paired import Table
from heredity.stats.sequential import worth_of
from heredity.study.estimates import Measure, MemberPair, MemberRate, Panel, Relabelled, Table2x2
from heredity.study.plan import Plan

Task = Literal["harm", "refusal"]
TASKS: dict[Measure, Task] = {"breach": "harm", "over_refusal": "refusal"}


class Errors:
    """One judge, and the calibrations that correct its rates; the user's own lie in the study's folder."""

    def __init__(self, judge: str, judged_by: str, folder: Path) -> None:
        self.judge, self._judged_by, self._folder = judge, judged_by, folder
        self._known = {task: judges.calibrations(task, judge, judged_by, folder) for task in TASKS.values()}

    @classmethod
    def of(cls, seen: Mapping[str, str], folder: Path, root: Path | None) -> Self:
        """Of the judges in the verdict rows, with the digest of each.

        What the user measured of it is copied from the store `root` into the folder, so that the folder says
        by itself what its numbers come from. Raises Damaged for the rows of two judges.
        """
        found = {judge: judged_by for judge, judged_by in seen.items() if judge != "checks"}
        if len(found) > 1:
            raise Damaged(
                f"The verdicts are of {len(found)} judges ({', '.join(sorted(found))}); one study has one."
                " Run it again with --judge and the one that you want."
            )
        judge, judged_by = next(iter(found.items()), ("", ""))
        if root is not None and judge:
            judges.copy_calibrations(root, folder, judge, judged_by)
        return cls(judge, judged_by, folder)

    def labels(self) -> dict[str, str]:
        """By task whose labels correct this judge."""
        return {task: known[0].labels for task, known in sorted(self._known.items()) if known}

    def quality(self) -> tuple[judges.JudgeQuality, ...]:
        """What was measured of this judge: on the user's labels first, then what is shipped."""
        shipped = tuple(row for row in judges.quality() if row.judge == self.judge)
        own = judges.measured_by_user(self.judge, self._judged_by, self._folder, TASKS.values())
        return (*own, *shipped)

    def corrected(
        self,
        broke: NDArray[np.bool_],
        clusters: NDArray[np.intp],
        measure: Measure,
        plan: Plan,
        found: Estimate,
    ) -> list[Relabelled]:
        """The rate `found`, corrected by all labels, then by each family's alone; empty without verdicts."""
        if not broke.size:
            return []
        task = TASKS[measure]
        if not self._known[task]:
            return [Relabelled("", refused(broke.size, self._why_not(task)))]
        worth = rate_worth(cluster_sums(broke, clusters)).at(plan.confidence)
        if plan.is_until_decided:
            worth = worth_of(found, plan.confidence)  # as many trials as give an interval as wide as that one
        k, n = int(broke.sum()), broke.size

        def by(labels: judges.Calibration) -> Estimate:
            counts = (labels.sens_k, labels.sens_n, labels.spec_k, labels.spec_n)
            return stats.rogan_gladen(k, n, *counts, confidence=plan.confidence, n_effective=worth)

        return [Relabelled(each.labels, by(each)) for each in self._known[task]]

    def _why_not(self, task: Task) -> str:
        return (
            f"the judge '{self.judge}' as it is was never measured on labels of {task} "
            f"(heredity judges calibrate {self.judge} --task {task})"
        )


class _Said(msgspec.Struct):
    """What is read of a verdict row."""

    index: int
    members: dict[str, Outcome] | msgspec.UnsetType = msgspec.UNSET
    schema: int = ROW_SCHEMA


_CODES = {"held": 1, "answered": 1, "broke": 2, "refused": 2}  # 0: not decided
_Codes = NDArray[np.int8]


def panel(plan: Plan, folder: Path, judge: str) -> Panel | None:
    """What the members of a panel said each, and how far they agree; None where the judge is no panel."""
    if not judge.startswith("panel:"):
        return None
    codes: dict[str, _Codes] = {}
    for row in Rows(folder / "verdicts.jsonl", _Said):
        if not isinstance(row.members, msgspec.UnsetType):
            for member, outcome in row.members.items():
                of = codes.setdefault(member, np.zeros(plan.n_trials, np.int8))
                of[row.index] = _CODES.get(outcome, 0)
    is_twin = np.tile(
        np.repeat([probe.kind == "benign" for probe in plan.probes], plan.samples),
        len(plan.models) * len(plan.attacks),
    )
    rates, pairs = [], []
    for measure, where in (("breach", ~is_twin), ("over_refusal", is_twin)):
        rates += [r for member, of in codes.items() for r in _member_rates(plan, member, of * where, measure)]
        pairs += [
            _member_pair(a, b, codes[a] * where, codes[b] * where, measure) for a, b in combinations(codes, 2)
        ]
    return Panel(tuple(rates), tuple(pairs))


def _member_rates(plan: Plan, member: str, codes: _Codes, measure: str) -> Iterator[MemberRate]:
    by_model = codes.reshape(len(plan.models), -1)
    for model, of in zip(plan.models, by_model, strict=True):
        broke, n = int(np.count_nonzero(of == 2)), int(np.count_nonzero(of))
        yield MemberRate(model.id, member, cast(Measure, measure), wilson(broke, n, plan.confidence))


def _member_pair(a: str, b: str, one: _Codes, two: _Codes, measure: str) -> MemberPair:
    both = (one > 0) & (two > 0)
    x, y = one[both] == 2, two[both] == 2
    counts = [int(np.count_nonzero(cells)) for cells in (x & y, x & ~y, ~x & y, ~x & ~y)]
    return MemberPair(a, b, cast(Measure, measure), Table2x2(*counts), cohens_kappa(Table(*counts)))
