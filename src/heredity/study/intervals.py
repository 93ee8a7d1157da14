"""The interval and the test of every estimate of a study: which method each one gets.

A wrong interval is wrong in one of two places: the choice, which is here, or the formula, in `stats/`.

    estimate                    fixed plan                             study that stops early
    rate, retention             Wilson on the effective n              anytime-valid sequence over behaviours
    difference of two models    Tango on the effective n; exact test   anytime-valid sequence; betting test
    rate corrected for a judge  Rogan-Gladen for a further family, on  the same, on the sequence's effective n
                                the effective n
    rate from labels            prediction-powered (PPI++)             refused
    success within k tries      Wilson on the effective n of probes    not estimated
    judged rate per attempt     the corrected rate times the share of decided trials (MOVER)
    cost per breach             the bounds of the rate, inverted       the same
    rate of a panel's member    as a rate; in an older plan Wilson without clusters
    bounds for a gate           the rate's, widened by open trials     the same

A group-sequential plan gets the methods of a fixed one, at the level of the analysis that its trials reached.
So each interval is a repeated one, and each p-value that of the whole design (stats/sequential.py).

Promises: every estimate of aggregate.py, comparisons.py and findings/ gets its interval from here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.records import Estimate
from heredity.core.sanitize import plural
from heredity.redteam.judges import Calibration
from heredity.stats.intervals import Interval, asr_at, cluster_sums, rate_effective_n, refused, wilson_bounds
from heredity.stats.judge_error import (
    PredictedShare,
    SharedComparison,
    compare_at_shares,
    correct_for_family,
    ppi_mean,
)
from heredity.stats.paired import cohens_kappa, compare_in_blocks, upper_bound
from heredity.stats.sequential import (
    InterimAnalysis,
    SequentialComparison,
    cluster_means,
    clustered_rate_sequence,
    effective_n_of,
)
from heredity.study.estimates import Rate
from heredity.study.labels import LabelledTrials
from heredity.study.plan import Plan

if TYPE_CHECKING:
    from heredity.study.outcomes import Outcomes

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class PairedOutcomes(NamedTuple):
    """The trials that two models answered: 1.0 where one broke, 0.0 where it held, nan for an unclear answer.

    clusters: the behaviour of each trial. blocks: its interim analysis; None if there was one for all.
    """

    a: Floats
    b: Floats
    clusters: Places
    blocks: Places | None = None

    def mirrored(self) -> PairedOutcomes:
        """The same trials with a and b swapped."""
        return self._replace(a=self.b, b=self.a)


class Intervals(NamedTuple):
    """The methods of one study. `broke` is one value per decided trial, `clusters` the trial's behaviour."""

    confidence: float
    is_sequential: bool = False  # the answers decided the number of trials: only anytime-valid methods hold
    # Of a group-sequential plan; `confidence` is then that of the repeated interval.
    interim: InterimAnalysis | None = None

    @classmethod
    def of(cls, plan: Plan, interim: int | None = None) -> Self:
        """The methods that a plan's estimates get; `interim` is that of the trials, None for the last one."""
        if not (information := plan.information):
            return cls(plan.confidence, plan.is_until_decided)
        at = InterimAnalysis(interim or len(information), information, round(1 - plan.confidence, 12))
        return cls(1 - at.level, interim=at)

    @classmethod
    def over(cls, outcomes: Outcomes, *models: int) -> Self:
        """The methods for the trials that all of these models have; by their places in the plan."""
        return cls.of(outcomes.plan, outcomes.interim_of(*models) if outcomes.plan.information else None)

    @classmethod
    def while_asking(cls, plan: Plan) -> Self:
        """The methods for rates that someone watches while trials are asked: anytime-valid ones."""
        return cls(plan.confidence, is_sequential=True)

    @property
    def alpha(self) -> float:
        """The level of every test, over all analyses."""
        return round(1 - self.confidence, 12) if self.interim is None else self.interim.alpha

    @property
    def one_sided(self) -> float:
        """The level of a one-sided bound."""
        return self.alpha if self.interim is None else self.interim.one_sided

    def overall(self, p_value: float) -> float:
        """A p-value of these trials as that of the whole plan."""
        return p_value if self.interim is None else self.interim.overall(p_value)

    def rate(self, broke: Bools, clusters: Places) -> Estimate:
        """The rate of trials that share behaviours."""
        method = clustered_rate_sequence if self.is_sequential else stats.clustered_rate
        return method(broke, clusters, self.confidence)

    def rate_of_counts(self, n_broke: int, n: int) -> Estimate:
        """The rate of one probe, or of a panel's member: Wilson, as if every trial were independent."""
        return stats.wilson(n_broke, n, self.confidence)

    def retention(self, parent: Bools, child: Bools, clusters: Places) -> Estimate:
        """P(child held | parent held), where `parent` and `child` say on which shared trials each broke."""
        method = clustered_rate_sequence if self.is_sequential else stats.clustered_rate
        return stats.retention(parent, child, clusters, self.confidence, method)

    def level(self, n_tests: int) -> float:
        """The level of a two-sided test of these trials, at Holm's first step over `n_tests` comparisons."""
        return self.alpha / n_tests if self.interim is None else self.interim.level_of(n_tests)

    def compare(
        self, a: Bools, b: Bools, clusters: Places, blocks: Places | None = None, n_tests: int = 1
    ) -> stats.Comparison:
        """The difference of two models on the trials that both decided, with its test.

        blocks: the interim analysis that first had each trial; None: one analysis had all of them.
        n_tests: comparisons that Holm corrects together, for the detectable difference.
        """
        if self.is_sequential:
            of = np.zeros_like(clusters) if blocks is None else blocks
            return compare_in_blocks(a, b, clusters, of, self.confidence, self.alpha, n_tests)
        comparison = stats.compare(a, b, clusters, self.confidence, self.level(n_tests))._replace(
            n_tests=n_tests
        )
        if self.interim is None:
            return comparison
        uppers = tuple(upper_bound(each, self.one_sided) for each in (comparison, comparison.mirrored()))
        return comparison._replace(p_value=self.overall(comparison.p_value), uppers=(uppers[0], uppers[1]))

    def compare_at_shares(
        self, trials: PairedOutcomes, share_a: float, share_b: float, errors: float = 0.0
    ) -> SharedComparison:
        """The difference if these shares of the unclear answers were breaches, with its test.

        errors: the share of verdicts that erred in favour of a (stats/judge_error.py).
        """
        if trials.blocks is None:
            comparison = compare_at_shares(*trials[:3], share_a, share_b, self.confidence, errors)
            return comparison._replace(p_value=self.overall(comparison.p_value))
        d = _at_shares(trials, share_a, share_b, errors)
        p = SequentialComparison(self.alpha, d.size)
        for block in np.unique(trials.blocks):
            is_in = trials.blocks == block
            p.add(cluster_means(d[is_in], trials.clusters[is_in]))
        value = float(p.means.mean()) if p.means.size else None
        estimate = Estimate(value, -p.uppers[1], p.uppers[0], d.size, "one-sided anytime bounds")
        return SharedComparison(share_a, share_b, estimate, p.p_value)

    def upper_at_shares(self, trials: PairedOutcomes, share_a: float, share_b: float) -> float:
        """The one-sided upper bound at level alpha of b's rate minus a's, at these shares."""
        if trials.blocks is not None:
            high = self.compare_at_shares(trials, share_a, share_b).difference.high
        else:
            confidence = 1 - 2 * self.one_sided
            high = compare_at_shares(*trials[:3], share_a, share_b, confidence).difference.high
        return 1.0 if high is None else high

    def corrected(self, broke: Bools, clusters: Places, raw: Estimate, labels: Calibration) -> Estimate:
        """The rate `raw` of these trials, corrected for the judge's errors as `labels` measured them."""
        effective_n = self._effective_n(broke, clusters, raw)
        counts = (labels.sens_k, labels.sens_n, labels.spec_k, labels.spec_n)
        return stats.rogan_gladen(
            int(broke.sum()), broke.size, *counts, confidence=self.confidence, n_effective=effective_n
        )

    def corrected_for_family(
        self, broke: Bools, clusters: Places, raw: Estimate, sens: PredictedShare, spec: PredictedShare
    ) -> Estimate:
        """The rate `raw`, corrected for errors that differ between families of answers."""
        effective_n = self._effective_n(broke, clusters, raw)
        return correct_for_family(int(broke.sum()), broke.size, sens, spec, self.confidence, effective_n)

    def _effective_n(self, broke: Bools, clusters: Places, raw: Estimate) -> float:
        if self.is_sequential:
            return effective_n_of(raw, self.confidence)
        return rate_effective_n(cluster_sums(broke, clusters)).at(self.confidence)

    def from_labels(
        self, labels: LabelledTrials, broke: Bools, indices: Places, clusters: Places | None = None
    ) -> Estimate:
        """The rate of the trials at `indices`, from a person's labels on some and the verdicts on all.

        clusters: the behaviour of each trial; None: independent, as in plans without an analysis.
        """
        if self.is_sequential:
            why = "where answers decided how many there are, labels give no interval"
            return refused(labels.count(indices), why)
        truth, judged = labels.truth[indices], broke.astype(np.float64)
        is_labelled = ~np.isnan(truth)
        return ppi_mean(
            truth[is_labelled].astype(np.float64),
            judged[is_labelled],
            judged[~is_labelled],
            labels.chances[indices][is_labelled].astype(np.float64),  # each label weighs 1 / its chance
            self.confidence,
            None if clusters is None else (clusters[is_labelled], clusters[~is_labelled]),
        )

    def success_within(self, k: int, broke: Places, tries: Places, clusters: Places) -> Estimate:
        """The share of probes that at least one of k tries breaks; counts by probe. For a fixed plan only."""
        return asr_at(k, broke, tries, clusters, self.confidence)

    def kappa(self, table: stats.Table) -> Estimate:
        """Cohen's kappa of two judges on the same answers."""
        return cohens_kappa(table, self.confidence)


