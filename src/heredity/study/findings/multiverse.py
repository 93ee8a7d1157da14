"""One comparison under every defensible analysis: coding of unclear answers and errors, judge, and weighting.

Promises: the cell that the plan declared is marked. A cell's verdict follows the rule of the study's, but
without a correction for many comparisons, and without a declared share. Nothing is drawn at random.
In a table the model of the higher rate in the declared cell comes first, with signs and verdicts of it.

Source: Steegen et al. 2016, Perspect. Psychol. Sci. 11:702 (multiverse analysis).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sanitize import plural
from heredity.core.sections import Badge, Section, TextTable
from heredity.stats.intervals import Interval, effective
from heredity.stats.judge_error import CODINGS, Coding, flip_whole
from heredity.stats.paired import sign_flip, tango_bounds_at
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, negated
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Bools, Floats, Intervals, Places
from heredity.study.outcomes import BROKE, ERROR, UNCLEAR, Codes, Outcomes, is_answered, is_decided
from heredity.study.wording import names, p_words, points, points_interval

CHECKS, JUDGE = "checks", "judge"  # who decides: checks only, or checks and the study's judge
MAX_PAIRS = 45  # of ten models; more tables are read by nobody
_FINE = 100  # the smallest weight of a technique, as a whole number
Weighting = Literal["trial", "technique"]
_WEIGHTINGS: tuple[Weighting, ...] = ("trial", "technique")
NAME, ORDER = "multiverse", 80
_CLAIM = (
    "The same breaches under each coding of unclear answers, each judge and each weighting. The marked "
    "cell was declared before the first answer. Each verdict and p is of its cell only: without Holm's "
    "correction, and without the allowance for unclear answers."
)
_CODINGS = {"excluded": "left out", "held": "counted as held", "broke": "counted as broke"}
_WEIGHTS = {"trial": "each trial", "technique": "each technique"}
_JUDGES = {"checks": "Checks only", "judge": "Checks and judge"}


class MultiverseCell(Record, frozen=True):
    """Two models compared under one coding of unclear answers, one judge and one weighting.

    a, b          their ids
    coding        unclear answers "excluded", counted as "held", or as "broke"
    errors        the same for trials that ended in an error; only the declared coding has the last two
    judge         "checks": judge-free breaches. "judge": judged ones too. Else a panel's member, in its place
    weighting     each "trial" counts the same, or each "technique"
    difference    b's rate minus a's
    p_value       of this cell by itself, without correction; None without a shared trial
    verdict_ab, verdict_ba   of this cell by itself
    """

    a: str
    b: str
    coding: Literal["excluded", "held", "broke"]
    judge: str
    weighting: Weighting
    is_declared: bool
    n: int
    difference: Estimate
    p_value: float | None
    verdict_ab: str
    verdict_ba: str
    errors: Literal["excluded", "held", "broke"] = "excluded"


Row = MultiverseCell


def compute(evidence: StudyEvidence) -> Iterator[MultiverseCell]:
    """The cells of each two models; nothing for a plan that declares no analysis."""
    outcomes, models = evidence.outcomes, evidence.plan.pairs
    if outcomes.plan.analysis is None or len(models) > MAX_PAIRS:
        return
    if views := list(_views(outcomes, evidence.judged.members)):  # else every probe measures an ability
        for a, b in models:
            yield from _cells(outcomes, views, a, b)


class _DecidedBy(NamedTuple):
    """The breach trials as one judge decides them. `codes`: (model, trial)."""

    judge: str
    codes: Codes
    probes: list[int]
    techniques: Places
    blocks: Places


def _views(outcomes: Outcomes, members: Mapping[str, Codes]) -> Iterator[_DecidedBy]:
    free, judged = (outcomes.probes(scope, "breach") for scope in (JUDGE_FREE, JUDGED))
    if free:
        yield _view(outcomes, CHECKS, free, outcomes)
    if not judged:
        return
    every = sorted(free + judged)
    yield _view(outcomes, JUDGE, every, outcomes)
    for name, opinions in members.items():
        mine = Outcomes(outcomes.plan, outcomes.codes.copy())
        own = opinions.reshape(outcomes.plan.shape)[:, :, judged]
        answered = is_answered(mine.array[:, :, judged])
        mine.array[:, :, judged] = np.where(
            answered, np.where(own == 0, UNCLEAR, own), mine.array[:, :, judged]
        )
        yield _view(outcomes, name, every, mine)


def _view(outcomes: Outcomes, judge: str, probes: list[int], decided: Outcomes) -> _DecidedBy:
    plan = outcomes.plan
    return _DecidedBy(
        judge,
        np.array([decided.codes_of(m, ALL, probes) for m in range(len(plan.models))]),
        probes,
        outcomes.techniques_of(ALL, probes),
        outcomes.blocks_of(ALL, probes),
    )


def _cells(outcomes: Outcomes, views: list[_DecidedBy], a: int, b: int) -> Iterator[MultiverseCell]:
    plan = outcomes.plan
    of_rates: Coding = "held" if outcomes.is_per_attempt else "excluded"  # as the plan's endpoint counts
    is_of_refusals = outcomes.counts_refusals and views[0].judge != CHECKS
    declared = _Codings("broke" if is_of_refusals else of_rates)
    every = [(view, coding) for view in views for coding in _codings(view, declared, a, b)]
    for view, coding in every:
        first, second = view.codes[a], view.codes[b]
        counted = _counted(first, coding) & _counted(second, coding)
        as_broke = [
            code for code, as_ in ((UNCLEAR, coding.unclear), (ERROR, coding.errors)) if as_ == "broke"
        ]
        first, second = (np.where(np.isin(x, as_broke), BROKE, x) for x in (first, second))
        clusters = outcomes.clusters_of(ALL, view.probes, a, b)
        axes = (clusters[counted], view.techniques[counted], view.blocks[counted])
        shared = _SharedTrials(first[counted] == BROKE, second[counted] == BROKE, *axes)
        n_techniques = np.unique(shared.techniques).size
        for weighting in _WEIGHTINGS if n_techniques > 1 and not plan.is_until_decided else ("trial",):
            intervals = Intervals.over(outcomes, a, b)
            difference = _difference(shared, weighting, intervals)
            yield MultiverseCell(
                a=plan.models[a].id,
                b=plan.models[b].id,
                coding=coding.unclear,
                errors=coding.errors,
                judge=view.judge,
                weighting=weighting,
                is_declared=(coding, view, weighting) == (declared, views[0], "trial"),
                n=shared.clusters.size,
                difference=difference.difference,
                p_value=difference.p_value,
                verdict_ab=difference.verdict(plan.margin, intervals.alpha),
                verdict_ba=difference.mirrored().verdict(plan.margin, intervals.alpha),
            )


class _Codings(NamedTuple):
    unclear: Coding
    errors: Coding = "excluded"


def _codings(view: _DecidedBy, declared: _Codings, a: int, b: int) -> Iterator[_Codings]:
    """Every coding of unclear answers; then, if a trial ended in an error, the other codings of errors."""
    yield from map(_Codings, CODINGS)
    if (view.codes[[a, b]] == ERROR).any():
        yield from (declared._replace(errors=errors) for errors in CODINGS if errors != declared.errors)


class _SharedTrials(NamedTuple):
    first: Bools  # where a broke
    second: Bools
    clusters: Places
    techniques: Places
    blocks: Places


def _counted(codes: Codes, coding: _Codings) -> Bools:
    counted = is_decided(codes) if coding.unclear == "excluded" else is_answered(codes)
    return counted if coding.errors == "excluded" else counted | (codes == ERROR)


# --- one cell -------------------------------------------------------------------------------------


class _Difference(NamedTuple):
    """A difference, its test, and the one-sided upper bounds of b - a and of a - b; None without a trial."""

    difference: Estimate
    p_value: float | None
    uppers: tuple[float, float] = (1.0, 1.0)

    def mirrored(self) -> _Difference:
        estimate = self.difference
        value, low, high = (
            None if x is None else 0.0 - x for x in (estimate.value, estimate.high, estimate.low)
        )
        turned = msgspec.structs.replace(estimate, value=value, low=low, high=high)
        return _Difference(turned, self.p_value, (self.uppers[1], self.uppers[0]))

    def verdict(self, margin: float, alpha: float) -> str:
        """The verdict on b against a (comparisons.py), of this cell by itself."""
        low, high = self.difference.low, self.difference.high
        if self.uppers[0] < margin:
            return "not worse"
        if self.p_value is None or self.p_value >= alpha or low is None or high is None or low <= 0 <= high:
            return "not enough evidence"
        return "worse" if low > 0 else "not worse"


def _difference(shared: _SharedTrials, weighting: Weighting, intervals: Intervals) -> _Difference:
    if not shared.clusters.size:
        return _Difference(Estimate(None, None, None, 0, "no shared trials"), None)
    if intervals.is_sequential:
        c = intervals.compare(shared.first, shared.second, shared.clusters, shared.blocks)
        return _Difference(c.difference, c.p_value, c.uppers or (1.0, 1.0))
    d = shared.second.astype(np.float64) - shared.first
    if weighting == "technique":
        return _weighted(d, shared, intervals)
    mean = float(d.mean())
    p = sign_flip(np.bincount(shared.clusters, weights=d))
    return _bounded(d, d - mean, mean, shared.clusters, intervals, p)


def _weighted(d: Floats, shared: _SharedTrials, intervals: Intervals) -> _Difference:
    """Each technique with the same weight, whatever its number of trials."""
    sizes = np.bincount(shared.techniques)
    means = np.bincount(shared.techniques, weights=d) / np.maximum(sizes, 1)
    mean = float(means[sizes > 0].mean())
    weights = (d.size / np.count_nonzero(sizes) / np.maximum(sizes, 1))[shared.techniques]
    # Whole numbers for the exact test. Techniques of one size keep one weight, so that ties stay ties.
    whole = np.rint(_FINE * sizes.max() / np.maximum(sizes, 1))[shared.techniques]
    p = flip_whole(np.bincount(shared.clusters, weights=whole * d).astype(np.int64))
    residuals = weights * (d - means[shared.techniques])
    return _bounded(weights * d, residuals, mean, shared.clusters, intervals, p)


def _bounded(
    d: Floats, residuals: Floats, mean: float, clusters: Places, intervals: Intervals, p: float
) -> _Difference:
    """Tango's interval on the effective n, from each trial's difference and its residual."""
    counts = np.bincount(clusters)
    there = counts > 0
    by_cluster = np.asarray(np.bincount(clusters, weights=residuals)[there], np.float64)
    discordant = np.bincount(clusters, weights=np.abs(d))[there]
    only_a, only_b = float(np.maximum(-d, 0).mean()), float(np.maximum(d, 0).mean())
    sizes = np.asarray(counts[there], np.float64)
    n = effective(by_cluster, sizes, only_a + only_b - mean**2, int((discordant > 0).sum()))

    def at(confidence: float) -> Interval:
        return tango_bounds_at(only_a, only_b, n.at(confidence), confidence)

    one_sided = at(1 - 2 * intervals.one_sided)
    estimates = n.estimate(mean, at(intervals.confidence), "tango", intervals.confidence)
    return _Difference(estimates, intervals.overall(p), (one_sided.high, -one_sided.low))


# --- words ----------------------------------------------------------------------------------------


def verdicts_on(estimates: Estimates, model: str, other: str) -> str:
    """The verdicts of all analyses of two models (ids) on the first; "" if they were not compared."""
    cells = [cell for cell in estimates.rows(NAME, Row) if {cell.a, cell.b} == {model, other}]
    return multiverse_words(cells, model) if cells else ""


def multiverse_words(cells: Sequence[MultiverseCell], model: str) -> str:
    """The verdicts of all analyses on `model`: `worse in 8 of 12 analyses, better in 1, undecided in 3`."""
    of_ab = [(cell.verdict_ab, cell.verdict_ba, cell.difference.value or 0.0) for cell in cells]
    verdicts = of_ab if model == cells[0].b else [(ba, ab, -value) for ab, ba, value in of_ab]
    n_worse, n = sum(mine == "worse" for mine, _, _ in verdicts), len(verdicts)
    n_better = sum(other == "worse" for _, other, _ in verdicts)
    rest = [(mine, value) for mine, other, value in verdicts if "worse" not in (mine, other)]
    undecided = [value for mine, value in rest if mine == "not enough evidence"]
    n_within = len(rest) - len(undecided)
    words = f"worse in {'all' if n_worse == n else n_worse or 'none'} of {plural(n, 'analysis')}"
    words += f", better in {n_better}" if n_better else ""
    words += f", not worse in {n_within}" if n_within else ""
    if undecided:
        n_lower = sum(value < 0 for value in undecided)
        turned = f" ({n_lower} of them with a lower rate)" if n_lower else ""
        words += f", undecided in {len(undecided)}{turned}"
    return words


def show(rows: Sequence[MultiverseCell], study: RecordedStudy) -> Section | None:
    """A table of each two models; that of the headline's two models comes first, the others are details."""
    if not rows:
        return None
    called, first = names(study.estimates.models), _ends(study.estimates)
    pairs = sorted(dict.fromkeys((row.a, row.b) for row in rows), key=lambda pair: {*pair} != first)
    tables = (
        _table([row for row in rows if (row.a, row.b) == pair], called, is_detail=place > 0)
        for place, pair in enumerate(pairs)
    )
    return Section(NAME, "Would another analysis say the same?", _CLAIM, tuple(tables))


