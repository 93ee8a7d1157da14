"""One comparison under every defensible analysis: coding of unclear answers and errors, judge, and weighting.

Promises: the cell that the plan declared is marked. A cell's verdict follows the rule of the study's, but
without a correction for many comparisons, and without a declared share. Nothing is drawn at random.
Leaves to others: the verdict of the study (claims.py), and the words (wording.py).

Source: Steegen et al. 2016, Perspect. Psychol. Sci. 11:702 (multiverse analysis).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np

from heredity.core.records import Estimate
from heredity.stats.intervals import Interval, effective
from heredity.stats.paired import sign_flip, tango_bounds_at
from heredity.stats.unclear import CODINGS, Coding, flip_whole
from heredity.study.estimands import Multiverse, MultiverseCell, Weighting
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED
from heredity.study.intervals import Bools, Floats, Intervals, Places
from heredity.study.outcomes import BROKE, ERROR, UNCLEAR, Codes, Outcomes, is_answered, is_decided

CHECKS, JUDGE = "checks", "judge"  # who decides: checks only, or checks and the study's judge
_MOST_PAIRS = 45  # of ten models; more tables are read by nobody
_FINE = 100  # the smallest weight of a technique, as a whole number
_WEIGHTINGS: tuple[Weighting, ...] = ("trial", "technique")


def multiverses(outcomes: Outcomes, members: Mapping[str, Codes]) -> Iterator[Multiverse]:
    """One table for each two models; nothing for a plan that declares no analysis.

    members: by name of a panel's member one code per trial, HELD, BROKE or 0.
    """
    models = list(combinations(range(len(outcomes.plan.models)), 2))
    if isinstance(outcomes.plan.analysis, msgspec.UnsetType) or len(models) > _MOST_PAIRS:
        return
    if not (views := list(_views(outcomes, members))):  # every probe measures an ability
        return
    ids = [model.id for model in outcomes.plan.models]
    for a, b in models:
        if cells := tuple(_cells(outcomes, views, a, b)):
            yield Multiverse(ids[a], ids[b], cells)


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
    declared = _Codings(_declared_coding(outcomes, views[0]))
    every = [(view, coding) for view in views for coding in _codings(view, declared, a, b)]
    for view, coding in every:
        shared = _shared(outcomes, view, coding, a, b)
        n_techniques = np.unique(shared.techniques).size
        for weighting in _WEIGHTINGS if n_techniques > 1 and not plan.is_until_decided else ("trial",):
            intervals = Intervals.over(outcomes, a, b)
            found = _found(shared, weighting, intervals)
            yield MultiverseCell(
                coding=coding.unclear,
                errors=coding.errors,
                judge=view.judge,
                weighting=weighting,
                is_declared=(coding, view, weighting) == (declared, views[0], "trial"),
                n=shared.clusters.size,
                difference=found.difference,
                p_value=found.p_value,
                verdict_ab=found.verdict(plan.margin, intervals.alpha),
                verdict_ba=found.mirrored().verdict(plan.margin, intervals.alpha),
            )


def _declared_coding(outcomes: Outcomes, view: _DecidedBy) -> Coding:
    """How the plan's endpoint counts the unclear answers of the declared analysis."""
    if outcomes.counts_refusals and view.judge != CHECKS:
        return "broke"
    return "held" if outcomes.is_per_attempt else "excluded"


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


def _shared(outcomes: Outcomes, view: _DecidedBy, coding: _Codings, a: int, b: int) -> _SharedTrials:
    first, second = view.codes[a], view.codes[b]
    counted = _counted(first, coding) & _counted(second, coding)
    as_broke = [code for code, as_ in ((UNCLEAR, coding.unclear), (ERROR, coding.errors)) if as_ == "broke"]
    first, second = (np.where(np.isin(x, as_broke), BROKE, x) for x in (first, second))
    clusters = outcomes.clusters_of(ALL, view.probes, a, b)
    axes = (clusters[counted], view.techniques[counted], view.blocks[counted])
    return _SharedTrials(first[counted] == BROKE, second[counted] == BROKE, *axes)


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
        found = self.difference
        value, low, high = (None if x is None else 0.0 - x for x in (found.value, found.high, found.low))
        turned = msgspec.structs.replace(found, value=value, low=low, high=high)
        return _Difference(turned, self.p_value, (self.uppers[1], self.uppers[0]))

    def verdict(self, margin: float, alpha: float) -> str:
        """The verdict on b against a (claims.py), of this cell by itself."""
        low, high = self.difference.low, self.difference.high
        if self.uppers[0] < margin:
            return "not worse"
        if self.p_value is None or self.p_value >= alpha or low is None or high is None or low <= 0 <= high:
            return "not enough evidence"
        return "worse" if low > 0 else "not worse"


def _found(shared: _SharedTrials, weighting: Weighting, intervals: Intervals) -> _Difference:
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
    found = n.estimate(mean, at(intervals.confidence), "tango", intervals.confidence)
    return _Difference(found, intervals.overall(p), (one_sided.high, -one_sided.low))