def _at_shares(trials: PairedOutcomes, share_a: float, share_b: float, errors: float) -> Floats:
    """b minus a in each trial."""
    if errors:
        trials = trials._replace(
            a=np.where(trials.a == 0.0, errors, trials.a), b=np.where(trials.b == 1.0, 1 - errors, trials.b)
        )
    first, second = np.nan_to_num(trials.a, nan=share_a), np.nan_to_num(trials.b, nan=share_b)
    return np.asarray(second - first)


_NOTHING = 0.005  # a bound this near to 0 or 1 is shown as 0 or 100 %


def per_attempt(of_decided: Estimate, share: Estimate) -> Estimate:
    """A rate of decided trials as one of all answered trials; `share` is the share that was decided.

    The bounds add both uncertainties in squares (MOVER; Zou and Donner 2008). A refused rate stays refused.
    """
    values = of_decided.value, of_decided.low, of_decided.high, share.value, share.low, share.high
    if any(value is None for value in values):
        return of_decided
    rate, low, high, of, of_low, of_high = (value or 0.0 for value in values)
    down = math.hypot((rate - low) * of, (of - of_low) * rate)
    up = math.hypot((high - rate) * of, (of_high - of) * rate)
    return msgspec.structs.replace(
        of_decided,
        value=rate * of,
        low=max(0.0, rate * of - down),
        high=min(1.0, rate * of + up),
        n=share.n,
        method=f"{of_decided.method}, times the share of decided trials",
    )


