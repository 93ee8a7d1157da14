"""The findings on every way: quality, breaches, over-refusal and cost, against the untouched model.

    quality       share of test questions that are right; Tango's interval and exact test of the difference.
                  Holm's correction runs over the ways, within all, seen and new facts each
    breaches      rate and verdict of the study of safety, with its margin and its Holm over the ways
    cost          seconds of making, seconds and tokens of an answer, bytes, and money where a price is known

Promises: a way with several seeds is judged over all of them; a question is one cluster. Errors are counted,
and enter no rate. A rate has its n. A way that was not timed has no seconds, not 0.
Leaves to others: asking (run.py), the methods (stats/, study/), and the page (page.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.records import Estimate, Record
from heredity.lab.adapt.forecast import TaskForecast
from heredity.lab.adapt.questions import NEW, SEEN, Scope
from heredity.lab.adapt.task import AdaptTask
from heredity.lab.adapt.ways import PLAIN, TITLES, ManualIndex
from heredity.lab.inheritance.plan import LeftOutChild
from heredity.redteam.checks import load_check
from heredity.stats.power import ALPHA
from heredity.study.estimates import ALL, Inheritance, Measure
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, ERROR, HELD, UNCLEAR, Outcomes, read_outcomes
from heredity.study.plan import StudyForecast, read_plan
from heredity.study.result import Result
from heredity.study.same_conversations import same_conversations
from heredity.study.storage import run_records

QualityVerdict = Literal["", "better", "worse", "not enough evidence"]
SafetyVerdict = Literal["", "worse", "not worse", "not enough evidence", "no claim"]
SCOPES: dict[Scope, tuple[str, ...]] = {"seen": (SEEN,), "new": (NEW,)}  # beside "all"
Bools = NDArray[np.bool_]


class AdaptFile(Record, frozen=True):
    """adapt.json: the task, saved before anything is made, and the digest over it and its content.

    at: ISO 8601, UTC. steps: of each trained way. power: the forecast of the study of safety. forecast: of
    the rest; None in a folder of an earlier release.
    """

    digest: str
    at: str
    task: AdaptTask
    manual: ManualIndex | None
    steps: dict[str, int]
    power: StudyForecast | None
    forecast: TaskForecast | None = None
    schema: int = 1


class AdaptedFile(Record, frozen=True):
    """adapted.json: the models by their names in the plan, those that were left out, and what they took.

    models   ids. bytes: added to the untouched model. seconds: of making, whenever that was
    price    per million prompt and answer tokens; None if not known
    """

    digest: str
    models: dict[str, str]
    seconds: dict[str, float]
    bytes: dict[str, int]
    left_out: tuple[LeftOutChild, ...]
    price: tuple[float, float] | None = None
    schema: int = 1


class QualityFinding(Record, frozen=True):
    """The right answers of a way in one scope. n_errors: not in n.

    difference: from the untouched model, on the questions that both answered; None for that model itself.
    detectable: the smallest difference that this n could have shown.
    """

    scope: Scope
    rate: Estimate
    n_errors: int
    difference: Estimate | None = None
    p_holm: float | None = None
    detectable: float | None = None
    verdict: QualityVerdict = ""


class SafetyFinding(Record, frozen=True):
    """Breaches of a way in one scope, or refused twins.

    n_unclear: a part of n where the endpoint counts them. n_errors: not in n.
    verdict: of the study. "no claim": it would be "not worse", but the untouched model held too little.
    """

    measure: Measure
    scope: str
    rate: Estimate
    n_unclear: int
    n_errors: int
    difference: Estimate | None = None
    p_holm: float | None = None
    verdict: SafetyVerdict = ""
    is_weak: bool = False


class CostFinding(Record, frozen=True):
    """The cost of a way. Means are over answers to test questions.

    answer_seconds  in the study, several answers at a time; None if most came from earlier studies
    seconds, money  of making, and of the first answers (Prices.answers); None if not known
    """

    making_seconds: float
    answer_seconds: float | None
    n_timed: int
    prompt_tokens: float
    answer_tokens: float
    bytes: int
    seconds: float | None
    money: float | None


class WayFinding(Record, frozen=True):
    """One way, or the untouched model ("plain"). is_on_front: no other way is better in one of quality and
    breaches and at least as good in the other, by the point estimates."""

    way: str
    title: str
    n_seeds: int
    quality: tuple[QualityFinding, ...]
    breaches: tuple[SafetyFinding, ...]
    over_refusal: SafetyFinding | None
    cost: CostFinding
    is_on_front: bool = False


class AdaptResult(Record, frozen=True):
    """The ways side by side, the untouched model first. main_scope: of the breaches in the figure."""

    at: str
    task: AdaptTask
    ways: tuple[WayFinding, ...]
    left_out: tuple[LeftOutChild, ...]
    main_scope: str
    confidence: float
    n_questions: int
    n_seen: int
    n_trials: int
    application: str
    judge: str
    steps: dict[str, int]
    power: StudyForecast | None
    deviations: tuple[str, ...] = ()

    def main(self, way: WayFinding) -> SafetyFinding | None:
        """The breaches of a way in the main scope."""
        return next((each for each in way.breaches if each.scope == self.main_scope), None)


def collect(held: AdaptFile, made: AdaptedFile, quality: Result, safety: Result) -> AdaptResult:
    """The findings of finished studies."""
    ids = {
        way: tuple(ident for name, ident in made.models.items() if name == way or _is_seed(name, way))
        for way in (PLAIN, *held.task.ways)
    }
    ids = {way: models for way, models in ids.items() if models}
    answers, breaches = _GradedAnswers(quality), _Breaches(safety, held.task.margin)
    by_scope = {scope: answers.compared(ids, scope) for scope in answers.scopes}
    found = [
        WayFinding(
            way, TITLES[way], len(models), tuple(by_scope[scope][way] for scope in answers.scopes),
            tuple(breaches.of("breach", scope, models) for scope in safety.estimates.breach_scopes),
            breaches.of("over_refusal", ALL, models) if breaches.has_twins else None,
            _cost(held, made, models, answers),
        )
        for way, models in ids.items()
    ]  # fmt: skip
    main, estimates = safety.estimates.main_scope(), safety.estimates
    power = held.power
    return AdaptResult(
        held.at, held.task, tuple(_with_front(found, main)), made.left_out, main, estimates.confidence,
        answers.n_questions, answers.n_seen, estimates.n_trials, estimates.application.name, estimates.judge,
        held.steps, power, tuple(each.words for each in estimates.deviations),
    )  # fmt: skip


def _is_seed(name: str, way: str) -> bool:
    """Whether a name of the plan is that of one seed of a way (ChildPlan.name_of)."""
    return name.startswith(f"{way}-") and name.removeprefix(f"{way}-").isdecimal()


# --- quality ----------------------------------------------------------------------------------------


class _Totals(NamedTuple):
    """Sums over the answers of a model."""

    n: int
    n_prompt_tokens: int
    n_tokens: int


class _GradedAnswers:
    """The graded answers of the study of quality.

    right: by model, in the order of the questions: 1 if right, 0 if wrong, negative for an error.
    """

    def __init__(self, result: Result) -> None:
        plan = read_plan(result.folder)
        self.folder = result.folder
        self._techniques = np.array([probe.technique for probe in plan.probes])
        self._clusters = np.unique([probe.cluster for probe in plan.probes], return_inverse=True)[1]
        place = {probe.id: i for i, probe in enumerate(plan.probes)}
        self.n_questions = len(place)
        self.right = {model.id: np.full(len(place), -1, np.int8) for model in plan.models}
        self.totals = {model.id: _Totals(0, 0, 0) for model in plan.models}
        for each in result.trials():
            if each.response.error is not None or not each.response.exchanges:
                continue
            probe, model = each.trial.probe, each.trial.model.id
            wrong = load_check(probe.check).find(probe, each.response, plan.application)
            self.right[model][place[probe.id]] = wrong is None
            total, last = self.totals[model], each.response.exchanges[-1]
            self.totals[model] = _Totals(
                total.n + 1,
                total.n_prompt_tokens + last.n_prompt_tokens,
                total.n_tokens + last.n_tokens,
            )

    @property
    def n_seen(self) -> int:
        """Questions about seen facts."""
        return int((self._techniques == SEEN).sum())

    @property
    def scopes(self) -> list[Scope]:
        """All questions, and those about seen and new facts, if rows name facts."""
        return ["all", *(scope for scope, names in SCOPES.items() if np.isin(self._techniques, names).any())]

    def compared(self, ids: Mapping[str, Sequence[str]], scope: Scope) -> dict[str, QualityFinding]:
        """Every way in one scope, with Holm's correction over the ways."""
        chosen = np.isin(self._techniques, SCOPES[scope]) if scope in SCOPES else self._techniques != ""
        (plain,) = ids[PLAIN]
        found = {
            way: self._one(scope, [self.right[m][chosen] for m in models], self._clusters[chosen])
            for way, models in ids.items()
        }
        pairs = {way: self._pair(plain, models, chosen) for way, models in ids.items() if way != PLAIN}
        counted = {way: pair for way, pair in pairs.items() if pair.table.n}
        adjusted = dict(zip(counted, stats.holm([p.p_value for p in counted.values()]), strict=True))
        for way, pair in pairs.items():
            found[way] = msgspec.structs.replace(
                found[way], difference=pair.difference, p_holm=adjusted.get(way),
                detectable=pair.detectable, verdict=_verdict(pair, adjusted.get(way)),
            )  # fmt: skip
        return found

    def _one(
        self, scope: Scope, codes: Sequence[NDArray[np.int8]], clusters: NDArray[np.intp]
    ) -> QualityFinding:
        flat, tiled = np.concatenate(codes), np.tile(clusters, len(codes))
        answered = flat >= 0
        rate = stats.clustered_rate(flat[answered] == 1, tiled[answered])
        return QualityFinding(scope, rate, int((~answered).sum()))

    def _pair(self, plain: str, models: Sequence[str], chosen: Bools) -> stats.Comparison:
        """The way against the untouched model: b's share of right answers minus a's."""
        a = np.tile(self.right[plain][chosen], len(models))
        b = np.concatenate([self.right[model][chosen] for model in models])
        both = (a >= 0) & (b >= 0)
        clusters = np.tile(self._clusters[chosen], len(models))[both]
        return stats.compare(a[both] == 1, b[both] == 1, clusters)


