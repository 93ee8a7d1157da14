"""Compare the ways to adapt a model to one task: quality, cost, breaches and over-refusal, side by side.

    task = read_task(Path("examples/adapt/support.toml"))
    result = adapt(task, Store(), Path("runs/support"))

    adapt.json            the task and its digest, before anything is made
    manual.index/         the index of the manual
    teacher/              the study in which the teacher answers the training questions
    quality/, safety/     the studies of test questions and of probes
    adapted.json          the models, and what they took

    quality       share of test questions that are right, and the difference from the untouched model. Holm's
                  correction runs over the ways, within all, seen and new facts each
    breaches      rates of the study of safety, and its verdict on the way against the untouched model
    cost          seconds of making, seconds and tokens of an answer, bytes, and money where a price is known

Promises: the questions, the ways, the budget and the margin are recorded before anything is made. Every way
is asked the same questions and the same probes, paired with the untouched model. The same command resumes. A
way with several seeds is judged over all of them; a question is one cluster. Errors are counted, and enter no
rate. A way that was not timed has no seconds, not 0.
Leaves to others: the plan of the ways (task.py), making and asking (runner.py), the methods
(study/intervals.py), and the look of a page (runner.py).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UnsetType
from numpy.typing import NDArray

from heredity import stats
from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core.errors import Damaged, Unavailable, UnknownName, UsageError
from heredity.core.files import RESULTS, Lock, refuse_linked_folders
from heredity.core.progress import Progress, Watch
from heredity.core.records import Estimate, Model, Record, digest
from heredity.core.sanitize import plural
from heredity.core.sections import Badge, Cell, Section
from heredity.core.terminal import size
from heredity.lab.plan import RESERVED, LeftOutChild, LineagePlan
from heredity.lab.runner import (
    Asking,
    Lineage,
    LineageRun,
    Log,
    MadeFile,
    ResultPage,
    Screen,
    StepProgress,
    Task,
    another_plan,
    asked_models,
    battery_forecast,
    battery_study,
    change,
    grid,
    listed,
    listing,
    now,
    power_of,
    read_made,
    read_record,
    read_results,
    share,
    stored,
    tasks,
    write_plan,
)
from heredity.lab.task import (
    INDEX,
    LESSONS,
    MANUAL,
    NEW,
    PLAIN,
    QUALITY,
    RECIPES,
    SAFETY,
    SEEN,
    TEACHER,
    TEACHER_TOKENS,
    TITLES,
    TRAIN,
    AdaptTask,
    ManualIndex,
    Prices,
    Questions,
    Scope,
    TaskForecast,
    added_bytes,
    conversations,
    forecast_task,
    guards_of,
    lineage_plan,
    lines,
    open_manual,
    question_probes,
    read_questions,
    search_of,
    training_probes,
    without_places,
)
from heredity.lineage.store import USUAL_BYTES, Store, searching_in
from heredity.lineage.types import EngineLoader, Grown
from heredity.recipes import ComputingRecipe, recipe
from heredity.study.estimates import ALL, JUDGE_FREE, Measure
from heredity.study.figures import Kind, RatePoint, scatter
from heredity.study.findings.edge_verdicts import (
    CLAIM,
    QUESTIONS,
    EdgeVerdict,
    asked_questions,
    number_cells,
    verdict_on,
)
from heredity.study.plan import StudyForecast
from heredity.study.result import Result
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.wording import NONE, bare, p_words, percent, points
from heredity.train.data.chat import Data, make_data

QualityVerdict = Literal["", "better", "worse", "not enough evidence"]
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
    """

    measure: Measure
    scope: str
    rate: Estimate
    n_unclear: int
    n_errors: int


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
    """One way, or the untouched model ("plain").

    verdict: of the study of safety, against the untouched model. is_on_front: no other way is better in one
    of quality and breaches and at least as good in the other, by the point estimates.
    """

    way: str
    title: str
    n_seeds: int
    quality: tuple[QualityFinding, ...]
    breaches: tuple[SafetyFinding, ...]
    over_refusal: SafetyFinding | None
    cost: CostFinding
    verdict: EdgeVerdict | None = None
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


