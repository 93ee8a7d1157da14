"""Make the children of a plan, ask them, resume after a stop, and show a page: what inherit and adapt share.

Promises: a child that the store has is not made again. A child whose recipe, setting or data is not in this
version is left out with the reason, and so are its own children. No other model takes its place. A child
that is the same model as another one is left out, too: it would count twice. Where the user made every
child, none is left out: one that cannot be had is an error.
Every model of a battery is asked the same questions. A forecast is that of the study itself, with stand-ins
for models that are not made yet. A child that an earlier run left out stays out of a study that has begun.
The time left follows the pace of this run; work of an earlier run does not count. The same result gives the
same page, in which names are escaped.
Leaves to others: the plan and its file (inherit.py, adapt.py), and the recipes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import compress
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import UnsetType

from heredity.application.spec import Application
from heredity.core.errors import (
    BadInput,
    Damaged,
    HeredityError,
    NotComparable,
    OutOfMemory,
    Refused,
    Unavailable,
    UsageError,
)
from heredity.core.files import read_file, refuse_linked_folders, write_atomic
from heredity.core.progress import PREPARE, Progress, TimeLeft, TimeSpan, Watch, Work, phase, time_words
from heredity.core.records import Decoding, Estimate, Model, Probe, RecipeRecord, Record, encode
from heredity.core.sections import Cell, CountedShare, Section, TextTable
from heredity.lab import repair as repairing
from heredity.lab.controls import COPY, OTHER_DTYPE, WEAKENED, make_control
from heredity.lab.examples import load_data
from heredity.lab.plan import (
    ANSWERS,
    BEHIND,
    ENGINE,
    MADE,
    REPAIR,
    BatteryPlan,
    ChildPlan,
    LeftOutChild,
    LineagePlan,
)
from heredity.lineage.references import find_or_pull
from heredity.lineage.store import TARGETS, Store, stand_in, target_of
from heredity.lineage.types import EngineLoader, Grown, Recipe
from heredity.recipes import derivable, derivable_class, recipe
from heredity.recipes.adopt import Adopt
from heredity.redteam import probes
from heredity.study.forecast import forecast_lines
from heredity.study.plan import PLAN as STUDY_PLAN
from heredity.study.plan import StudyForecast
from heredity.study.report import write_report
from heredity.study.report.markdown import plain, section_lines
from heredity.study.resolve import guarded_model
from heredity.study.result import Result
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.wording import NONE, bare, points, points_interval
from heredity.train.data.chat import Data

KEPT_ANSWERS = "answers.jsonl"  # of a model that learned the answers of a teacher
_SHAPES = {"model_type": "of another architecture", "vocab_size": "of another vocabulary size"}
_NOT_MADE = (UsageError, Unavailable, Refused, OutOfMemory)


class Task(NamedTuple):
    """A child to make from one seed; None for a child without seeds."""

    child: ChildPlan
    seed: int | None

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.child.name_of(self.seed)


def tasks(plan: LineagePlan) -> list[Task]:
    """The children in the order in which they are made, one task a seed."""
    return [Task(child, seed) for child in plan.child for seed in child.each_seed]


@dataclass
class Lineage:
    """The models of a plan as they are made.

    models: by the plan's names, foundations first; `NAME-SEED` for a child of several seeds.
    repair_out: the folder for the studies of repairs.
    data: the sets of the plan that are read.
    warn: receives what is doubtful about a training; None for nobody.
    """

    plan: LineagePlan
    store: Store
    repair_out: Path
    watch: Watch | None = None
    engine_loader: EngineLoader | None = None
    models: dict[str, Grown] = field(default_factory=dict)
    left_out: list[LeftOutChild] = field(default_factory=list)
    data: dict[str, Data | Path] = field(default_factory=dict)
    warn: Callable[[str], None] | None = None

    def pull(self) -> None:
        """Get the foundations, each once. Raises the errors of Store.pull."""
        for name, ref in self.plan.models.items():
            if name not in self.models:
                self.models[name] = stored(self.store, ref, self.watch)

    def preview(self) -> list[Task]:
        """The tasks that this version can do; the others are added to `left_out`. Nothing is made."""
        possible, missing, every = [], set[str](), tasks(self.plan)
        with phase(self.watch, "checking the children", n_total=len(every)) as meter:
            for task in every:
                why = self._obstacle(task, missing)
                meter.tick()
                if not why:
                    possible.append(task)
                elif task.child.name not in missing:
                    missing.add(task.child.name)
                    self.left_out.append(LeftOutChild(task.child.name, why))
        return possible

    def _obstacle(self, task: Task, missing: Collection[str]) -> str:
        """Why a task is left out, next to the children that are missing; "" if it is not. Raises BadInput."""
        if parent := next((each for each in task.child.parents if each in missing), ""):
            return f"its parent '{parent}' is left out"
        try:
            child = task.child
            if child.recipe == ENGINE:
                prefix, _, ref = str(child.settings.get("ref", "")).partition(":")
                if prefix not in TARGETS:
                    return f"no engine or setting is named '{prefix}'"
                target = target_of(f"{prefix}:")
                if target is None or not target.WRAPS_MODEL or ref != "{parent}":  # "call:" would run code
                    return f"its ref is not 'ENGINE:{{parent}}' but '{prefix}:{ref}'"
                return ""
            if child.recipe not in (MADE, REPAIR, BEHIND, COPY, OTHER_DTYPE, WEAKENED):
                self._recipe(task)
            return ""
        except BadInput:
            raise
        except _NOT_MADE as error:
            return str(error)

    def make(self, task: Task) -> HeredityError | None:
        """Make the child of one task, or find it in the store. Returns the error for which it is left out.

        Raises it instead if the user made every child of the plan.
        """
        if task.name in self.models:
            return None
        try:
            made = self._made(task)
            for name, model in self.models.items():
                if model.record.id == made.record.id:
                    raise UsageError(f"'{task.name}' is the same model as '{name}'.", code="name-twice")
            self.models[task.name] = made
        except _NOT_MADE as error:
            if isinstance(error, BadInput) or (self.plan.is_of_models and not task.child.control):
                raise
            self.left_out.append(LeftOutChild(task.name, str(error)))
            return error
        return None

    def doubt(self, task: Task) -> str:
        """Why the model that a user named may be no child of its parent, as a question; "" without doubt."""
        parent, made = self.models[task.child.parents[0]], self.models[task.name]
        known = {model.id: model for model in self.store.models()}
        is_declared = made.record.recipe.kind == Adopt.kind and not made.record.recipe.settings
        if not is_declared or made.record.parents[1] not in known:
            return ""
        given = self.store.by_id(made.record.parents[1])
        source = given.record.recipe
        is_known = source.kind == "pull" and "name" in source.settings
        first, second = _shape(parent), _shape(given)
        differ = [_SHAPES[key] for key in first.keys() & second.keys() if first[key] != second[key]]
        parts = [*(["a foundation of the catalogue"] if is_known else []), *sorted(differ)[:1]]
        if not parts:
            return ""
        return f"{given.record.name} is {', '.join(parts)}: is it a child of {parent.record.name}?"

    def _models_of(self, name: str, seed: int | None) -> list[Grown]:
        """The models of a name of the plan that are made, that of this seed first."""
        return [self.models[each] for each in self.plan.names_of(name, seed) if each in self.models]

    def _made(self, task: Task) -> Grown:
        child = task.child
        parents = list[Grown]()
        for name in child.parents:
            if not (models := self._models_of(name, task.seed)):
                raise Unavailable(f"The parent '{name}' of '{child.name}' is left out.")
            parents.append(models[0])
        if child.recipe == MADE:
            return adopted(self.store, parents[0], stored(self.store, child.reference, self.watch))
        if child.recipe in (COPY, OTHER_DTYPE, WEAKENED):
            return make_control(child, parents[0], self.store)
        if child.recipe == ENGINE:
            ref = str(child.settings["ref"]).replace("{parent}", parents[0].record.id)
            return self.store.get(ref)
        if child.recipe == REPAIR:
            how = repairing.Setting(
                Application("default"),
                str(child.settings.get("probes", "harmful_request")).split(","),
                margin=self.plan.margin,
                judge=self.plan.judge or None,
                store=self.store,
                out=self.repair_out / child.name,
                engine_loader=self.engine_loader,
                watch=self.watch,
            )
            repaired = repairing.repair(parents[0], parents[1], how)
            if repaired.model is None:
                raise Unavailable("No step of the repair is shown to be enough.")
            return repaired.model
        if not isinstance(child.guards, UnsetType):
            return guarded_model(parents[0], child.guards)
        return self.store.grow_once(self._recipe(task), parents)

    def _recipe(self, task: Task) -> Recipe:
        child = task.child
        settings: dict[str, object] = dict(child.settings)
        for setting, name in child.data.items():
            settings[setting] = self._examples(name, task.seed)
        if child.recipe in derivable():
            known = derivable_class(child.recipe).__dataclass_fields__
            if "watch" in known and (watch := self.watch) is not None:
                settings["watch"] = lambda progress: watch(progress._replace(model=task.name))
            if "warn" in known:
                settings["warn"] = None if task.child.control else self.warn
            if task.seed is not None:
                settings["seed"] = task.seed
        try:
            return recipe(child.recipe, name=task.name, **settings)
        except TypeError as error:  # of a text where the recipe compares numbers
            raise UsageError(
                f"A setting of '{child.name}' has another type than '{child.recipe}' takes: {error}.",
                code="wrong-type",
            ) from None

    def _examples(self, name: str, seed: int | None) -> Data | Path:
        """A set of the plan, or the answers of the teacher of a child; a stand-in until that is made."""
        if not name.startswith(ANSWERS):
            if name not in self.data:
                self.data[name] = load_data(self.plan.data[name], self.plan.examples)
            return self.data[name]
        models = self._models_of(child := name.removeprefix(ANSWERS), seed)
        if not models:
            return Data.of(child, [("A question?", "An answer.")])
        if not (path := models[0].folder / KEPT_ANSWERS).exists():
            raise Unavailable(f"'{child}' keeps no answers of its teacher.")
        return path


def adopted(store: Store, parent: Grown, made: Grown) -> Grown:
    """A model as a child of `parent`: itself if its record has that ancestor, else a recorded declaration."""
    if made.record.id == parent.record.id:
        raise UsageError(f"{made.record.name} cannot be its own child.")
    if made.record.format == "scripted":
        raise Refused(f"'{made.record.name}' is scripted, without weights, and can be no child.")
    if made.record.id in {each.id for each in store.descendants(parent.record)}:
        return made  # descendants, because the store may lack another ancestor of it
    declared = Adopt()
    return store.made_by(declared, [parent, made]) or store.grow(declared, [parent, made])


def _shape(model: Grown) -> dict[str, object]:
    """The architecture and the size of the vocabulary, from the config of a model; {} without one."""
    try:
        config = json.loads((model.folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in _SHAPES if key in config} if isinstance(config, dict) else {}


def stored(store: Store, ref: str, watch: Watch | None) -> Grown:
    """A model of the store, or one that is pulled."""
    return find_or_pull(ref, store, lambda name, _: store.pull(name, watch))


# --- the steps and the time left ----------------------------------------------------------------------

Log = Callable[[str], None]
_INSTANT = 0.05  # a share of the planned work or time under which a step says nothing of the pace
_SECOND = TimeSpan(0.5, 2.0)  # of a planned one


@dataclass
class StepProgress:
    """The steps of a run, and the time left: planned minutes, at the pace of this run so far.

    Only work of this run counts for the pace: a step that an earlier run did, or a part of it, does not.

    minutes     planned for all steps; without any, no time left is reported
    is_resumed  an earlier run was stopped, so the first step that takes time may be half done
    """

    n_steps: int
    minutes: float
    log: Log
    is_resumed: bool = False
    _done: float = 0.0  # planned minutes of the work of this run
    _spent: float = 0.0  # seconds
    _step: int = 0
    _planned: float = 0.0  # minutes of the step that runs
    _open: float = 0.0  # those that are not done
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = TimeLeft({"": Work(60 * self.minutes, _SECOND)})

    def start(self, title: str, minutes: float, done: float = 0.0) -> None:
        """Report the next step, which is planned to take `minutes`. done: the share of it that is there."""
        self._step, self._started = self._step + 1, time.monotonic()
        self._planned, self._open = minutes, minutes * (1.0 - done)
        self.left.had("", 60 * minutes * done)
        span = self.left.estimate()
        left = f"; {time_words(span)} left" if self.minutes and span else ""
        self.log(f"[{self._step}/{self.n_steps}] {title}{left}")

    def watching(self, watch: Watch | None) -> Watch | None:
        """The watch, whose events then have the time left of all steps, or none if no minutes are planned."""
        if watch is None:
            return None

        def show(progress: Progress) -> None:
            if progress.step != PREPARE and progress.n_total and self._open:
                share = min(1.0, progress.n_done / progress.n_total)
                done = self._open - self._planned * (1.0 - share)  # without that of earlier runs
                self._reached(max(0.0, done), time.monotonic() - self._started)
            watch(progress._replace(seconds_left=self.left.span() if self.minutes else None))

        return show

    def end(self, share: float | None = None) -> None:
        """End the step. share: of its work that this run did; None if that is not known."""
        spent = time.monotonic() - self._started
        if share is None and self._planned:
            has_worked = spent > 60 * _INSTANT * self._planned
            share = float(has_worked and not self.is_resumed)
            self.is_resumed = self.is_resumed and not has_worked
        done = self._planned * (share or 0.0) if share and share > _INSTANT else 0.0
        if done:
            self._done, self._spent = self._done + done, self._spent + spent
        self.left.had("", 60 * (self._open - done))
        self._open = 0.0
        self._reached(0.0, 0.0)

    def _reached(self, minutes: float, seconds: float) -> None:
        self.left.reached("", 60 * (self._done + minutes), self._spent + seconds)


# --- the studies ---------------------------------------------------------------------------------------

DEFAULT_TOKENS = 64  # of an answer under the models' own default


def application(battery: BatteryPlan) -> Application:
    """The application of a battery. Without a file it has no system message. Raises BadInput."""
    if battery.application:
        read = Application.load(battery.application)
    else:
        read = Application("own-default", decoding=Decoding(max_tokens=DEFAULT_TOKENS))
    if not battery.max_tokens:
        return read
    decoding = msgspec.structs.replace(read.decoding, max_tokens=battery.max_tokens)
    return msgspec.structs.replace(read, decoding=decoding)


def chosen_probes(battery: BatteryPlan) -> list[Probe]:
    """The probes of a battery: all, or those of some behaviours of each technique, with their twins.

    Raises UsageError if no probe seeks a breach.
    """
    loaded = list(probes.load(battery.probes))
    seeking = [probe for probe in loaded if probe.kind == "breach" and not probe.is_baseline]
    if not seeking:
        raise UsageError(
            f"No probe of '{battery.name}' seeks a breach, and a verdict compares breaches. "
            "Add a technique: heredity probes"
        )
    if not battery.has_twins:
        loaded = seeking
    if not battery.behaviours:
        return loaded
    kept: set[tuple[str, str]] = set()
    for technique in dict.fromkeys(probe.technique for probe in loaded):
        mine = list(dict.fromkeys(p.cluster for p in loaded if p.technique == technique))
        step = max(1.0, len(mine) / battery.behaviours)
        places = range(min(battery.behaviours, len(mine)))
        kept |= {(technique, mine[int(place * step)]) for place in places}
    return [probe for probe in loaded if (probe.technique, probe.cluster) in kept]


def study(
    plan: LineagePlan,
    battery: BatteryPlan,
    models: Sequence[Grown | Model],
    store: Store,
    out: Path,
    engine_loader: EngineLoader | None = None,
    roles: Mapping[str, str] | None = None,
) -> Study:
    """The study of a battery, in its own folder. Nothing is asked yet."""
    return Study(
        StudySpec(
            models, application(battery), probes=chosen_probes(battery), attacks=battery.attacks,
            out=out / battery.name, margin=plan.margin, judge=plan.judge or None,
            error_share=plan.error_share,
            endpoint="all_trials" if isinstance(plan.endpoint, msgspec.UnsetType) else plan.endpoint,
        ),
        store=store, engine_loader=engine_loader, roles=roles,
    )  # fmt: skip


def battery_study(lineage: Lineage, battery: BatteryPlan, out: Path) -> Study:
    """The study of a battery with the models that were made."""
    models, known = asked_models(lineage, battery), lineage.models
    roles = {
        known[t.name].record.id: t.child.role for t in tasks(lineage.plan) if t.child.role and t.name in known
    }
    return study(lineage.plan, battery, models, lineage.store, out, lineage.engine_loader, roles)


def asked_models(lineage: Lineage, battery: BatteryPlan) -> list[Grown]:
    """The models that a battery asks, those of every seed among them."""
    wanted = set(battery.models)
    seeds = {child.name_of(seed): child.name for child in lineage.plan.child for seed in child.each_seed}
    asked = {
        model.record.id: model
        for name, model in lineage.models.items()
        if not wanted or {name, seeds.get(name, name)} & wanted
    }
    return list(asked.values())


def battery_forecast(
    plan: LineagePlan, battery: BatteryPlan, made: Sequence[Task], store: Store, out: Path
) -> Study:
    """The study of a battery with a stand-in for each model: it has the same comparisons and questions."""
    models = {name: stand_in(name) for name in plan.models}
    first = {name: name for name in plan.models}
    for task in made:
        parents = [models[first[name]].id for name in task.child.parents]
        how = {"child": task.child.name} | ({} if task.seed is None else {"seed": task.seed})
        if not isinstance(task.child.guards, UnsetType):
            how["guards"] = msgspec.to_builtins(task.child.guards)
        recipe = RecipeRecord(task.child.recipe, how)
        models[task.name] = msgspec.structs.replace(stand_in(task.name, tuple(parents)), recipe=recipe)
        first.setdefault(task.child.name, task.name)
    wanted = set(battery.models)
    names = {task.name: task.child.name for task in made}
    asked = [model for name, model in models.items() if not wanted or {name, names.get(name, name)} & wanted]
    roles = {models[task.name].id: task.child.role for task in made if task.child.role}
    return study(plan, battery, asked, store, out, roles=roles)


# --- a run ------------------------------------------------------------------------------------------

_NOW = "To try again, stop by Ctrl-C and give the same command, before the first study begins."
_LATER = "The studies of this folder began without it. For studies with it, name another folder: --out."
R = TypeVar("R", bound=Record)


class MadeFile(Record, frozen=True):
    """grown.json or adapted.json: the models of a plan by its names, and the children that were left out.

    models   ids. bytes: added to the untouched model. seconds: of making, whenever that was
    price    of earlier releases: per million prompt and answer tokens
    """

    digest: str  # of the plan
    models: dict[str, str]
    left_out: tuple[LeftOutChild, ...]
    seconds: dict[str, float]
    bytes: dict[str, int] = msgspec.field(default_factory=dict)
    price: tuple[float, float] | None = None
    schema: int = 1


class Asking(NamedTuple):
    """A study to ask, by what is asked; minutes: expected."""

    title: str
    study: Study
    minutes: float = 0.0


@dataclass
class LineageRun:
    """One run of a plan in its folder.

    made     the name of the file of its models
    studies  the names of its studies, which are folders
    """

    lineage: Lineage
    out: Path
    made: str
    studies: tuple[str, ...]
    log: Log

    def possible(self, digest: str = "") -> list[Task]:
        """The children that can be made, and that no earlier run left out; the others are reported.

        digest: of the plan in the folder, if it has one. Raises UsageError if no child can be made.
        """
        possible = self.lineage.preview()
        n_never = len(self.lineage.left_out)
        has_begun = any((self.out / name / STUDY_PLAN).exists() for name in self.studies)
        if digest and has_begun and (self.out / self.made).exists():
            former = {each.name: each for each in read_made(self.out / self.made, digest).left_out}
            self.lineage.left_out += [former[task.name] for task in possible if task.name in former]
            possible = [task for task in possible if task.name not in former]
        for number, each in enumerate(self.lineage.left_out):
            self.log(f"left out: {each.name}: {each.why}{'' if number < n_never else f' {_LATER}'}")
        if not possible:
            raise UsageError("No child of this plan can be made.")
        return possible

    def pull(self, course: StepProgress, title: str) -> None:
        """Get the foundations, as a step of the course."""
        course.start(title, 0.0)
        self.lineage.pull()
        course.end()

    def make(self, possible: Sequence[Task], course: StepProgress) -> None:
        """Make the child of each task, as steps of the course; one that cannot be made is reported.

        Raises UsageError if none could be made.
        """
        lineage = self.lineage
        lineage.watch = course.watching(lineage.watch)
        if not lineage.plan.battery[0].is_quick:  # its few steps are on purpose
            lineage.warn = cache(lambda line: course.log(f"warning: {line}"))  # once, and not for each child
        for task in possible:
            is_there = task.child.recipe == MADE
            title = f"get {task.name}" if is_there else f"make {task.name} ({task.child.recipe})"
            course.start(title, task.child.minutes)
            if (error := lineage.make(task)) is not None:
                advice = f" {_NOW}" if isinstance(error, OutOfMemory) else ""
                course.log(f"left out: {task.name}: {error}{advice}")
            course.end()
        if lineage.models.keys() <= lineage.plan.models.keys():
            raise UsageError(f"No child could be made: {lineage.left_out[-1].why}")

    def note(self, digest: str, seconds: dict[str, float], n_bytes: dict[str, int] | None = None) -> MadeFile:
        """Save which models were made, and what they took."""
        ids = {name: model.record.id for name, model in self.lineage.models.items()}
        made = MadeFile(digest, ids, tuple(self.lineage.left_out), seconds, n_bytes or {})
        write_atomic(self.out / self.made, encode(made) + b"\n")
        return made

    def ask(self, studies: Sequence[Asking], course: StepProgress) -> dict[str, Result]:
        """The results of the studies by their folders' names, each with its report."""
        results: dict[str, Result] = {}
        watch = self.lineage.watch
        for each in studies:
            study, name = each.study, each.study.folder.name
            n, before = study.resolved.n_trials, study.n_answers()
            title = f"ask {len(study.resolved.models)} models: {each.title}"
            course.start(title, each.minutes, before.n_stored / n)
            with phase(watch, "preparing the study"):
                results[name] = result = study.run(watch)
            with phase(watch, "writing the report"):
                write_report(result.folder)
            course.end((study.n_answers().n_computed - before.n_computed) / n)
        return results