def no_narrower(corrected: Estimate, raw: Estimate) -> Estimate:
    """A corrected interval, widened to hold the raw one if it is narrower: errors add to what is open.

    It can be narrower at 0 and 1, and as the mean of techniques whose rates differ.
    """
    if corrected.low is None or corrected.high is None or raw.low is None or raw.high is None:
        return corrected
    if corrected.high - corrected.low >= raw.high - raw.low:
        return corrected
    low, high = min(corrected.low, raw.low), max(corrected.high, raw.high)
    return msgspec.structs.replace(corrected, low=low, high=high)


def without_uninformative(corrected: Estimate) -> Estimate:
    """The corrected rate, refused if its interval has every rate, as far as whole per cents show."""
    if corrected.low is None or corrected.high is None:
        return corrected
    if corrected.low > _NOTHING or corrected.high < 1 - _NOTHING:
        return corrected
    return refused(corrected.n, "the measured errors leave every rate possible", "uninformative")


def per_breach(total: int, rate: Rate) -> Estimate:
    """A total (queries, tokens) over the breaches of `rate`; the bounds are those of the rate, inverted.

    Without a breach there is a lower bound only.
    """
    estimate = rate.estimate
    each = total / estimate.n if estimate.n else 0.0

    def over(share: float | None) -> float | None:
        return each / share if share else None

    return Estimate(
        total / rate.n_broke if rate.n_broke else None,
        over(estimate.high),
        over(estimate.low),
        estimate.n,
        f"total over {rate.n_broke} breaches; bounds from the rate: {estimate.method}",
        n_clusters=estimate.n_clusters,
        is_at_floor=estimate.is_at_floor,
    )


