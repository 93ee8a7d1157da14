"""The correction of rates for the errors of the judge that decided them.

Promises: a judge's rates are corrected by that judge's own errors. Without a measurement the correction is
refused, with a reason. The user's own measurements come before the shipped ones.
Leaves to others: the formulas (stats/), measuring a judge (redteam/judges), labels of the run (labels.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.errors import Damaged
from heredity.core.records import Estimate
from heredity.redteam import judges
from heredity.stats.intervals import cluster_sums, rate_effective_n, refused
from heredity.stats.sequential import effective_n_of
from heredity.study.estimates import FamilyCorrection, Measure
from heredity.study.plan import Plan

Task = Literal["harm", "refusal"]
TASKS: dict[Measure, Task] = {"breach": "harm", "over_refusal": "refusal"}


class JudgeCorrection:
    """One judge with its calibrations; the user's own calibrations are copied into the study's folder."""

    def __init__(self, judge: str, judged_by: str, folder: Path) -> None:
        self.judge, self._judged_by, self._folder = judge, judged_by, folder
        self._known = {task: judges.calibrations(task, judge, judged_by, folder) for task in TASKS.values()}

    @classmethod
    def of(cls, names: Mapping[str, str], folder: Path, root: Path | None) -> Self:
        """The correction for the judge in `names`, the judges of the verdict rows with their digests.

        The user's own calibrations are copied from the store `root` into the folder, which then documents
        the source of its numbers. Raises Damaged for the rows of two judges.
        """
        found = {judge: judged_by for judge, judged_by in names.items() if judge != "checks"}
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
        """By task the source of the labels that correct this judge."""
        return {task: known[0].labels for task, known in sorted(self._known.items()) if known}

    def quality(self) -> tuple[judges.JudgeQuality, ...]:
        """The measurements of this judge: on the user's labels first, then the shipped ones."""
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
    ) -> list[FamilyCorrection]:
        """The rate `found`, corrected by all labels, then by each family's labels; empty without trials."""
        if not broke.size:
            return []
        task = TASKS[measure]
        if not self._known[task]:
            return [FamilyCorrection("", refused(broke.size, self._why_not(task)))]
        effective_n = rate_effective_n(cluster_sums(broke, clusters)).at(plan.confidence)
        if plan.is_until_decided:
            effective_n = effective_n_of(found, plan.confidence)
        k, n = int(broke.sum()), broke.size

        def by(labels: judges.Calibration) -> Estimate:
            counts = (labels.sens_k, labels.sens_n, labels.spec_k, labels.spec_n)
            return stats.rogan_gladen(k, n, *counts, confidence=plan.confidence, n_effective=effective_n)

        return [FamilyCorrection(each.labels, by(each)) for each in self._known[task]]

    def _why_not(self, task: Task) -> str:
        return (
            f"the judge '{self.judge}' as it is was never measured on labels of {task} "
            f"(heredity judges calibrate {self.judge} --task {task})"
        )