def power_of(
    plan: LineagePlan, possible: Sequence[Task], store: Store, out: Path, log: Log
) -> dict[str, StudyForecast]:
    """The power of each study, also given to `log` in lines."""
    power: dict[str, StudyForecast] = {}
    for battery in plan.battery:
        with phase(store.report, "computing the power"):
            planned = battery_forecast(plan, battery, possible, store, out)
            if plan.judge:
                planned.require_judge()
            shown = planned.forecast()
        log(f"{battery.title or battery.name}:")
        if shown is not None:
            power[battery.name] = shown
            for line in forecast_lines(planned.resolved, shown):
                log(f"  {line}")
    return power


def now() -> str:
    """The time as a plan's file has it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_plan(path: Path, held: Record) -> None:
    """Save a plan before anything is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(encode(held), indent=2) + b"\n")


def another_plan(path: Path) -> NotComparable:
    """The error of a folder whose plan, or whose files, are other ones."""
    words = f"{path} holds another plan, or one of other files. Name another folder: --out."
    return NotComparable(words, code="another-study")


def read_record(path: Path, kind: type[R]) -> R:
    """A file of a run. Raises Damaged if it cannot be read."""
    try:
        return msgspec.json.decode(read_file(path), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path} cannot be read: {error}.") from None


def read_made(path: Path, digest: str) -> MadeFile:
    """The models of the plan of this digest. Raises Damaged for those of another one."""
    made = read_record(path, MadeFile)
    if made.digest != digest:
        raise Damaged(f"{path} is of another plan than the one in its folder.")
    return made