def collect(held: AdaptFile, made: MadeFile, quality: Result, safety: Result) -> AdaptResult:
    """The findings of finished studies."""
    ids = {
        way: tuple(ident for name, ident in made.models.items() if re.fullmatch(rf"{way}(-\d+)?", name))
        for way in (PLAIN, *held.task.ways)
    }
    ids = {way: models for way, models in ids.items() if models}
    answers, estimates = _GradedAnswers(quality), safety.estimates
    has_twins = any(rate.measure == "over_refusal" for rate in estimates.rates)
    by_scope = {scope: answers.compared(ids, scope) for scope in answers.scopes}
    findings = [
        WayFinding(
            way, TITLES[way], len(models), tuple(by_scope[scope][way] for scope in answers.scopes),
            tuple(_safety(safety, "breach", each, models) for each in estimates.breach_scopes),
            _safety(safety, "over_refusal", ALL, models) if has_twins else None,
            _cost(held, made, models, answers), verdict_on(estimates, ids[PLAIN][0], models),
        )
        for way, models in ids.items()
    ]  # fmt: skip
    return AdaptResult(
        held.at, held.task, tuple(_with_front(findings, estimates.main_scope())), made.left_out,
        estimates.main_scope(), estimates.confidence,
        answers.n_questions, answers.n_seen, estimates.n_trials, estimates.application.name, estimates.judge,
        held.steps, held.power, tuple(each.words for each in estimates.deviations),
    )  # fmt: skip


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
        plan = result.plan
        self.result, self._intervals = result, result.intervals
        self._techniques = np.array([probe.technique for probe in plan.probes])
        self._clusters = np.unique([probe.cluster for probe in plan.probes], return_inverse=True)[1]
        place = {probe.id: i for i, probe in enumerate(plan.probes)}
        self.n_questions = len(place)
        self.right = {model.id: np.full(len(place), -1, np.int8) for model in plan.models}
        self.totals = {model.id: _Totals(0, 0, 0) for model in plan.models}
        for each in result.trials():
            if each.response.error is not None or not each.response.exchanges:
                continue
            model = each.trial.model.id
            self.right[model][place[each.trial.probe.id]] = each.verdict.outcome == "held"
            total, last = self.totals[model], each.response.exchanges[-1]
            self.totals[model] = _Totals(
                total.n + 1, total.n_prompt_tokens + last.n_prompt_tokens, total.n_tokens + last.n_tokens
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
        findings = {
            way: self._one(scope, [self.right[m][chosen] for m in models], self._clusters[chosen])
            for way, models in ids.items()
        }
        pairs = {way: self._pair(plain, models, chosen) for way, models in ids.items() if way != PLAIN}
        counted = {way: pair for way, pair in pairs.items() if pair.table.n}
        adjusted = dict(zip(counted, stats.holm([p.p_value for p in counted.values()]), strict=True))
        for way, pair in pairs.items():
            findings[way] = msgspec.structs.replace(
                findings[way], difference=pair.difference, p_holm=adjusted.get(way),
                detectable=pair.detectable, verdict=_verdict(pair, adjusted.get(way), self._intervals.alpha),
            )  # fmt: skip
        return findings

    def _one(
        self, scope: Scope, codes: Sequence[NDArray[np.int8]], clusters: NDArray[np.intp]
    ) -> QualityFinding:
        flat, tiled = np.concatenate(codes), np.tile(clusters, len(codes))
        answered = flat >= 0
        rate = self._intervals.rate(flat[answered] == 1, tiled[answered])
        return QualityFinding(scope, rate, int((~answered).sum()))

    def _pair(self, plain: str, models: Sequence[str], chosen: Bools) -> stats.Comparison:
        """The way against the untouched model: b's share of right answers minus a's."""
        a = np.tile(self.right[plain][chosen], len(models))
        b = np.concatenate([self.right[model][chosen] for model in models])
        both = (a >= 0) & (b >= 0)
        clusters = np.tile(self._clusters[chosen], len(models))[both]
        return self._intervals.compare(a[both] == 1, b[both] == 1, clusters)


def _verdict(pair: stats.Comparison, p_holm: float | None, alpha: float) -> QualityVerdict:
    low, high = pair.difference.low, pair.difference.high
    if p_holm is None or p_holm >= alpha or low is None or high is None:
        return "not enough evidence"
    return "better" if low > 0 else "worse" if high < 0 else "not enough evidence"


# --- safety -----------------------------------------------------------------------------------------


def _safety(result: Result, measure: Measure, scope: str, models: Sequence[str]) -> SafetyFinding:
    """The rate over all seeds of a way."""
    rates = [result.rate(model, scope, measure=measure) for model in models]
    rate = rates[0].estimate if len(rates) == 1 else result.rate_together(models, scope, measure)
    n_unclear, n_errors = sum(each.n_unclear for each in rates), sum(each.n_error for each in rates)
    return SafetyFinding(measure, scope, rate, n_unclear, n_errors)


# --- cost -------------------------------------------------------------------------------------------


def _cost(held: AdaptFile, made: MadeFile, models: Sequence[str], answers: _GradedAnswers) -> CostFinding:
    """Means over the seeds of a way."""
    names = [name for name, ident in made.models.items() if ident in models]
    making = sum(made.seconds.get(name, 0.0) for name in names) / len(names)
    n_bytes = round(sum(made.bytes.get(name, 0) for name in names) / len(names))
    totals = [answers.totals[model] for model in models]
    n = max(1, sum(total.n for total in totals))
    prompt = sum(total.n_prompt_tokens for total in totals) / n
    answer = sum(total.n_tokens for total in totals) / n
    runs = [run for run in answers.result.runs if run.model in models]
    n_timed = sum(run.n_asked - run.n_cached for run in runs)
    # With few answers the time is that of loading the model.
    each = sum(run.seconds for run in runs) / n_timed if 2 * n_timed >= n else None
    prices = held.task.prices
    seconds = None if each is None else making + prices.answers * each
    money: float | None = None
    if prices.per_hour and seconds is not None:
        money = seconds / 3600 * prices.per_hour
    if (price := made.price or price_of(prices, answers.result, models)) is not None:
        tokens = prompt * price[0] + answer * price[1]
        money = (money or 0.0) + prices.answers * tokens / 1e6
    return CostFinding(making, each, max(0, n_timed), prompt, answer, n_bytes, seconds, money)


def price_of(prices: Prices, result: Result, models: Sequence[str]) -> tuple[float, float] | None:
    """The price of a million prompt and answer tokens: the task's, or else the study's; None without."""
    if prices.prompt or prices.answer:
        return prices.prompt, prices.answer
    accounts = [result.estimates.circumstances.accounts.get(model, {}) for model in models]
    listed = {str(each) for account in accounts for each in account.get("price", ())}
    prompt, comma, answer = next(iter(listed), "").partition(",")
    return (float(prompt), float(answer)) if comma and len(listed) == 1 else None


# --- the front --------------------------------------------------------------------------------------


def _with_front(way_findings: Sequence[WayFinding], main_scope: str) -> list[WayFinding]:
    """The ways, those marked that no other one beats in quality and breaches, by the point estimates."""
    places: dict[str, tuple[float, float]] = {}
    for each in way_findings:
        breach = next((b.rate.value for b in each.breaches if b.scope == main_scope), None)
        right = each.quality[0].rate.value
        if breach is not None and right is not None:
            places[each.way] = (right, -breach)
    beaten = {
        way
        for way, (right, held) in places.items()
        if any(other != (right, held) and other[0] >= right and other[1] >= held for other in places.values())
    }
    return [
        msgspec.structs.replace(each, is_on_front=each.way in places.keys() - beaten) for each in way_findings
    ]


_PILOT = 4  # steps, of which the first is not measured: it may compile and allocate
PLAN, ADAPTED = "adapt.json", "adapted.json"


@dataclass
class _Workshop:
    """The parts of a task that are known before anything is made."""

    task: AdaptTask
    questions: Questions
    application: Application
    store: Store
    out: Path
    manual: ManualIndex | None
    watch: Watch | None = None
    engine_loader: EngineLoader | None = None
    teaching_seconds: float = 0.0
    guards: dict[str, tuple[GuardSpec, ...]] = field(init=False)
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.guards = guards_of(self.task, self.questions, self.manual)
        plan = lineage_plan(self.task, self.guards, {})
        self.lineage = Lineage(plan, self.store, self.out / "repairs", self.watch, self.engine_loader)
        self.lineage.data = {
            TRAIN: self.questions.data(self.system),
            LESSONS: conversations(LESSONS, self.system, [("A question?", "An answer.")]),
        }

    @property
    def system(self) -> str:
        """The system message that training examples have; "" for none."""
        return "" if self.application.is_default_system else self.application.system_text()

    @property
    def plan(self) -> LineagePlan:
        """The plan of models and safety."""
        return self.lineage.plan

    def tokens(self, n: int) -> Application:
        """The application with another limit on an answer."""
        decoding = msgspec.structs.replace(self.application.decoding, max_tokens=n)
        return msgspec.structs.replace(self.application, decoding=decoding)

    def with_manual(self) -> Application:
        """The application of a teacher: it shows passages of the manual."""
        assert self.manual is not None  # the task checks it
        passages = search_of(self.task, self.manual)
        application = self.tokens(max(TEACHER_TOKENS, self.task.answer_tokens))
        return msgspec.structs.replace(application, retrieval=passages)

    def quality(self, models: Sequence[Grown | Model]) -> Study:
        """The study of the test questions. Nothing is asked yet."""
        return Study(
            StudySpec(
                models,
                self.tokens(self.task.answer_tokens),
                probes=question_probes(self.questions, self.task.grading),
                out=self.out / QUALITY,
                margin=self.task.margin,
            ),
            store=self.store,
            engine_loader=self.engine_loader,
        )

    @property
    def digest(self) -> str:
        """Names the task with the content of its files, wherever they lie."""
        content = [self.questions.digest, self.application.digest, self.manual.hash if self.manual else ""]
        if self.manual and not isinstance(self.manual.rerank_id, UnsetType):
            content.append(self.manual.rerank_id)
        return digest([without_places(self.task), content])


def adapt(
    task: AdaptTask,
    store: Store,
    out: Path,
    watch: Watch | None = None,
    log: Log = lambda line: None,  # noqa: ARG005
    engine_loader: EngineLoader | None = None,
) -> AdaptResult:
    """Make every way of a task, ask them all, and return the findings.

    log: receives a line for each step, and those of the power. Raises BadInput for a file of the task,
    NotComparable if the folder holds another task, and UsageError if no way can be made.
    """
    questions, application = read_questions(task), Application.load(task.application, store)
    refuse_linked_folders(out, *RESERVED, QUALITY, SAFETY, TEACHER, MANUAL, INDEX)
    with Lock(out), searching_in(store):
        manual = open_manual(task, store, out, has_begun=(out / PLAN).exists())
        shop = _Workshop(task, questions, application, store, out, manual, watch, engine_loader)
        lineage_run = LineageRun(shop.lineage, out, ADAPTED, (QUALITY, SAFETY), log)
        held, possible = _planned(shop, lineage_run)
        course = StepProgress(len(possible) + 3 + ("distilled" in task.ways), 0.0, log)
        lineage_run.pull(course, "get the model")
        if any(each.child.name == "distilled" for each in possible):
            course.start("let the teacher answer the training questions", 0.0)
            shop.lineage.data[LESSONS] = _lessons(shop)
            course.end()
        lineage_run.make(possible, course)
        made = _note_models(shop, lineage_run, held)
        safety = battery_study(shop.lineage, shop.plan.battery[0], out)
        quality = shop.quality(asked_models(shop.lineage, shop.plan.battery[0]))
        asked = [Asking("the test questions", quality), Asking("the probes", safety)]
        results = lineage_run.ask(asked, course)
        return collect(held, made, results[QUALITY], results[SAFETY])


def dry_run(task: AdaptTask, store: Store, log: Log, out: Path) -> None:
    """Log what a task would make and ask, and what it could show. Nothing is made, asked or written."""
    questions, application = read_questions(task), Application.load(task.application, store)
    stand_in = ManualIndex("", "", 0.0, 0, 0) if task.needs_manual else None
    shop = _Workshop(task, questions, application, store, out, stand_in)
    possible = LineageRun(shop.lineage, out, ADAPTED, (), log).possible()
    new = f", {questions.n_seen} of them about seen facts" if questions.has_facts else ""
    log(
        f"{plural(len(questions.train), 'training row')}, {plural(len(questions.test), 'test question')}{new}"
    )
    for each in possible:
        how = "a guard" if each.child.name in shop.guards else each.child.recipe
        steps = each.child.settings.get("steps")
        amount = f"{task.budget.minutes:g} min" if task.budget.minutes else plural(task.steps, "step")
        log(f"make {each.name}: {how}{f', {amount}' if steps else ''}")
    n_models = 1 + len(possible)
    log(f"ask {n_models} models {plural(n_models * len(questions.test), 'test question')}")
    study = battery_forecast(shop.plan, shop.plan.battery[0], possible, store, out)
    log(f"ask {n_models} models the probes: {plural(study.resolved.n_trials, 'trial')}")
    _forecast(shop, possible, log)
    power_of(shop.plan, possible, store, out, log)


def read_result(out: Path) -> AdaptResult:
    """The findings of a finished folder. Raises Damaged, or UsageError for a folder without a task."""
    held = read_adapt_file(out)
    made = read_made(out / ADAPTED, held.digest)
    results = read_results(out, (QUALITY, SAFETY))
    for result in results.values():
        asked = {card.id for card in result.estimates.models}
        if PLAIN not in made.models or not asked.issuperset(made.models.values()):
            raise Damaged(
                f"{out / ADAPTED} names other models than {result.folder} asked. The task's own command "
                "writes it again."
            )
    return collect(held, made, results[QUALITY], results[SAFETY])


def read_adapt_file(out: Path) -> AdaptFile:
    """The task in a folder. Raises Damaged if it cannot be read, and UsageError for a folder without one."""
    if not (out / PLAN).exists():
        raise UsageError(f"{out} holds no task: there is no {PLAN} in it.")
    return read_record(out / PLAN, AdaptFile)


def task_folder(task: AdaptTask, name: str) -> Path:
    """The usual folder of a task: its name, and a part of a digest over its file and its rows."""
    rows = read_questions(task).digest
    return RESULTS / f"{name}-{digest([without_places(task), rows])[:8]}"


# --- before the plan is saved -------------------------------------------------------------------------


def _planned(shop: _Workshop, lineage_run: LineageRun) -> tuple[AdaptFile, list[Task]]:
    """The task in the folder, which is saved if it is new, and the models that can be made."""
    held, log = read_adapt_file(shop.out) if (shop.out / PLAN).exists() else None, lineage_run.log
    if held is not None and held.digest != shop.digest:
        raise another_plan(shop.out / PLAN)
    possible = lineage_run.possible(held.digest if held else "")
    if held is None:
        forecast = _forecast(shop, possible, log)
        power = power_of(shop.plan, possible, shop.store, shop.out, log).get(SAFETY)
        steps = dict[str, int]()  # those of the budget, or as many as fit into its minutes
        for each in possible:
            way, task = each.child.name, shop.task
            if way in RECIPES and way not in steps:
                steps[way] = task.steps or _steps_in_budget(shop, way, each.child.recipe)
        held = AdaptFile(shop.digest, now(), shop.task, shop.manual, steps, power, forecast)
        write_plan(shop.out / PLAN, held)
    shop.lineage.plan = lineage_plan(shop.task, shop.guards, held.steps)
    names = {each.name for each in possible}
    return held, [each for each in tasks(shop.plan) if each.name in names]


def _steps_in_budget(shop: _Workshop, way: str, kind: str) -> int:
    """The steps of a way that take about the minutes of the budget on this machine.

    Raises the errors of the recipe, and Unavailable if it reports no step.
    """
    ticks: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.step == "train":
            ticks.append(time.monotonic())

    shop.lineage.pull()
    settings = {**shop.task.settings.get(way, {}), "batch_size": shop.task.budget.batch_size, "steps": _PILOT}
    made = recipe(kind, data=shop.questions.data(shop.system), watch=watch, **settings)
    if isinstance(made, ComputingRecipe):
        made = made.on(shop.store.device())
    with tempfile.TemporaryDirectory(prefix="heredity-pace-") as folder:
        (out := Path(folder) / "files").mkdir()
        made.apply([shop.store.whole(shop.lineage.models[PLAIN])], out)
    if len(ticks) < 2:
        raise Unavailable(f"'{kind}' reports no steps, so give `steps` in [budget].")
    per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    return max(1, int(60 * shop.task.budget.minutes / max(per_step, 1e-6)))


def _forecast(shop: _Workshop, possible: Sequence[Task], log: Log) -> TaskForecast:
    """The forecast of all but the probes, also given to `log` in lines."""
    try:
        n_bytes = float(sum(file.bytes for file in shop.store.named(shop.task.model).record.files))
    except (UnknownName, UsageError):  # it is not pulled yet
        n_bytes = USUAL_BYTES
    forecast = forecast_task(shop.task, shop.questions, possible, n_bytes)
    log("Training and test questions:")
    for line in lines(forecast):
        log(f"  {line}")
    return forecast


# --- making ------------------------------------------------------------------------------------------


def _lessons(shop: _Workshop) -> Data:
    """The answers of the teacher to the training questions, which it gives with passages of the manual."""
    plain, named = shop.lineage.models[PLAIN], shop.task.teacher
    teacher = stored(shop.store, named, shop.watch) if named else plain
    study = Study(
        StudySpec(
            [teacher], shop.with_manual(), probes=training_probes(shop.questions), out=shop.out / TEACHER
        ),
        store=shop.store, engine_loader=shop.engine_loader,
    )  # fmt: skip
    result = study.run(shop.watch)
    shop.teaching_seconds = result.estimates.circumstances.seconds
    answered = [each for each in result.trials() if each.text.strip()]
    if not answered:
        raise UsageError("The teacher answered no training question.")
    pairs = [(each.trial.probe.turns[-1], each.text) for each in answered]
    stops = [each.response.exchanges[-1].stop for each in answered]
    made = conversations(LESSONS, shop.system, pairs, stops)
    is_other = teacher.record.id != plain.record.id
    return make_data(made.name, made.dialogues, teacher.record.id if is_other else "")


def _note_models(shop: _Workshop, lineage_run: LineageRun, held: AdaptFile) -> MadeFile:
    """Save which models were made, and what they took."""
    models, seconds, sizes = shop.lineage.models, dict[str, float](), dict[str, int]()
    for each in tasks(shop.plan):
        way, model = each.child.name, models.get(each.name)
        if model is None:
            continue
        seconds[each.name] = 0.0 if way in shop.guards else model.record.made.seconds
        if way == "retrieval" and held.manual is not None:
            seconds[each.name] = held.manual.seconds
        if way == "distilled":
            seconds[each.name] += shop.teaching_seconds / len(shop.task.seeds)
        sizes[each.name] = added_bytes(way, model, shop.guards, shop.manual)
    return lineage_run.note(held.digest, seconds, sizes)


# --- the page: quality, safety and cost of every way, against the untouched model ---------------------

QUICK = "This was a quick run, with few steps and few questions, to see it work. It shows nothing."
_SCOPES = {"all": "all questions", "seen": "seen facts", "new": "new facts"}
_SEEN = (
    "A fact is seen if a training row is about it, in other words than the test. New facts stand in the "
    "manual only: a way that does not read it can only guess."
)
_DISTILLED = (
    "The distilled model learned a teacher's answers to the training questions. The teacher gave them with "
    "passages of the manual."
)


def page_of(result: AdaptResult) -> ResultPage:
    """The page of a task."""
    return ResultPage(
        verb="adapt",
        file="adapt.md",
        title=result.task.title,
        caution=QUICK if result.task.is_quick else "",
        sentences=sentences(result),
        gist=[*sentences(result)[:1], *filter(None, [_front(result)])],
        asides=(),
        figure=_figure(result),
        caption="Quality against breaches: the ways with the intervals of both",
        sections=[
            *_quality_section(result),
            *_safety_section(result),
            *_cost_section(result),
            *listing("reading", "How to read this page", [*_how_to_read(result)]),
            *listing("left_out", "Left out", [f"{each.name}: {each.why}" for each in result.left_out]),
            *listing("declared", "What was declared, and when", result.task.notes, _declared(result)),
        ],
        short=_short(result),
        full=_full(result),
    )


def _short(adapt_result: AdaptResult) -> Screen:
    rows = [
        (
            way.title, rate_words(way.quality[0]), rate_words(way.over_refusal),
            rate_words(adapt_result.main(way)), way.verdict.word if way.verdict else "",
        )
        for way in adapt_result.ways
    ]  # fmt: skip
    return Screen(("way", "right", "twins refused", "breaches", "against the untouched"), rows)


def _full(adapt_result: AdaptResult) -> Screen:
    rows = [
        (
            way.title, rate_words(way.quality[0]), rate_words(adapt_result.main(way)),
            rate_words(way.over_refusal), way.verdict.words if way.verdict else "",
            _seconds_words(way.cost.making_seconds), _answer_words(way.cost), size(way.cost.bytes),
        )
        for way in adapt_result.ways
    ]  # fmt: skip
    return Screen(
        ("way", "right", "breaches", "twins refused", "safety", "making", "an answer", "added"), rows
    )


def sentences(adapt_result: AdaptResult) -> list[str]:
    """The result of the comparison in a few sentences."""
    ways = [each for each in adapt_result.ways if each.way != PLAIN]
    lines = [_by_verdict(ways, "better", "answer more questions than the untouched model")]
    if worse := [each for each in ways if each.quality[0].verdict == "worse"]:
        lines.append(_by_verdict(worse, "worse", "answer fewer"))
    if unshown := [each for each in ways if each.quality[0].verdict == "not enough evidence"]:
        n = adapt_result.n_questions
        lines.append(f"Of {_names(unshown)}, {n:,} questions show neither: not enough evidence.")
    parts: dict[str, list[WayFinding]] = {}
    for way in ways:
        parts.setdefault(way.verdict.word if way.verdict else "not compared", []).append(way)
    by_word = "; ".join(f"{word}: {_names(mine)}" for word, mine in parts.items())
    lines.append(f"Safety against the untouched model: {by_word}.")
    return [*lines, *filter(None, [_front(adapt_result)])]


def rate_words(finding: QualityFinding | SafetyFinding | None) -> str:
    """A rate with its n: `43 % of 160`."""
    if finding is None or finding.rate.value is None:
        return NONE
    return f"{percent(finding.rate.value)} of {finding.rate.n:,}"


def clock(seconds: float) -> str:
    """`47 s`, `3:07`, `1:02:09`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _seconds_words(seconds: float | None) -> str:
    """Seconds of making, as a clock; a dash if they are not known."""
    if seconds is None:
        return NONE
    if 0 < seconds < 1:
        return "< 1 s"
    return clock(seconds) if seconds else "0"


def _answer_words(cost: CostFinding) -> str:
    """Seconds an answer, to two digits."""
    return NONE if cost.answer_seconds is None else f"{cost.answer_seconds:.2g} s"


def _front(adapt_result: AdaptResult) -> str:
    front = [each for each in adapt_result.ways if each.is_on_front]
    if not front:
        return ""
    return f"By the point estimates, no way beats {_names(front)} in both quality and breaches."


def _by_verdict(ways: Sequence[WayFinding], verdict: str, what: str) -> str:
    mine = [each for each in ways if each.quality[0].verdict == verdict]
    if not mine:
        return f"No way is shown to {what}."
    differences = ((way.title, way.quality[0].difference) for way in mine)
    each = ", ".join(f"{title} {bare(points(d.value if d else None))}" for title, d in differences)
    return f"Shown to {what}, in points: {each}."


def _names(ways: Sequence[WayFinding]) -> str:
    return listed([each.title for each in ways])


# --- the figure -------------------------------------------------------------------------------------


def _figure(adapt_result: AdaptResult) -> str:
    """Right answers against breaches: the way in green answers more questions, the one in red lost safety."""
    points = []
    for way in adapt_result.ways:
        if (breach := adapt_result.main(way)) is not None:
            kind: Kind = "worse" if way.verdict and way.verdict.kind == "worse" else "open"
            kind = "good" if kind == "open" and way.quality[0].verdict == "better" else kind
            points.append(RatePoint(way.title, kind, breach.rate, way.quality[0].rate, way.is_on_front))
    scope = "breaches by checks" if adapt_result.main_scope == JUDGE_FREE else "judged breaches"
    return scatter("Ways to adapt a model", points, f"{scope}; bold: on the Pareto front", "right answers")


# --- the sections -----------------------------------------------------------------------------------


def _title(way: WayFinding) -> str:
    name = f"{way.title} model" if way.way == PLAIN else way.title
    return f"{name}, {way.n_seeds} seeds" if way.n_seeds > 1 else name


def _quality_section(result: AdaptResult) -> Iterator[Section]:
    seen = f", {result.n_seen} of them about seen facts" if result.n_seen else ""
    by = result.task.grading.by
    claim = f"{result.n_questions:,} test questions{seen}. An answer is right by the rule {by}."
    scopes = [each.scope for each in result.ways[0].quality]
    head = [
        "way", *(f"{_SCOPES[scope]}, right" for scope in scopes), "points", "p", "verdict", "errors",
        "Pareto front",
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            _title(way), *(share(each.rate) for each in way.quality), change(way.quality[0].difference),
            p_words(way.quality[0].p_holm), way.quality[0].verdict or NONE,
            str(way.quality[0].n_errors or NONE), "yes" if way.is_on_front else "",
        ]
        for way in result.ways
    ]  # fmt: skip
    apart = [
        [_title(way), _SCOPES[each.scope], change(each.difference), p_words(each.p_holm), each.verdict]
        for way in result.ways
        for each in way.quality
        if each.scope != "all" and each.difference is not None
    ]
    title = "Seen and new facts apart, each with a correction of its own"
    tables = (
        *grid("Quality", head, rows),
        *grid(title, ["way", "questions", "points", "p", "verdict"], apart),
    )
    yield Section("quality", "Quality", claim, tables)


def _safety_section(adapt_result: AdaptResult) -> Iterator[Section]:
    judge = f" The judge is {adapt_result.judge}." if adapt_result.judge else ""
    claim = f"{plural(adapt_result.n_trials, 'trial')} in the application {adapt_result.application}.{judge}"
    first, verdicts = adapt_result.ways[0], [way.verdict for way in adapt_result.ways if way.verdict]
    asked = asked_questions(verdicts)
    head = [
        "way",
        *("breaches" if each.scope == JUDGE_FREE else "judged breaches" for each in first.breaches),
    ]
    head += ["twins refused"] if first.over_refusal else []
    rows: list[list[Cell]] = [
        [
            _title(way), *(share(each.rate) for each in (*way.breaches, way.over_refusal) if each),
            Badge(way.verdict.word, way.verdict.why) if way.verdict else NONE,
            *number_cells([way.verdict] if way.verdict else [], asked),
        ]
        for way in adapt_result.ways
    ]  # fmt: skip
    head += ["verdict", *(f"{QUESTIONS[question]}, points" for question in asked)]
    deviations = tuple(f"Deviation from the plan: {line}" for line in adapt_result.deviations)
    yield Section("safety", "Safety", claim, tuple(grid("Safety", head, rows)), deviations)


def _cost_section(adapt_result: AdaptResult) -> Iterator[Section]:
    first = f"with {plural(adapt_result.task.prices.answers, 'answer')}"
    rows = [
        [
            _title(way), _seconds_words(way.cost.making_seconds), _answer_words(way.cost),
            f"{way.cost.prompt_tokens:,.0f} + {way.cost.answer_tokens:,.0f}",
            size(way.cost.bytes) if way.cost.bytes else NONE, _seconds_words(way.cost.seconds),
            NONE if way.cost.money is None else f"{way.cost.money:,.2f}",
        ]
        for way in adapt_result.ways
    ]  # fmt: skip
    head = ["way", "making", "an answer", "tokens, prompt + answer", "added", f"time {first}"]
    yield Section("cost", "Cost", "", tuple(grid("Cost", [*head, f"money {first}"], rows)))


def _how_to_read(adapt_result: AdaptResult) -> Iterator[str]:
    margin = f"{100 * adapt_result.task.margin:g} points"
    yield (
        "Every way answers the same questions and probes in the same application, paired with the untouched "
        "model."
    )
    if adapt_result.n_seen:
        yield _SEEN
    yield (
        "Points are percentage points: the way's share minus that of the untouched model, with the "
        f"{100 * adapt_result.confidence:g} % interval. p is after Holm over the ways."
    )
    yield f"{CLAIM} The margin is {margin}."
    yield (
        "Making is training, indexing, and the answers of a teacher. An answer takes this time in the study, "
        "which asks several at once."
    )
    yield (
        "Pareto front: no other way beats it in both quality and breaches. Where intervals overlap, the "
        "order is open."
    )
    if any(each.way == "distilled" for each in adapt_result.ways):
        yield _DISTILLED


def _declared(result: AdaptResult) -> str:
    task = result.task
    steps = ", ".join(f"{TITLES[way]} {n:,}" for way, n in result.steps.items())
    trained = f" Steps of {task.budget.batch_size} examples: {steps}." if steps else ""
    return (
        f"The task was written at {result.at}, with its questions, ways, budget and margin. The model is "
        f"{task.model}.{trained}"
    )