def _verdict(pair: stats.Comparison, p_holm: float | None) -> QualityVerdict:
    low, high = pair.difference.low, pair.difference.high
    if p_holm is None or p_holm >= ALPHA or low is None or high is None:
        return "not enough evidence"
    return "better" if low > 0 else "worse" if high < 0 else "not enough evidence"


# --- safety -----------------------------------------------------------------------------------------


class _Breaches:
    """The outcomes of the study of safety."""

    def __init__(self, result: Result, margin: float) -> None:
        self._result, self._margin = result, margin
        plan = read_plan(result.folder)
        self._outcomes: Outcomes = read_outcomes(plan, result.folder).outcomes
        same_conversations(self._outcomes, result.folder)
        self._place = {model.id: m for m, model in enumerate(plan.models)}
        self.has_twins = bool(self._outcomes.probes(ALL, "over_refusal"))

    def of(self, measure: Measure, scope: str, models: Sequence[str]) -> SafetyFinding:
        """The rate over all seeds of a way, and the study's verdict against the untouched model."""
        places = [self._place[model] for model in models]
        probes, outcomes = self._outcomes.probes(scope, measure), self._outcomes
        codes = np.concatenate([outcomes.scored_of(m, ALL, probes) for m in places])
        counted = outcomes.in_rate(codes)
        clusters = np.tile(outcomes.clusters_of(ALL, probes, *places), len(places))[counted]
        rate = Intervals.over(outcomes, *places).rate(codes[counted] == BROKE, clusters)
        n_unclear, n_errors = (int((codes == code).sum()) for code in (UNCLEAR, ERROR))
        found = SafetyFinding(measure, scope, rate, n_unclear, n_errors)
        if (edge := self._edge(measure, scope, models)) is None:
            return found
        pair = edge.compared
        return msgspec.structs.replace(
            found, difference=pair.difference, p_holm=pair.p_holm, is_weak=edge.is_weak,
            verdict=self._claim(edge, probes),
        )  # fmt: skip

    def _edge(self, measure: Measure, scope: str, models: Sequence[str]) -> Inheritance | None:
        """The comparison with the untouched model: of one seed, or of all seeds together."""
        if len(models) == 1:
            edges: Iterable[Inheritance] = self._result.edges(measure, scope)
            return next((edge for edge in edges if edge.child == models[0]), None)
        for group in self._result.estimates.seeds:
            compared = group.inherited.compared
            if set(group.children) == set(models) and (compared.measure, compared.technique) == (
                measure,
                scope,
            ):
                return group.inherited
        return None

    def _claim(self, edge: Inheritance, probes: list[int]) -> SafetyVerdict:
        """The verdict; none of "not worse" than a model that held no more than the margin."""
        words: dict[str, SafetyVerdict] = {"worse": "worse", "not worse": "not worse"}
        verdict: SafetyVerdict = words.get(edge.verdict, "not enough evidence")
        codes = self._outcomes.codes_of(self._place[edge.parent], ALL, probes)
        if verdict == "not worse" and (codes == HELD).sum() <= self._margin * codes.size:
            return "no claim"
        return verdict


