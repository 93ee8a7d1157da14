"""Run a study: ask every probe of every model inside one application, judge, estimate and compare.

    result = Study(StudySpec(["a", "b"], application="support-desk.toml", probes="core")).run()

Promises: the same plan asks the same questions in the same order. Nothing is asked twice. A killed study
resumes with the same command. Memory does not grow with the length of the answers.
Leaves to others: the plan (resolve.py, plan.py), which trials are still to ask (storage.py), asking and
judging (runner.py), the numbers (aggregate.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from heredity import engines
from heredity.application.guarded import identified
from heredity.application.spec import Application
from heredity.application.toolbox import TOOL_RESULTS, RecordedResults, Toolbox, recorded_in
from heredity.core import host, registry
from heredity.core.cache import ResponseCache
from heredity.core.errors import Damaged, Unavailable, UnknownName, UsageError
from heredity.core.files import RESULTS, Lock, Rows, read_lines, refuse_linked_folders
from heredity.core.host import Device
from heredity.core.progress import Meter, Progress, TrialMeter, Watch
from heredity.core.records import Model, Response, digest, encode
from heredity.core.sanitize import plural
from heredity.engines import Engine
from heredity.lineage import graph
from heredity.lineage.store import (
    ModelSpeed,
    Store,
    engine_loader,
    load_engine,
    rule_model,
    searching_in,
    speeds_of,
    stand_in,
)
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam.attacks import TriggerWanted
from heredity.redteam.judges import Decider, Judge, Models
from heredity.redteam.judges.guard import JudgeReaders
from heredity.study import aggregate, importers, storage
from heredity.study.comparisons import StoppingRule
from heredity.study.findings import drift
from heredity.study.findings.protocols import refuse_broken
from heredity.study.findings.same_conversations import note_conversations
from heredity.study.forecast import forecast_seconds, forecast_study, trial_meter
from heredity.study.outcomes import Outcomes, n_in_scope
from heredity.study.plan import (
    PLAN,
    Grid,
    Plan,
    PlannedModel,
    PlannedTrigger,
    StudyForecast,
    owner_of,
    plan_seal,
    read_plan,
    read_saved,
    refuse_absent,
    refuse_changed_plugins,
    write_plan,
)
from heredity.study.resolve import (
    is_guarded,
    model_to_load,
    resolve_plan,
    stored_model,
    with_families,
    with_guards,
)
from heredity.study.result import Result
from heredity.study.runner import (
    Asker,
    FolderRecorder,
    JudgingStep,
    SearchCache,
    one_process,
    require_own_answers,
)
from heredity.study.spec import (
    ModelReference,
    StudySources,
    StudySpec,
    locate_sources,
    read_plan_file,
    save_sources,
)
from heredity.study.storage import EarlierRuns, ResponseDigests, note_event
from heredity.study.workers import SHARDS, PartProgress, StudyPart, Workers, gather, part_folder

if TYPE_CHECKING:
    from heredity.application.retrieval.models import Embedder

_PLAN_SECONDS = 120.0  # for the task of an array that writes the plan


@contextmanager
def study_tools(
    folder: Path, grid: Grid, earlier: EarlierRuns, replay: Path | None, is_named: bool, is_alone: bool
) -> Iterator[Toolbox | None]:
    """The tools of a study; None if none runs, or nothing is left to ask.

    replay: a folder whose recorded results are served, and no tool runs. is_named: the user named the
    application in this command. is_alone: no other process writes results. Raises UsageError if tools would
    run without that.
    """
    application = grid.plan.application
    if not application.runs_tools or next(earlier.still_to_ask(range(len(grid))), None) is None:
        yield None
        return
    if replay is None and not is_named:
        raise UsageError(
            f"The application of {folder} runs tools on this machine, and a folder may come from anyone. "
            f"Give the study's whole command with --out {folder}, or serve its recorded results only: "
            f"--replay {folder}."
        )
    if not is_alone:
        raise UsageError(
            "The application runs tools, whose results all models share: one process asks such a study. "
            "Leave --workers and --shard out. A --replay runs none, and may have --workers."
        )
    more = () if replay is None else recorded_in(replay)
    with (
        RecordedResults(folder / TOOL_RESULTS, more) as results,
        Toolbox(application, results, runs=replay is None) as toolbox,
    ):
        yield toolbox


__all__ = ["Progress", "Result", "Study", "StudySpec"]


class AnswerCounts(NamedTuple):
    """The answers of a study. n_computed: by models for it; the others were stored by earlier studies."""

    n_stored: int
    n_computed: int


class Study:
    """Models x probes x attacks x samples inside one application, in a folder.

    `spec` has the settings; StudySpec.read takes them from a plan file. Further:

    store          finds the models that are given by name; None: the default one
    engine_loader  makes the Engine of a Grown model, in place of the usual one
    device         where the models answer: "cpu", "cuda", "cuda:1", "mps"; None: the store's own
    roles          of controls (lineage/graph.py), by the child's id
    edges          to compare, although no record shows the descent

    Another judge than before judges the answers again, and asks nothing again. Models that descend from each
    other get an estimate of inheritance; see Result.edge. Nothing is written before a step runs. Raises
    UsageError for a model, probe or setting that does not exist or does not fit.
    """

    part: StudyPart | None = None  # asks only this part of its trials (workers.py)
    replay: Path | None = None  # serves the tool results recorded there, and runs no tool (study_tools)
    sources: StudySources | None = None  # where the application and the user's own probes are written
    _is_named = True  # the user named the application, not only a folder

    def __init__(
        self,
        spec: StudySpec,
        *,
        store: Store | None = None,
        engine_loader: EngineLoader | None = None,
        device: Device | str | None = None,
        roles: Mapping[str, str] | None = None,
        edges: Sequence[graph.Edge] = (),
    ) -> None:
        host.configure()
        self._store, self._loader, self._judge_name = store, engine_loader, spec.judge_name
        self._device = host.read_device(device) if isinstance(device, str) else device
        grown = [self._find(model) for model in spec.models]
        grown = with_families(grown, [self._find(model) for model in spec.lineage], self._open_store)
        attacker = None if spec.attacker is None else self._find(spec.attacker)
        application = spec.application
        if not isinstance(application, Application):
            path, application = Path(application), Application.load(application, store)
            self.sources = locate_sources(path, application, spec.probes)
        if application.has_guard_models:
            application = identified(application, JudgeReaders(self._models(self._find)))
        grown = with_guards(grown, [*map(str, spec.guards)], application)
        records = [each.record for each in grown]
        for record in records if application.rendering != "theirs" else ():
            engines.refuse_text_only(record)
        recorded = graph.edges(records, self._known(records)) if any(r.parents for r in records) else ()
        pairs = {(edge.parent, edge.child) for edge in recorded}
        edges = (*recorded, *(edge for edge in edges if (edge.parent, edge.child) not in pairs))
        edges = tuple(msgspec.structs.replace(e, role=(roles or {}).get(e.child, e.role)) for e in edges)
        resolved = replace(spec, models=grown, attacker=attacker, application=application)
        self._plan = resolve_plan(resolved, edges)
        self._grown = {each.record.id: each for each in grown if not is_guarded(each.record)}
        if attacker is not None:
            self._grown[attacker.record.id] = attacker
        name = f"{storage.folder_name(application.name)}-{digest(self._plan.questions)[:8]}"
        self.folder = Path(spec.out) if spec.out is not None else RESULTS / name

    @classmethod
    def open(
        cls,
        folder: Path | str,
        store: Store | None = None,
        engine_loader: EngineLoader | None = None,
        judge: str | Judge | None = None,
        device: Device | str | None = None,
    ) -> Self:
        """The study in a folder, with its saved plan. Models are looked up when they are asked."""
        host.configure()
        study = cls.__new__(cls)
        study.folder = Path(folder)
        study._plan, study._is_named = read_plan(study.folder), False
        named = judge if judge is None or isinstance(judge, str) else registry.use("redteam.judges", judge)
        study._store, study._loader, study._grown, study._judge_name = store, engine_loader, {}, named
        study._device = host.read_device(device) if isinstance(device, str) else device
        return study

    def __repr__(self) -> str:
        models = ", ".join(model.name for model in self._plan.models)
        n_trials, application = n_in_scope(self._plan), self._plan.application.name
        return f"<Study of {models} in {application!r}: {plural(n_trials, 'trial')}, {str(self.folder)!r}>"

    def run(
        self,
        progress: Watch | None = None,
        *,
        retry_errors: bool = False,
        workers: Workers | int | None = None,
    ) -> Result:
        """Run every step, each from where it stopped. `progress` is called at most ten times a second.

        retry_errors: ask trials again that ended in an error; their rows are kept in errors.jsonl.
        workers: how many processes ask, or where they run (Workers); None: this process asks. The rows are
            the same.
        """
        several = Workers.of(workers, self._plan, has_own_loader=self._loader is not None)
        self.require_judge()  # before anything is written
        if self._loader is None and not (self.folder / PLAN).exists():
            for grown in self._grown.values():
                engine_loader(grown.record)
        with Lock(self.folder), self._open_store().report.to(progress):
            self._save_plan(progress)
            left = self._ask(progress, retry_errors, several).left
            if not self._plan.stops_early:  # else every block was judged before the next was asked
                self._judge(Meter(progress, "judge", n_in_scope(self._plan), left=left, part="judge"))
            left.only("estimate")
            return self._estimate(progress)

    def require_judge(self) -> None:
        """Raise the error of a judge that does not exist; nothing is asked."""
        _ = self._decider

    @property
    def resolved(self) -> Plan:
        """The plan, without saving it."""
        return self._plan

    def forecast(self) -> StudyForecast | None:
        """The power and the duration of the plan; None if it compares no models. Nothing is asked.

        A study whose folder has its plan keeps the forecast of that plan, which was made before its answers.
        """
        if (self.folder / PLAN).exists():
            saved = read_saved(self.folder)
            if saved.study == digest(self._plan) and saved.forecast is not None:
                return saved.forecast
        return forecast_study(self._plan, self.folder, self._speeds())

    def seconds(self) -> tuple[float, float]:
        """The time of all trials of the plan, at best and at worst. Nothing is asked."""
        return forecast_seconds(self._plan, self.folder, self._speeds())

    def n_answers(self) -> AnswerCounts:
        """The answers in its folder so far."""
        runs = storage.run_records(self.folder) if (self.folder / storage.RUNS).exists() else ()
        n_stored = sum(1 for _ in read_lines(self.folder / storage.RESPONSES))
        return AnswerCounts(n_stored, sum(row.n_asked - row.n_cached for row in runs))

    def plan(self, progress: Watch | None = None) -> Plan:
        """Save plan.json. Raises NotComparable, with the differences, if the folder holds another plan."""
        with Lock(self.folder):
            self._save_plan(progress)
        return self._plan

    def ask(
        self,
        progress: Watch | None = None,
        *,
        retry_errors: bool = False,
        workers: Workers | int | None = None,
    ) -> None:
        """Ask every trial that has no response yet. Raises EngineFailure; earlier responses are kept."""
        several = Workers.of(workers, self._plan, has_own_loader=self._loader is not None)
        with Lock(self.folder), self._open_store().report.to(progress):
            self._save_plan(progress)
            self._ask(progress, retry_errors, several)

    def ask_part(self, part: StudyPart, progress: Watch | None = None, *, retry_errors: bool = False) -> Path:
        """Ask one part of the trials, in a folder of its own, which is returned; `run` collects all parts.

        Raises UsageError for a study that stops early, and if it has parts of another number.
        """
        if self._plan.stops_early:
            raise UsageError(
                "A study that stops early decides from all answers: it has no parts. Use --stopping fixed."
            )
        refuse_linked_folders(self.folder, SHARDS)
        with Lock(self.folder / SHARDS, wait_seconds=_PLAN_SECONDS):
            if not (self.folder / PLAN).exists():
                self.plan()
            folder = part_folder(self.folder, part)
        asked = copy(self)
        asked.folder, asked.part = folder, part
        asked.ask(progress, retry_errors=retry_errors)
        return folder

    def collect(self) -> list[PartProgress]:
        """Collect the rows of all parts so far, and return the progress of each. Nothing is asked."""
        self.plan()
        with Lock(self.folder):
            return gather(self.folder, Grid(self._plan))

    def judge(self, progress: Watch | None = None) -> None:
        """Judge every response that has no verdict of the current judges."""
        with Lock(self.folder), self._open_store().report.to(progress):
            self._save_plan()
            grid = Grid(self._plan)
            self._drop_stale(storage.read_digests(self.folder, grid), grid)
            self._judge(Meter(progress, "judge", n_in_scope(self._plan)))

    def estimate(self, progress: Watch | None = None) -> Result:
        """Compute estimates.json from the verdicts in the folder."""
        with Lock(self.folder):
            self._save_plan()
            return self._estimate(progress)

    # --- the steps ---

    def _save_plan(self, watch: Watch | None = None) -> None:
        if not (self.folder / PLAN).exists():
            refuse_broken()
        self._plan = with_triggers(self._plan, self.folder, watch, self._store)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._plan = write_plan(self.folder, self._plan, at, self.forecast)
        if self.sources is not None:
            save_sources(self.folder, self.sources)

    def _ask(self, watch: Watch | None, retry_errors: bool, workers: Workers | None) -> TrialMeter:
        refuse_changed_plugins(self._plan)
        grid = Grid(self._plan)
        gather(self.folder, grid)
        if retry_errors:
            storage.set_errors_aside(self.folder, grid)
        meter = trial_meter(self._plan, self.folder, self._speeds(), watch)
        earlier = storage.read_earlier_runs(self.folder, grid, meter)
        self._drop_stale(earlier.digests, grid)
        if next(earlier.still_to_ask(range(len(grid))), None) is not None:
            self._decider.prepare(self._plan.probes)
            asked = {model.id: model for model in self._plan.asked_models}
            records = [self._grown_of(model).record for model in asked.values()]
            require_own_answers(records, lambda record: self._engine(asked[record.id]))
        seal = plan_seal(read_saved(self.folder))
        with Rows(self.folder / storage.RESPONSES, Response) as rows:
            recorder = FolderRecorder(self.folder, self._plan, rows, meter, earlier.engines, seal)
            with searching_in(self._store), self._asker(grid, recorder, earlier, workers) as asker:
                if self._plan.stops_early:
                    self._ask_until_decided(grid, earlier, meter, asker)
                else:
                    every = range(len(self._plan.models))
                    asker.ask([(m, partial(self._still_to_ask, grid, earlier, m)) for m in every])
        meter.close()
        return meter

    def _still_to_ask(self, grid: Grid, earlier: EarlierRuns, m: int) -> Iterator[int]:
        indices = earlier.still_to_ask(grid.of_model(m))
        return indices if self.part is None else self.part.of(grid, indices)

    @contextmanager
    def _asker(
        self, grid: Grid, recorder: FolderRecorder, earlier: EarlierRuns, workers: Workers | None
    ) -> Iterator[Asker]:
        """Asks the trials: of the models in this process, one at a time, or with several workers."""
        is_alone = self.part is None and (workers is None or self.replay is not None)
        tools = study_tools(self.folder, grid, earlier, self.replay, self._is_named, is_alone)
        with tools as toolbox, ExitStack() as stack:
            if workers is None:
                find = self._find if self._grown else partial(stored_model, self._open_store)
                readers = JudgeReaders(self._models(find))
                one = one_process(grid, recorder, self._engine, self._cache, readers, toolbox)
                asker: Asker = stack.enter_context(one)
            else:
                records = [self._grown_of(model).record for model in self._plan.asked_models]
                store = self._open_store()
                given = records, store.root, self._device or store.wanted_device, toolbox
                asker = stack.enter_context(workers.driver(grid, recorder, earlier, *given))
            yield asker

    def _ask_until_decided(self, grid: Grid, earlier: EarlierRuns, meter: TrialMeter, asker: Asker) -> None:
        """Ask block by block, with an interim analysis after each; only models of undecided pairs are asked.

        A resumed study analyses the answers of earlier runs in the same steps, so it decides the same.
        """
        rule = StoppingRule(Outcomes(self._plan))
        meter_of_judge, n_spared = Meter(None, "judge", len(grid)), 0
        judging = JudgingStep(self.folder, grid, meter_of_judge, rule.outcomes.note, self._decider)
        while not rule.is_over:
            # The loaded model comes first, so that each analysis loads one model less.
            models, block = sorted(rule.open_models, key=lambda m: m != asker.model), rule.block()
            asker.ask([(m, partial(earlier.of_block, grid, m, *block)) for m in models])
            judging.run()
            note_conversations(rule.outcomes, self.folder)
            rule.analyse()
            meter.spare(rule.n_spared - n_spared)
            n_spared = rule.n_spared
            meter.left.keep(self._plan.models[m].name for m in rule.open_models)
        self._judge_canaries(judging)
        self._decider.close()

    def _judge(self, meter: Meter) -> None:
        refuse_changed_plugins(self._plan)
        try:
            judging = JudgingStep(self.folder, Grid(self._plan), meter, None, self._decider)
            judging.run()
            self._judge_canaries(judging)
        finally:
            self._decider.close()
        meter.close()
        if self._plan.application.rendering == "recorded":
            importers.agreement(self.folder)  # again, because the judge may be another one

    def _judge_canaries(self, judging: JudgingStep) -> None:
        """Judge the canary answers too, in a run in which the judge judged something."""
        if judging.n_by_judge:
            drift.judge_again(self.folder, self._decider.judge)

    def _drop_stale(self, digests: ResponseDigests, grid: Grid) -> None:
        decider = self._decider  # first: a judge that cannot be loaded is not saved as chosen
        storage.choose_judge(self.folder, decider.spec)
        storage.drop_stale_verdicts(self.folder, digests, grid, decider)

    @cached_property
    def _decider(self) -> Decider:
        models = self._models(self._find if self._judge_name else self._find_for_judge)
        name = self._judge_name or storage.chosen_judge(self.folder)
        if self._plan.analysis is not None and name == self._plan.analysis.judge:
            refuse_absent(self._plan.analysis.plugins, "redteam.judges")
        return Decider(name, models)

    def _models(self, find: Callable[[str], Grown]) -> Models:
        """The models of judges and guards, each found by its name."""
        return Models(lambda name: find(name).record.id, lambda name: self._load(find(name)))

    def _estimate(self, watch: Watch | None) -> Result:
        meter = Meter(watch, "estimate", 1)
        estimates = aggregate.estimate_and_remember(self._plan, self.folder, self._open_store().root)
        storage.write_estimates(self.folder, estimates)
        if estimates.n_missing > 0:
            note_event(self.folder, "estimated", estimates.n_asked)
        meter.tick()
        meter.close()
        return Result(self.folder, estimates)

    # --- models and engines ---

    def _known(self, records: Sequence[Model]) -> dict[str, Model]:
        """Models by id: these, and all of the store if one of these has a parent that is not among them."""
        known = {record.id: record for record in records}
        if all(parent in known for record in records for parent in record.parents):
            return known
        return {model.id: model for model in self._open_store().models()} | known

    def _find(self, model: ModelReference) -> Grown:
        if isinstance(model, Grown):
            return model
        if isinstance(model, Model):
            if model.format == "scripted":
                return Grown(model, Path())
            return Grown(model, self._open_store().folder(model))
        return self._open_store().get(model)

    def _find_for_judge(self, name: str) -> Grown:
        """The model of a judge that judge.json names.

        A folder may come from anyone, so its names are looked up in the store only. Targets such as `call:`
        are resolved only from the user's own words.
        """
        try:
            return stored_model(self._open_store, name)
        except UsageError as error:
            raise UsageError(
                f"{self.folder / storage.JUDGE} chooses the judge '{storage.chosen_judge(self.folder)}'. "
                f"{error} Pull its model, or name the judge yourself: --judge."
            ) from None

    def _grown_of(self, model: PlannedModel) -> Grown:
        """A model of plan.json, by its whole id. A folder may come from anyone: see `_find_for_judge`."""
        model = model_to_load(self._plan, model)
        if model.id in self._grown:
            return self._grown[model.id]
        if model.format == "scripted":
            grown = rule_model(model.name)
            if grown.record.id != model.id:
                raise Damaged(f"{self.folder / PLAN}: '{model.name}' has not the id {model.id[:32]!r}.")
            return grown
        try:
            return self._open_store().by_id(model.id)
        except UnknownName as error:
            raise Unavailable(
                f"Model '{model.name}' of {self.folder / PLAN} is not in this store "
                f"({model.id[:32]!r}). Pull it, or give the study's whole command again, with --out.",
                code="model-not-pulled",
            ) from error

    def _speeds(self) -> dict[str, ModelSpeed]:
        return speeds_of(self._grown.values(), self._open_store())

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = Store()
        return self._store

    def _load(self, grown: Grown) -> Engine:
        if self._loader is not None:
            return self._loader(grown)
        return load_engine(grown, self._open_store, device=self._device)

    @contextmanager
    def _engine(self, model: PlannedModel) -> Iterator[Engine]:
        """The model, loaded; one at a time, closed before the next."""
        engine = self._load(self._grown_of(model))
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def _cache(self, engine: Engine) -> Iterator[ResponseCache | None]:
        # SQLite's log works among processes of one machine only, and parts are on several.
        if not engine.numerics or self.part is not None:
            yield None
            return
        with self._open_store().cache() as cache:
            yield cache


def planned_study(path: Path, store: Store, others: Mapping[str, type] | None = None) -> Study:
    """The study of a plan file or a folder, of which some models need not be in the store yet.

    A stand-in takes their place: the power does not depend on who is asked. others: further keys of the file.
    """
    if path.is_dir():
        return Study.open(path, store=store)
    known = {field.name for field in fields(StudySpec)}
    given = read_plan_file(path, others)
    spec = StudySpec(**{name: value for name, value in given.items() if name in known}).named()
    models: list[Grown | Model] = []
    for ref in map(str, spec.models):
        try:
            models.append(store.get(ref))
        except (Unavailable, UnknownName):
            models.append(stand_in(ref))
    return Study(replace(spec, models=models), store=store)


# --- triggers ----------------------------------------------------------------------------------------
# The words that a plan's attacks search for on the embedding model of its index, before the first question.
# Promises: each search runs once per folder, and its result is on disk before the next one (found.jsonl).
# The plan then holds all of them, so they are part of its trials. A twin has the trigger of its probe.
class _Search(NamedTuple):
    probe: str
    document: int
    wanted: TriggerWanted


def with_triggers(plan: Plan, folder: Path, watch: Watch | None = None, store: Store | None = None) -> Plan:
    """The plan with the words that its attacks search for: those of the folder's plan, if it has one.

    store: with the embedding model, if that is not the usual one.
    """
    searches = _searches(plan)
    if not searches or plan.triggers is not None:
        return plan
    if (folder / PLAN).exists():
        return msgspec.structs.replace(plan, triggers=read_plan(folder).triggers)
    cache, meter = SearchCache(folder), Meter(watch, "search", len(searches))
    triggers = []
    with searching_in(store):
        for each in searches:
            triggers.append(_search_trigger(plan, each, cache))
            meter.tick()
    meter.close()
    return msgspec.structs.replace(plan, triggers=tuple(triggers))


def forecast_searches(plan: Plan, folder: Path) -> str:
    """The cost of the searches of a plan that is not saved yet; "" for none. Times two steps."""
    searches = _searches(plan)
    if not searches or (folder / PLAN).exists():
        return ""
    embedder, first = _embedder(plan), searches[0].wanted
    from heredity.application.retrieval import triggers

    for _ in range(2):  # the first time also reads the vocabulary
        start = time.perf_counter()
        triggers.search(embedder, first.question, first.passage, 1, 0)
        seconds = time.perf_counter() - start
    n_steps = sum(each.wanted.n_steps for each in searches)
    return (
        f"First the words of {len(searches):,} planted documents are searched for on the embedding model: at "
        f"most {n_steps:,} gradients and {n_steps * triggers.CANDIDATES:,} forward passes, about "
        f"{math.ceil(n_steps * seconds / 60)} min."
    )


def _searches(plan: Plan) -> list[_Search]:
    """The searches of a plan, each once: a larger budget has the documents of a smaller one."""
    return list(dict.fromkeys(_all_searches(plan)))


def _all_searches(plan: Plan) -> Iterator[_Search]:
    if plan.application.retrieval is None:
        return
    for attack in plan.applied():
        for probe in plan.probes:
            if owner_of(probe, plan) == probe.id:
                yield from (_Search(probe.id, i, each) for i, each in enumerate(attack.wanted(probe)))


def _search_trigger(plan: Plan, search: _Search, cache: SearchCache) -> PlannedTrigger:
    """The result of a search, which is not run again if the cache has it."""
    embedder, wanted = _embedder(plan), search.wanted
    seed = int(digest([plan.seed, search.probe, search.document])[:12], 16)

    def run() -> str:
        from heredity.application.retrieval import triggers

        text = triggers.search(embedder, wanted.question, wanted.passage, wanted.n_steps, seed)
        return encode(PlannedTrigger(search.probe, search.document, wanted.n_steps, *text)).decode()

    value = cache.keep("trigger", embedder.model.id, search, seed)(run)
    return msgspec.json.decode(value, type=PlannedTrigger)


def _embedder(plan: Plan) -> Embedder:
    """The embedding model of the plan's index. Raises Unavailable without torch, and as `opened` does."""
    from heredity.application.retrieval.index import opened

    retrieval = plan.application.retrieval
    assert retrieval is not None
    return opened(Path(retrieval.index), retrieval.read_hash).embedder
