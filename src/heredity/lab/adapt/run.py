"""Compare the ways to adapt a model, from a task file to the findings, and resume after a stop at any point.

    adapt.json            the task and its digest, before anything is made
    manual.index/         the index of the manual
    teacher/              the study in which the teacher answers the training questions
    quality/, safety/     the studies of test questions and of probes
    adapted.json          the models, and what they took

Promises: the same command makes no model twice and repeats no answer. A way that cannot be made is named with
the reason, and no other takes its place.
Leaves to others: guards and recipes (ways.py), making (inheritance/), asking (study/), numbers (findings.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import UnsetType

from heredity.application.guards import GuardSpec
from heredity.application.retrieval.store import searching_in
from heredity.application.spec import Application
from heredity.core.errors import Damaged, NotComparable, Unavailable, UnknownName, UsageError
from heredity.core.files import RESULTS, Lock, read_file, refuse_linked_folders, write_atomic
from heredity.core.progress import Progress, Watch
from heredity.core.records import Model, digest, encode
from heredity.core.sanitize import plural
from heredity.engines.remote.budget import Calls
from heredity.lab.adapt import ways
from heredity.lab.adapt.findings import AdaptedFile, AdaptFile, AdaptResult, collect
from heredity.lab.adapt.forecast import TEACHER_TOKENS, TaskForecast, forecast_task, lines
from heredity.lab.adapt.questions import (
    Questions,
    conversations,
    question_probes,
    read_questions,
    training_probes,
)
from heredity.lab.adapt.task import RECIPES, AdaptTask, Prices, without_places
from heredity.lab.adapt.ways import PLAIN, QUALITY, SAFETY, TEACHER, ManualIndex
from heredity.lab.course import Course, Tell
from heredity.lab.inheritance import batteries
from heredity.lab.inheritance.children import Lineage, Task, stored
from heredity.lab.inheritance.plan import RESERVED, LineagePlan
from heredity.lab.inheritance.run import make_all, power_of
from heredity.lineage.speeds import USUAL_BYTES
from heredity.lineage.store import Store
from heredity.lineage.types import EngineLoader, Grown
from heredity.recipes import ComputingRecipe, recipe
from heredity.study.aggregate import read_proven
from heredity.study.plan import PLAN as STUDY_PLAN
from heredity.study.plan import StudyForecast
from heredity.study.report import html
from heredity.study.result import Result
from heredity.study.storage import run_records
from heredity.study.study import Study
from heredity.train.data.chat import Data, make_data

_PILOT = 4  # steps, of which the first is not measured: it may compile and allocate


def steps_in(
    minutes: float, kind: str, settings: Mapping[str, object], data: Data, parent: Grown, store: Store
) -> int:
    """The steps of a recipe that take about this many minutes on this machine.

    Raises the errors of the recipe, and Unavailable if it reports no step.
    """
    ticks: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.step == "train":
            ticks.append(time.monotonic())

    made = recipe(kind, data=data, watch=watch, **{**settings, "steps": _PILOT})
    if isinstance(made, ComputingRecipe):
        made = made.on(store.device())
    with tempfile.TemporaryDirectory(prefix="heredity-pace-") as folder:
        (out := Path(folder) / "files").mkdir()
        made.apply([store.whole(parent)], out)
    if len(ticks) < 2:
        raise Unavailable(f"'{kind}' reports no steps, so give `steps` in [budget].", code="pace-unknown")
    per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    return max(1, int(60 * minutes / max(per_step, 1e-6)))


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
    guards: dict[str, tuple[GuardSpec, ...]] = field(init=False)
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.guards = ways.guards_of(self.task, self.questions, self.manual)
        self.plan_for({})

    def plan_for(self, steps: Mapping[str, int]) -> None:
        """Plan the models for these steps of each trained way."""
        plan = ways.lineage_plan(self.task, self.guards, steps)
        self.lineage = Lineage(plan, self.store, self.out / "repairs", self.watch, self.engine_loader)
        self.lineage.data = {
            ways.TRAIN: self.questions.data(self.system),
            ways.LESSONS: conversations(ways.LESSONS, self.system, [("A question?", "An answer.")]),
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
        passages = ways.search_of(self.task, self.manual)
        application = self.tokens(max(TEACHER_TOKENS, self.task.answer_tokens))
        return msgspec.structs.replace(application, retrieval=passages)

    def quality(self, models: Sequence[Grown | Model]) -> Study:
        """The study of the test questions. Nothing is asked yet."""
        return Study(
            models, self.tokens(self.task.answer_tokens), question_probes(self.questions, self.task.grading),
            store=self.store, out=self.out / QUALITY, margin=self.task.margin,
            engine_loader=self.engine_loader,
        )  # fmt: skip

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
    tell: Tell = lambda line: None,  # noqa: ARG005
    engine_loader: EngineLoader | None = None,
) -> AdaptResult:
    """Make every way of a task, ask them all, and return the findings.

    tell: receives a line for each step, and those of the power. Raises BadInput for a file of the task,
    NotComparable if the folder holds another task, and UsageError if no way can be made.
    """
    questions, application = read_questions(task), Application.load(task.application, store)
    refuse_linked_folders(out, *RESERVED, QUALITY, SAFETY, TEACHER, ways.MANUAL, ways.INDEX)
    with Lock(out), searching_in(store):
        manual = ways.open_manual(task, out, has_begun=(out / PLAN).exists())
        shop = _Workshop(task, questions, application, store, out, manual, watch, engine_loader)
        possible = _possible(shop, tell)
        held = _read_held(shop)
        if held is None:
            forecast = _forecast(shop, possible, tell)
            power = power_of(shop.plan, possible, store, out, tell).get(SAFETY)
            held = _write_plan(shop, _steps(shop, possible), power, forecast)
        shop.plan_for(held.steps)
        possible = _without_former(shop, shop.lineage.preview())
        course = Course(len(possible) + 3 + ("distilled" in task.ways), 0.0, tell)
        course.start("get the model", 0.0)
        shop.lineage.pull()
        course.end()
        if any(each.child.name == "distilled" for each in possible):
            course.start("let the teacher answer the training questions", 0.0)
            shop.lineage.data[ways.LESSONS] = _lessons(shop)
            course.end()
        make_all(shop.lineage, possible, course)
        made = _note_models(shop, held)
        return collect(held, made, *_ask(shop, course))


def dry_run(task: AdaptTask, store: Store, tell: Tell, out: Path) -> None:
    """Tell what a task would make and ask, and what it could show. Nothing is made, asked or written."""
    questions, application = read_questions(task), Application.load(task.application, store)
    stand_in = ManualIndex("", "", 0.0, 0, 0) if task.needs_manual else None
    shop = _Workshop(task, questions, application, store, out, stand_in)
    possible = _possible(shop, tell)
    new = f", {questions.n_seen} of them about seen facts" if questions.has_facts else ""
    tell(
        f"{plural(len(questions.train), 'training row')}, {plural(len(questions.test), 'test question')}{new}"
    )
    for each in possible:
        how = "a guard" if each.child.name in shop.guards else each.child.recipe
        steps = each.child.settings.get("steps")
        amount = f"{task.budget.minutes:g} min" if task.budget.minutes else plural(task.steps, "step")
        tell(f"make {each.name}: {how}{f', {amount}' if steps else ''}")
    n_models = 1 + len(possible)
    tell(f"ask {n_models} models {plural(n_models * len(questions.test), 'test question')}")
    study = batteries.forecast(shop.plan, shop.plan.battery[0], possible, store, out)
    tell(f"ask {n_models} models the probes: {plural(study.resolved.n_trials, 'trial')}")
    _forecast(shop, possible, tell)
    power_of(shop.plan, possible, store, out, tell)


def read_result(out: Path) -> AdaptResult:
    """The findings of a finished folder. Raises Damaged, or UsageError for a folder without a task."""
    held = read_adapt_file(out)
    made = _read_adapted(out, held)
    refuse_linked_folders(out, QUALITY, SAFETY)
    results = [Result(out / name, read_proven(out / name)) for name in (QUALITY, SAFETY)]
    for result in results:
        asked = {card.id for card in result.estimates.models}
        if PLAIN not in made.models or not asked.issuperset(made.models.values()):
            raise Damaged(
                f"{out / ADAPTED} names other models than {result.folder} asked. The task's own command "
                "writes it again.",
                code="plan-damaged",
            )
    return collect(held, made, *results)


def _read_adapted(out: Path, held: AdaptFile) -> AdaptedFile:
    path = out / ADAPTED
    try:
        made = msgspec.json.decode(read_file(path), type=AdaptedFile)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path} cannot be read: {error}.", code="plan-damaged") from None
    if made.digest != held.digest:
        raise Damaged(f"{path} is of another task than {PLAN}.", code="plan-damaged")
    return made


def read_adapt_file(out: Path) -> AdaptFile:
    """The task in a folder. Raises Damaged if it cannot be read, and UsageError for a folder without one."""
    path = out / PLAN
    if not path.exists():
        raise UsageError(f"{out} holds no task: there is no {PLAN} in it.", code="not-a-task")
    try:
        return msgspec.json.decode(read_file(path), type=AdaptFile)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path} cannot be read: {error}.", code="plan-damaged") from None


def task_folder(task: AdaptTask, name: str) -> Path:
    """The usual folder of a task: its name, and a part of a digest over its file and its rows."""
    rows = read_questions(task).digest
    return RESULTS / f"{name}-{digest([without_places(task), rows])[:8]}"


# --- before the plan is saved -------------------------------------------------------------------------


def _possible(shop: _Workshop, tell: Tell) -> list[Task]:
    """The models that can be made; the others are reported with the reason. Raises UsageError without any."""
    possible = shop.lineage.preview()
    for each in shop.lineage.left_out:
        tell(f"left out: {each.name}: {each.why}")
    if not possible:
        raise UsageError("No way of this task can be made.", code="no-children")
    return possible


def _steps(shop: _Workshop, possible: Sequence[Task]) -> dict[str, int]:
    """The steps of each trained way: those of the budget, or as many as fit into its minutes."""
    task, found = shop.task, dict[str, int]()
    for each in possible:
        way, kind = each.child.name, each.child.recipe
        if way not in RECIPES or way in found:
            continue
        if not task.budget.minutes:
            found[way] = task.steps
            continue
        shop.lineage.pull()
        settings = {**task.settings.get(way, {}), "batch_size": task.budget.batch_size}
        data, plain = shop.questions.data(shop.system), shop.lineage.models[PLAIN]
        found[way] = steps_in(task.budget.minutes, kind, settings, data, plain, shop.store)
    return found


def _read_held(shop: _Workshop) -> AdaptFile | None:
    """The task in the folder. Raises NotComparable for another one."""
    if not (shop.out / PLAN).exists():
        return None
    held = read_adapt_file(shop.out)
    if held.digest != shop.digest:
        raise NotComparable(
            f"{shop.out / PLAN} holds another task, or other questions, documents or reranker. "
            "Name another folder: --out.",
            code="another-plan",
        )
    return held


def _without_former(shop: _Workshop, possible: Sequence[Task]) -> list[Task]:
    """The models without those that an earlier run left out, if a study has begun without them."""
    has_begun = any((shop.out / name / STUDY_PLAN).exists() for name in (QUALITY, SAFETY))
    if not (has_begun and (shop.out / ADAPTED).exists()):
        return list(possible)
    made = _read_adapted(shop.out, read_adapt_file(shop.out))
    former = {each.name: each for each in made.left_out}
    shop.lineage.left_out += [former[task.name] for task in possible if task.name in former]
    return [task for task in possible if task.name not in former]


def _forecast(shop: _Workshop, possible: Sequence[Task], tell: Tell) -> TaskForecast:
    """The forecast of all but the probes, also given to `tell` in lines."""
    try:
        n_bytes = float(sum(file.bytes for file in shop.store.named(shop.task.model).record.files))
    except (UnknownName, UsageError):  # it is not pulled yet
        n_bytes = USUAL_BYTES
    found = forecast_task(shop.task, shop.questions, possible, n_bytes)
    tell("Training and test questions:")
    for line in lines(found):
        tell(f"  {line}")
    return found


def _write_plan(
    shop: _Workshop, steps: dict[str, int], power: StudyForecast | None, forecast: TaskForecast
) -> AdaptFile:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    held = AdaptFile(shop.digest, at, shop.task, shop.manual, steps, power, forecast)
    shop.out.mkdir(parents=True, exist_ok=True)
    write_atomic(shop.out / PLAN, msgspec.json.format(encode(held), indent=2) + b"\n")
    return held


# --- making and asking --------------------------------------------------------------------------------


def _lessons(shop: _Workshop) -> Data:
    """The answers of the teacher to the training questions, which it gives with passages of the manual."""
    plain, named = shop.lineage.models[PLAIN], shop.task.teacher
    teacher = stored(shop.store, named, shop.watch) if named else plain
    study = Study(
        [teacher], shop.with_manual(), training_probes(shop.questions), store=shop.store,
        out=shop.out / TEACHER, engine_loader=shop.engine_loader,
    )  # fmt: skip
    answered = [each for each in study.run(shop.watch).trials() if each.text.strip()]
    if not answered:
        raise UsageError("The teacher answered no training question.", code="no-answer-finished")
    pairs = [(each.trial.probe.turns[-1], each.text) for each in answered]
    stops = [each.response.exchanges[-1].stop for each in answered]
    made = conversations(ways.LESSONS, shop.system, pairs, stops)
    is_other = teacher.record.id != plain.record.id
    return make_data(made.name, made.dialogues, teacher.record.id if is_other else "")


def _note_models(shop: _Workshop, held: AdaptFile) -> AdaptedFile:
    """Save which models were made, and what they took."""
    lineage, seconds, sizes = shop.lineage, dict[str, float](), dict[str, int]()
    if lineage.models.keys() <= {PLAIN}:
        raise UsageError(f"No way could be made: {lineage.left_out[-1].why}", code="no-children")
    teaching = sum(run.seconds for run in run_records(shop.out / TEACHER))
    for task in _made(lineage):
        way, model = task.child.name, lineage.models[task.name]
        seconds[task.name] = 0.0 if way in shop.guards else model.record.made.seconds
        if way == "retrieval" and held.manual is not None:
            seconds[task.name] = held.manual.seconds
        if way == "distilled":
            seconds[task.name] += teaching / len(shop.task.seeds)
        sizes[task.name] = ways.added_bytes(way, model, shop.guards, shop.manual)
    ids = {name: model.record.id for name, model in lineage.models.items()}
    price = price_of(lineage.models[PLAIN].record, shop.task.prices)
    made = AdaptedFile(held.digest, ids, seconds, sizes, tuple(lineage.left_out), price)
    write_atomic(shop.out / ADAPTED, encode(made) + b"\n")
    return made


def _made(lineage: Lineage) -> list[Task]:
    tasks = (Task(child, seed) for child in lineage.plan.child for seed in child.each_seed)
    return [task for task in tasks if task.name in lineage.models]


def price_of(model: Model, prices: Prices) -> tuple[float, float] | None:
    """The price of a million prompt and answer tokens: the task's, or else the listed one; None without."""
    if prices.prompt or prices.answer:
        return prices.prompt, prices.answer
    settings = model.recipe.settings
    if model.format != "remote" or settings.get("engine") != "remote":
        return None
    api, base_url, served = (str(settings.get(key)) for key in ("api", "base_url", "model"))
    found = Calls().price(model.name, api, base_url, served)
    return None if found is None else (found.prompt, found.answer)


def _ask(shop: _Workshop, course: Course) -> tuple[Result, Result]:
    """The results of both studies, each with its report."""
    models = batteries.asked_models(shop.lineage, shop.plan.battery[0])
    safety = batteries.study(
        shop.plan, shop.plan.battery[0], models, shop.store, shop.out, shop.engine_loader
    )
    results = []
    for title, study in (("the test questions", shop.quality(models)), ("the probes", safety)):
        course.start(f"ask {len(models)} models {title}", 0.0)
        result = study.run(course.watching(shop.watch))
        html.write(result.folder, result.folder / "report.html")
        results.append(result)
        course.end()
    return results[0], results[1]