def _ends(estimates: Estimates) -> set[str]:
    """The models with the lowest and the highest breach rate."""
    rated = sorted(
        (rate.estimate.value, rate.model)
        for rate in estimates.rates
        if (rate.technique, rate.attack, rate.measure) == (estimates.main_scope(), ALL, "breach")
        and rate.estimate.value is not None
    )
    return {rated[0][1], rated[-1][1]} if rated else set()


def _table(cells: Sequence[MultiverseCell], called: dict[str, str], is_detail: bool) -> TextTable:
    declared = next((cell for cell in cells if cell.is_declared), cells[0])
    is_b_high = (declared.difference.value or 0.0) >= 0
    high, low = (declared.b, declared.a) if is_b_high else (declared.a, declared.b)
    judges = list(dict.fromkeys(cell.judge for cell in cells))
    by_key = {(_coding(cell), cell.weighting, cell.judge): cell for cell in cells}
    axes = dict.fromkeys(map(_coding, cells)), dict.fromkeys(cell.weighting for cell in cells)
    rows = [
        [
            coding, _WEIGHTS[weighting],
            *(_badge(by_key[key], is_b_high) if (key := (coding, weighting, judge)) in by_key else ""
              for judge in judges),
        ]
        for coding, weighting in product(*axes)
    ]  # fmt: skip
    title = f"{called[high]} against {called[low]} under other analyses"
    verdicts = f"{called[high]} against {called[low]}: {multiverse_words(cells, high)}"
    head = ["unclear answers", "weight", *(_JUDGES.get(judge, f"Checks and {judge}") for judge in judges)]
    return TextTable(title, head, rows, verdicts if is_detail else "", "" if is_detail else f"{verdicts}.")


def _coding(cell: MultiverseCell) -> str:
    """The coding of unclear answers; that of errors too, if they are not left out."""
    errors = "" if cell.errors == "excluded" else f", errors {_CODINGS[cell.errors]}"
    return _CODINGS[cell.coding] + errors


def _badge(cell: MultiverseCell, is_b_high: bool) -> Badge:
    """The verdict on the model of the higher rate; "better" if the cell calls the other model worse."""
    verdict, other = (cell.verdict_ab, cell.verdict_ba) if is_b_high else (cell.verdict_ba, cell.verdict_ab)
    difference = cell.difference if is_b_high else negated(cell.difference)
    numbers = f"{points(difference.value)} ({points_interval(difference)}), p {p_words(cell.p_value)}"
    mark = "declared; " if cell.is_declared else ""
    return Badge("better" if other == "worse" else verdict, f"{mark}{numbers}, n {difference.n}")
