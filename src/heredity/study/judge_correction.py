"""Rates corrected for the errors of what decided them: a judge, or the probes' own checks.

    decided by   errors measured on                       a technique or judge without labels
    a judge      labelled answers of several families     "not-measured"
    checks       answers to the shipped probes, read      "not-measured": the raw interval stands; beside
                                                          techniques that were read, the errors of all of them

Promises: every correction has the spread between families of answers. A rate over several techniques is
corrected technique by technique. A plan that declares no analysis is corrected as the releases that made it
did: by pooled labels, and checks not at all. A judge's correction is refused where the study's answers are
unlike all answers that people labelled. At most 200 a model and measure are read for this.
Leaves to others: the labels (redteam/judges/calibration), the formulas (stats/judge_error.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import numpy as np

from heredity.core.errors import Damaged
from heredity.core.records import Estimate
from heredity.redteam import judges
from heredity.redteam.judges import needs_judge
from heredity.redteam.judges.calibration.readings import AnswerForm, summarise, unlike
from heredity.stats.intervals import refused
from heredity.stats.judge_error import combine_strata
from heredity.study.comparisons import MEASURES
from heredity.study.drift import find_drift
from heredity.study.estimates import ALL, FamilyCorrection, JudgeDrift, Measure, Rate
from heredity.study.intervals import Bools, Intervals, Places
from heredity.study.outcomes import Outcomes, is_decided
from heredity.study.plan import Analysis
from heredity.study.storage import RawResponse

MOST = 200  # answers of one model and measure
_KINDS: dict[Measure, str] = {"breach": "breach", "over_refusal": "benign"}


class AnswerSample:
    """Answers that a judge decided, by model and measure."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._plan = outcomes.plan
        self._wanted: dict[int, tuple[str, Measure]] = {}
        self._found: dict[tuple[str, Measure], list[tuple[int, str, str]]] = {}
        for m, model in enumerate(self._plan.models):
            for measure in MEASURES:
                self._want(outcomes, m, (model.id, measure))

    def _want(self, outcomes: Outcomes, m: int, key: tuple[str, Measure]) -> None:
        kind = _KINDS[key[1]]
        probes = [i for i, p in enumerate(self._plan.probes) if p.kind == kind and needs_judge(p)]
        if not probes:
            return
        indices = outcomes.indices_of(m, ALL, probes)
        decided = indices[is_decided(outcomes.codes[indices])]
        places = np.unique(np.linspace(0, decided.size - 1, min(MOST, decided.size)).astype(np.intp))
        self._wanted |= {int(decided[place]): key for place in places}

    def see(self, row: RawResponse) -> None:
        """Keep a response of the sample."""
        key = self._wanted.get(row.index)
        if key is not None and row.exchanges:
            probe = self._plan.probes[row.index // self._plan.samples % len(self._plan.probes)]
            text = msgspec.json.decode(row.exchanges[-1].text, type=str)
            prompt = probe.turns[-1] if probe.turns else ""
            self._found.setdefault(key, []).append((row.index, prompt, text))

    def forms(self) -> dict[tuple[str, Measure], AnswerForm]:
        """The form of the answers, by model id and measure."""
        return {
            key: summarise(key[0], [(asked, text) for _, asked, text in sorted(rows)])
            for key, rows in self._found.items()
        }


def refuse_unlike(
    rates: Iterable[Rate], forms: dict[tuple[str, Measure], AnswerForm], correction: JudgeCorrection
) -> Iterator[Rate]:
    """The rates; a judged one whose model's answers are unlike all labelled ones is not corrected."""
    reasons = {key: unlike(form, correction.families(key[1])) for key, form in forms.items()}
    for rate in rates:
        why = reasons.get((rate.model, rate.measure), "")
        if rate.is_judge_free or not why or rate.corrected is None or rate.corrected.value is None:
            yield rate
            continue
        said = f"{why}. Label some of this study's answers: heredity label"
        corrected = refused(rate.corrected.n, said, "unlike-labels")
        yield msgspec.structs.replace(rate, corrected=corrected, by_family=())


TASKS: dict[Measure, judges.Task] = {"breach": "harm", "over_refusal": "refusal"}
CHECKS = "checks"


class CheckedTrials(NamedTuple):
    """The trials of a rate that checks decided: which broke, with behaviour and technique of each."""

    broke: Bools
    clusters: Places
    techniques: Places


class JudgeCorrection:
    """One judge with its calibrations; the user's own calibrations are copied into the study's folder."""

    def __init__(self, judge: str, judged_by: str, folder: Path, analysis: Analysis | None = None) -> None:
        self.judge, self._judged_by, self._folder, self._analysis = judge, judged_by, folder, analysis
        self._has_checks = False
        self._checks: dict[str, judges.ReadErrors | None] = {}  # errors by technique, each computed once
        self._known = {task: judges.calibrations(task, judge, judged_by, folder) for task in TASKS.values()}
        self._predicted = {
            task: judges.predicted_errors(task, judge, judged_by, folder) for task in TASKS.values()
        }

    @classmethod
    def of(
        cls, names: Mapping[str, str], folder: Path, root: Path | None, analysis: Analysis | None = None
    ) -> Self:
        """The correction for the judge in `names`, the judges of the verdict rows with their digests.

        The user's own calibrations are copied from the store `root` into the folder, which then documents
        the source of its numbers. Raises Damaged for the rows of two judges.
        """
        found = {judge: judged_by for judge, judged_by in names.items() if judge != CHECKS}
        if len(found) > 1:
            raise Damaged(
                f"The verdicts are of {len(found)} judges ({', '.join(sorted(found))}); one study has one."
                " Run it again with --judge and the one that you want."
            )
        judge, judged_by = next(iter(found.items()), ("", ""))
        if root is not None and judge:
            judges.copy_calibrations(root, folder, judge, judged_by)
        made = cls(judge, judged_by, folder, analysis)
        made._has_checks = CHECKS in names
        return made

    def labels(self) -> dict[str, str]:
        """By task the source of the labels that correct this judge."""
        if self._analysis is None:
            return {task: known[0].labels for task, known in sorted(self._known.items()) if known}
        found = {task: errors.labels for task, errors in self._predicted.items() if errors is not None}
        return dict(sorted(found.items()))

    def families(self, measure: Measure) -> tuple[str, ...]:
        """The families of labels that correct this judge's rates; empty before plans declared an analysis."""
        errors = self._predicted[TASKS[measure]] if self._analysis is not None else None
        return tuple(each.labels for each in errors.families) if errors is not None else ()

    def drift(self) -> JudgeDrift | None:
        """The judge against its record; in plans that declared no analysis only if it drifted."""
        found = find_drift(self._folder, self.judge, self._judged_by)
        return found if self._analysis is not None or (found is not None and found.changed) else None

    def quality(self) -> tuple[judges.JudgeQuality, ...]:
        """The measurements of this judge, the user's labels first, then shipped ones; and of the checks."""
        shipped = tuple(row for row in judges.quality() if row.judge == self.judge)
        own = judges.measured_by_user(self.judge, self._judged_by, self._folder, TASKS.values())
        is_known = self._analysis is not None and self._has_checks
        checks = judges.check_quality(self._endpoint_of_checks) if is_known else ()
        return (*own, *shipped, *checks)

    @property
    def _endpoint_of_checks(self) -> judges.Endpoint:
        """How checks count an unclear answer; under "not_refused" as in "all_trials"."""
        is_decided = self._analysis is not None and self._analysis.endpoint == "decided_trials"
        return "decided_trials" if is_decided else "all_trials"

    def corrected(
        self, broke: Bools, clusters: Places, measure: Measure, intervals: Intervals, raw: Estimate
    ) -> list[FamilyCorrection]:
        """The rate `raw` of a judge, corrected by all labels, then by each family's; empty without trials."""
        if not broke.size:
            return []
        task = TASKS[measure]
        if self._analysis is None:
            return self._by_pooled_labels(broke, clusters, task, intervals, raw)
        errors = self._predicted[task]
        if errors is None:
            return [FamilyCorrection("", refused(broke.size, self._why_not(task), "not-measured"))]
        whole = intervals.corrected_for_family(broke, clusters, raw, errors.sens, errors.spec)
        both = [each for each in errors.families if each.sens_n and each.spec_n]
        by_family = [
            FamilyCorrection(each.labels, intervals.corrected(broke, clusters, raw, each))
            for each in (both if len(both) > 1 else ())
        ]
        return [FamilyCorrection(errors.labels, whole), *by_family]

    def _by_pooled_labels(
        self, broke: Bools, clusters: Places, task: judges.Task, intervals: Intervals, raw: Estimate
    ) -> list[FamilyCorrection]:
        if not self._known[task]:
            return [FamilyCorrection("", refused(broke.size, self._why_not(task)))]
        return [
            FamilyCorrection(each.labels, intervals.corrected(broke, clusters, raw, each))
            for each in self._known[task]
        ]

    def of_checks(
        self, trials: CheckedTrials, names: Sequence[str], intervals: Intervals
    ) -> list[FamilyCorrection]:
        """The rate of trials that checks decided, corrected technique by technique; empty without trials.

        names: of the techniques, by their places in `trials`.
        """
        if self._analysis is None or not trials.broke.size:
            return []
        places, n = np.unique(trials.techniques), trials.broke.size
        errors = {place: self._errors_of_checks(names[place]) for place in places}
        missing = [names[place] for place, found in errors.items() if found is None]
        if len(missing) == len(errors):
            return [FamilyCorrection("", refused(n, _why_no_readings(missing), "not-measured"))]
        # Unread techniques must not make the rate look better known than the read ones alone: were the whole
        # left uncorrected, two probes of one's own would take the checks' errors out of a gate. They get the
        # errors of all checks read, at the widest bounds that these or those of a technique beside them give.
        elsewhere = judges.check_errors_elsewhere(self._endpoint_of_checks) if missing else None
        parts, weights = [], []
        for place, known in errors.items():
            own = trials.techniques == place
            if known is None:
                beside = [found for found in errors.values() if found is not None]
                parts.append(_widest(trials, own, [elsewhere or beside[0], *beside], intervals))
            else:
                parts.append(_corrected_stratum(trials, own, known, intervals))
            weights.append(float(np.mean(own)))
        if len(parts) == 1:
            return [FamilyCorrection(CHECKS, parts[0])]
        whole = combine_strata(parts, weights, f"{parts[0].method}, by technique")
        if missing and whole.value is not None:
            whole = msgspec.structs.replace(whole, note=_borrowed(missing))
        return [FamilyCorrection(CHECKS, whole)]

    def _errors_of_checks(self, technique: str) -> judges.ReadErrors | None:
        if technique not in self._checks:
            self._checks[technique] = judges.check_errors(technique, self._endpoint_of_checks)
        return self._checks[technique]

    def _why_not(self, task: judges.Task) -> str:
        return (
            f"the judge '{self.judge}' as it is was never measured on labels of {task} "
            f"(heredity judges calibrate {self.judge} --task {task})"
        )


def _corrected_stratum(
    trials: CheckedTrials, own: Bools, errors: judges.ReadErrors, intervals: Intervals
) -> Estimate:
    """The corrected rate of one technique's trials."""
    broke, clusters = trials.broke[own], trials.clusters[own]
    raw = intervals.rate(broke, clusters)
    return intervals.corrected_for_family(broke, clusters, raw, errors.sens, errors.spec)


def _widest(
    trials: CheckedTrials, own: Bools, errors: Sequence[judges.ReadErrors], intervals: Intervals
) -> Estimate:
    """The rate by the first of these errors, with bounds that hold all; [0, 1] if one fits no true rate."""
    found = [_corrected_stratum(trials, own, each, intervals) for each in errors]
    value = found[0].value if found[0].value is not None else float(np.mean(trials.broke[own]))
    low = min(0.0 if each.low is None else each.low for each in found)
    high = max(1.0 if each.high is None else each.high for each in found)
    return Estimate(value, low, high, found[0].n, "rogan-gladen for a further family")


def _why_no_readings(missing: Sequence[str]) -> str:
    return f"not measured: nobody read answers to {_few(missing)} (heredity label reads this study's)"


def _borrowed(missing: Sequence[str]) -> str:
    return f"nobody read answers to {_few(missing)}: corrected by the errors of all checks that were read"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