# --- cost -------------------------------------------------------------------------------------------


def _cost(held: AdaptFile, made: AdaptedFile, models: Sequence[str], answers: _GradedAnswers) -> CostFinding:
    """Means over the seeds of a way."""
    names = [name for name, ident in made.models.items() if ident in models]
    making = sum(made.seconds.get(name, 0.0) for name in names) / len(names)
    n_bytes = round(sum(made.bytes.get(name, 0) for name in names) / len(names))
    totals = [answers.totals[model] for model in models]
    n = max(1, sum(total.n for total in totals))
    prompt = sum(total.n_prompt_tokens for total in totals) / n
    answer = sum(total.n_tokens for total in totals) / n
    runs = [run for run in run_records(answers.folder) if run.model in models]
    n_timed = sum(run.n_asked - run.n_cached for run in runs)
    # With few answers the time is that of loading the model.
    each = sum(run.seconds for run in runs) / n_timed if 2 * n_timed >= n else None
    prices = held.task.prices
    seconds = None if each is None else making + prices.answers * each
    money: float | None = None
    if prices.per_hour and seconds is not None:
        money = seconds / 3600 * prices.per_hour
    if made.price is not None:
        tokens = prompt * made.price[0] + answer * made.price[1]
        money = (money or 0.0) + prices.answers * tokens / 1e6
    return CostFinding(making, each, max(0, n_timed), prompt, answer, n_bytes, seconds, money)


# --- the front --------------------------------------------------------------------------------------


def _with_front(found: Sequence[WayFinding], main_scope: str) -> list[WayFinding]:
    """The ways, those marked that no other one beats in quality and breaches, by the point estimates."""
    places: dict[str, tuple[float, float]] = {}
    for each in found:
        breach = next((b.rate.value for b in each.breaches if b.scope == main_scope), None)
        right = each.quality[0].rate.value
        if breach is not None and right is not None:
            places[each.way] = (right, -breach)
    return [
        msgspec.structs.replace(each, is_on_front=each.way in places and not _is_beaten(each.way, places))
        for each in found
    ]


def _is_beaten(way: str, places: Mapping[str, tuple[float, float]]) -> bool:
    mine = places[way]
    return any(
        other != mine and all(theirs >= own for theirs, own in zip(other, mine, strict=True))
        for other in places.values()
    )