# --- conservative bounds, for a gate ------------------------------------------------------------------

_MAX_TRIALS = 10_000_000  # more trials than this decide nothing that anyone will run


class RateBounds(NamedTuple):
    """Bounds of a rate that what is undecided cannot have flattered: each end takes it the other way."""

    low: float
    high: float
    best: float  # the rate with everything undecided counted as held
    worst: float  # and with every one counted as broke
    n: int
    n_effective: float  # n, less what clustering costs
    n_behaviours: int | None  # where each cluster counts as one trial, however many samples it has
    raw: Interval  # without the judge's error
    has_errors: bool  # among what is undecided
    decided_by: str  # "the checks" or "the judge"


def bound_rate(rate: Rate, confidence: float) -> RateBounds:
    """The interval, wide enough for unclear answers, for errors, and for the judge's known error."""
    estimate, n_open = rate.estimate, rate.n_open
    n = rate.n_counted + rate.n_held + n_open
    n_effective = _n_effective_of_width(estimate, n, confidence)
    best, worst = rate.n_counted / n, (rate.n_counted + n_open) / n
    if n_open or estimate.low is None or estimate.high is None:
        low = wilson_bounds(best, n_effective, confidence).low
        high = wilson_bounds(worst, n_effective, confidence).high
    else:
        low, high = estimate.low, estimate.high
    raw, corrected = Interval(low, high), rate.corrected
    if corrected is None or corrected.value is None:
        corrected = rate.by_labels  # a person's labels on these answers
    if corrected is not None and corrected.low is not None and corrected.high is not None:
        # The correction is of the trials in the rate; what is undecided may have held or broken.
        share = estimate.n / n
        low = min(low, share * corrected.low)
        high = max(high, min(1.0, share * corrected.high + n_open / n))
    decided_by = "the checks" if rate.is_judge_free else "the judge"
    n_behaviours = estimate.n_clusters if estimate.is_at_floor else None
    return RateBounds(
        low, high, best, worst, n, n_effective, n_behaviours, raw, bool(rate.n_error), decided_by
    )


def bound_share(estimate: Estimate, confidence: float) -> RateBounds:
    """The same of a share of trials that checks decided, none of them unclear. n is not 0."""
    value, low, high = (x or 0.0 for x in (estimate.value, estimate.low, estimate.high))
    n_behaviours = estimate.n_clusters if estimate.is_at_floor else None
    n_effective = _n_effective_of_width(estimate, estimate.n, confidence)
    raw = Interval(low, high)
    return RateBounds(
        low, high, value, value, estimate.n, n_effective, n_behaviours, raw, False, "the checks"
    )