def read_results(out: Path, names: Sequence[str]) -> dict[str, Result]:
    """The finished studies of a folder."""
    refuse_linked_folders(out, *names)
    return {name: Result.read(out / name) for name in names}


# --- the page: sentences, a figure, and the sections that a report has, too -----------------------------


class Screen(NamedTuple):
    """A table for a terminal. ranks: those of the lowest rank stay if not all fit; without any, all stay."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    ranks: Sequence[float] = ()
    n_names: int = 1  # the first columns, which name a model


class ResultPage(NamedTuple):
    """All that is shown of a finished run.

    verb       of the command that wrote it; file: the name of its page
    caution    "" unless the run shows nothing
    gist       those of the sentences that the short table does not say
    asides     further lines below the sentences
    figure     SVG; caption: of it
    """

    verb: str
    file: str
    title: str
    caution: str
    sentences: Sequence[str]
    gist: Sequence[str]
    asides: Sequence[str]
    figure: str
    caption: str
    sections: Sequence[Section]
    short: Screen
    full: Screen

    def markdown(self, figure: str) -> str:
        """The page as Markdown. figure: the file name of the figure."""
        return "\n".join(self._lines(figure)) + "\n"

    def _lines(self, figure: str) -> Iterator[str]:
        yield f"<!-- Written by `heredity {self.verb}`. Run it again instead of editing this page. -->\n"
        yield f"# {plain(self.title, 600)}\n"
        if self.caution:
            yield f"**{self.caution}**\n"
        yield from (f"- {plain(line, 1000)}" for line in (*self.sentences, *self.asides))
        yield f"\n[![{self.caption}]({figure})]({figure})"
        for section in self.sections:
            yield from section_lines(section)

    def write(self, path: Path) -> Path:
        """Write the page, and its figure next to it with the ending .svg. Returns the page's path."""
        drawn = path.with_suffix(".svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(drawn, self.figure.encode("utf-8"))
        write_atomic(path, self.markdown(drawn.name).encode("utf-8"))
        return path


def grid(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], claim: str = "") -> list[TextTable]:
    """A table without the columns that have no value; [] without rows."""
    if not rows:
        return []
    has_value = [any(row[i] not in ("", NONE) for row in rows) for i in range(len(head))]
    kept = [list(compress(row, has_value)) for row in rows]
    return [TextTable(title, list(compress(head, has_value)), kept, claim=claim)]


def listing(name: str, title: str, lines: Sequence[str], claim: str = "") -> list[Section]:
    """A section that has only lines; [] without any."""
    return [Section(name, title, claim, (), tuple(lines))] if lines or claim else []


def share(estimate: Estimate | None) -> Cell:
    """A share of trials with its count; a dash if it is not known."""
    if estimate is None or estimate.value is None:
        return NONE
    return CountedShare(estimate, round(estimate.value * estimate.n))


def change(estimate: Estimate | None) -> str:
    """A difference in points with its interval: `+24.4 (+11.6 to +36.8)`."""
    if estimate is None or estimate.value is None:
        return NONE
    return f"{bare(points(estimate.value))} ({bare(points_interval(estimate))})"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