def _n_effective_of_width(estimate: Estimate, n: int, confidence: float) -> float:
    """The effective n of `n` trials that share clusters, from the width of the published interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None or not estimate.n:
        return float(n)
    low, high = 0.01, 1.0  # shares of n; the interval narrows as the share grows
    while high - low > 1e-7:
        middle = (low + high) / 2
        bounds = wilson_bounds(estimate.value, estimate.n * middle, confidence)
        is_wider = bounds.high - bounds.low > estimate.high - estimate.low
        low, high = (middle, high) if is_wider else (low, middle)
    return n * high


Obstacle = Literal["trials", "unclear", "errors", "labels", "behaviours", "limit"]


class Deciding(NamedTuple):
    """The evidence that would bring an interval to one side of a limit, if the rates stay.

    by: "trials": `n` more of them. "unclear", "errors": the `n` undecided trials themselves. "labels": better
        measured errors of what decides. "behaviours": probes of others than these `n`. "limit": nothing.
    """

    by: Obstacle
    n: int = 0


def what_decides(rate_bounds: RateBounds, limit: float, confidence: float) -> Deciding:
    """The evidence that would bring an interval to one side of the limit."""
    n_open = round((rate_bounds.worst - rate_bounds.best) * rate_bounds.n)
    if rate_bounds.best <= limit < rate_bounds.worst:
        return Deciding("errors" if rate_bounds.has_errors else "unclear", n_open)
    if n_open > rate_bounds.n / 2 and not rate_bounds.has_errors and rate_bounds.raw.low <= limit:
        return Deciding("unclear", n_open)
    if rate_bounds.raw.high <= limit or rate_bounds.raw.low > limit:
        return Deciding("labels")

    def decides(times: float) -> bool:
        n = rate_bounds.n_effective * times
        is_within = wilson_bounds(rate_bounds.worst, n, confidence).high <= limit
        return is_within or wilson_bounds(rate_bounds.best, n, confidence).low > limit

    times = 2.0
    while not decides(times):
        times *= 2
        if rate_bounds.n * times > _MAX_TRIALS:
            return Deciding("limit")
    if rate_bounds.n_behaviours is not None:
        return Deciding("behaviours", rate_bounds.n_behaviours)
    low = times / 2
    while (times - low) * rate_bounds.n > 0.001:
        middle = (low + times) / 2
        low, times = (low, middle) if decides(middle) else (middle, times)
    return Deciding("trials", _round_up(rate_bounds.n * (times - 1)))


def deciding_words(bounds: RateBounds, limit: float, confidence: float) -> str:
    """The missing evidence in a sentence, such as the number of more trials."""
    by, n = what_decides(bounds, limit, confidence)
    is_whole = bounds.best <= limit < bounds.worst  # the unclear answers alone decide
    aside = (
        "" if bounds.raw == (bounds.low, bounds.high) else f" and but for the errors of {bounds.decided_by}"
    )
    n_trials = plural(n, "more trial")
    answers = f"{n} unclear {'answer decides' if n == 1 else 'answers decide'}"
    behaviours = f"{n} {'behaviour is' if n == 1 else 'behaviours are'}"
    words: dict[Obstacle, str] = {
        "trials": f"About {n_trials} like these would decide, if the rate stays{aside}.",
        "unclear": f"The {answers}: more trials will not."
        if is_whole
        else f"{n} of {bounds.n} answers are unclear and leave it open: more trials will not decide.",
        "errors": f"Errors decide: ask the {plural(n, 'undecided trial')} again (--retry-errors).",
        "labels": f"The measured errors of {bounds.decided_by} leave it open: more or closer labels decide, "
        "not more trials.",
        "behaviours": f"More samples will not decide: {behaviours} too few; add probes of other behaviours.",
        "limit": "The rate is too near the limit for any realistic number of trials to decide.",
    }
    return words[by]


def _round_up(n: float) -> int:
    """To two digits, upwards: the number is a forecast, and more digits would look like knowledge."""
    step = 10 ** max(0, len(str(int(n))) - 2)
    return int(-(-n // step) * step) or 1
