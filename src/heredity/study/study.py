"""Ask every probe of every model inside one application, keep what was said, and say what it comes to.

Promises: the same plan asks the same questions in the same order; nothing is asked twice; killed at any
moment, the same command goes on; memory does not grow with the number of trials.
Leaves to others: whether an answer was bad (judges/), what that means (stats/), how it looks (report/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from heredity import engines
from heredity.application.spec import Application
from heredity.core import host
from heredity.core.cache import ResponseCache
from heredity.core.errors import Damaged, Unavailable, UnknownName, UsageError
from heredity.core.files import Lock, default_root
from heredity.core.progress import Meter, Progress, Watch
from heredity.core.records import Model, Probe, Response, digest, is_failed
from heredity.core.rows import Rows
from heredity.engines import scripted
from heredity.engines.protocols import Engine
from heredity.lineage import graph
from heredity.lineage.store import Store, load_engine
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam.judges import Decider, Models
from heredity.study import aggregate, importers, plan, sequential
from heredity.study import estimates as numbers
from heredity.study.attack_context import Attacker, Kit
from heredity.study.plan import Plan, PlannedModel
from heredity.study.result import Result
from heredity.study.runner import Place, asking
from heredity.study.scheduler import Desk
from heredity.study.storage import (
    JUDGE,
    RESPONSES,
    Judging,
    Prefixes,
    Said,
    answered,
    choose_judge,
    chosen_judge,
    drop_stale_verdicts,
    refuse_unknown_arithmetic,
    set_errors_aside,
)
from heredity.study.trials import Grid, pending

__all__ = ["Prefixes", "Progress", "Result", "Study"]


class Study:
    """Models x probes x attacks x samples inside one application, in a folder.

    models         names, "scripted:NAME", "call:MODULE:FUNCTION" and other targets, functions, Grown or Model
                   values; from `store` (None: the default one)
    application    an Application or the path of its TOML
    probes         suite or technique names, probe ids, paths, Probe values; see probes.load
    out            the folder; None: studies/<application>-<start of the plan's digest> under the current one
    until_decided  looks on the way, and asks no more of a model whose pairs are decided; see decide.py
    judge          decides where no check does (judges.load); another one judges anew and asks nothing again.
                   None: the one that the folder has, or rules
    attacker       the model that writes what `pair` and `tap` say, the same for all models of the study
    engine_loader  makes an Engine of a Grown, where the usual one is not wanted

    Where models descend from each other, what each inherited is estimated too; see Result.edge.
    Nothing is written before a step runs. Raises UsageError for what is not there or does not fit.
    """

    def __init__(
        self,
        models: Sequence[str | Grown | Model | Callable[..., Any]],
        application: Application | Path | str,
        probes: Sequence[str | Probe] | str = "core",
        attacks: Sequence[str] = ("direct",),
        samples: int = 1,
        seed: int = 0,
        store: Store | None = None,
        out: Path | str | None = None,
        margin: float = 0.05,
        confidence: float = 0.95,
        engine_loader: EngineLoader | None = None,
        until_decided: bool = False,
        judge: str | None = None,
        attacker: str | Grown | Model | None = None,
    ) -> None:
        host.configure()
        self._store, self._loader, self._judge_name = store, engine_loader, judge
        grown = [self._find(model) for model in models]
        aside = None if attacker is None else self._find(attacker)
        if not isinstance(application, Application):
            application = Application.load(application)
        records = [g.record for g in grown]
        self._plan = plan.resolve(
            records, application, probes, attacks, samples, seed, margin, confidence, until_decided,
            None if aside is None else aside.record,
        )  # fmt: skip
        if edges := graph.edges(records, self._known(records)):
            self._plan = msgspec.structs.replace(self._plan, edges=edges)
        self._grown = {g.record.id: g for g in (*grown, *([aside] if aside is not None else []))}
        name = f"{_file_name(application.name)}-{digest(self._plan)[:8]}"
        self.folder = Path(out) if out is not None else Path("studies") / name

    @classmethod
    def open(
        cls,
        folder: Path | str,
        store: Store | None = None,
        engine_loader: EngineLoader | None = None,
        judge: str | None = None,
    ) -> Study:
        """The study that a folder holds, with the plan as it was saved. Models are looked up when asked."""
        host.configure()
        study = cls.__new__(cls)
        study.folder = Path(folder)
        study._plan = plan.read(study.folder)
        study._store, study._loader, study._grown, study._judge_name = store, engine_loader, {}, judge
        return study

    def run(self, progress: Watch | None = None, *, retry_errors: bool = False) -> Result:
        """Every step, each from where it stopped. `progress` is called at most ten times a second.

        retry_errors: ask again what came to an error; those rows are kept in errors.jsonl.
        """
        _ = self._decider  # a judge that is not there is said before anything is written
        self._refuse_silent()
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
            self._ask(progress, retry_errors)
            if not self._plan.is_until_decided:  # there every block was judged before the next was asked
                self._judge(progress)
            return self._estimate(progress)

    def plan(self) -> Plan:
        """Save plan.json. Raises NotComparable, saying what differs, where the folder holds another plan."""
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
        return self._plan

    def ask(self, progress: Watch | None = None, *, retry_errors: bool = False) -> None:
        """Ask every trial that has no response yet. Raises EngineFailure; what was answered stays."""
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
            self._ask(progress, retry_errors)

    def judge(self, progress: Watch | None = None) -> None:
        """Judge every response that has no verdict of today's judges on what it says."""
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
            grid = Grid(self._plan)
            said, seen = Said(len(grid)), bytearray(len(grid) // 8 + 1)
            for row in answered(self.folder, seen, grid):
                said.add(row)
            self._drop_stale(said, grid)
            self._judge(progress)

    def estimate(self, progress: Watch | None = None) -> Result:
        """Compute estimates.json from the verdicts that are there."""
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
            return self._estimate(progress)

    # --- the steps ---

    def _ask(self, watch: Watch | None, retry_errors: bool) -> None:
        grid = Grid(self._plan)
        if retry_errors:
            self._refuse_recorded()
            set_errors_aside(self.folder, grid)
        done = bytearray(len(grid) // 8 + 1)
        meter = Meter(watch, "ask", len(grid))
        engines = self._take_up(done, grid, meter)
        if any(True for _ in pending(done, range(len(grid)))):
            self._decider.prepare(self._plan.probes)
        with (
            Rows(self.folder / RESPONSES, Response) as rows,
            self._attacker() as attacker,
            Desk(lambda m: asking(place, m, engines[m])) as desk,
        ):
            kit = Kit(self.folder, attacker)
            place = Place(self.folder, grid, rows, meter, kit, self._engine, self._cache)
            if self._plan.is_until_decided:
                self._ask_until_decided(grid, done, meter, desk)
            else:
                for m in range(len(self._plan.models)):
                    desk.ask(m, pending(done, grid.of_model(m)))
        meter.close()

    def _refuse_silent(self) -> None:
        """Raises Unavailable for a model that could never answer, before its study takes a folder."""
        if self._loader is None and not (self.folder / plan.FILE).exists():
            for grown in self._grown.values():
                engines.loader(grown.record)

    def _refuse_recorded(self) -> None:
        if self._plan.application.rendering == "recorded":
            raise UsageError(
                f"{self.folder} holds answers that were recorded elsewhere: they cannot be asked again here. "
                "Record what is missing, and import it into another folder.",
                code="answers-imported",
            )

    def _ask_until_decided(self, grid: Grid, done: bytearray, meter: Meter, desk: Desk) -> None:
        """Block by block, each judged and looked at before the next; only models with an open pair are asked.

        The loop goes over what earlier runs answered in the same steps, so it decides the same.
        """
        rule = sequential.Rule(self._plan)
        meter_of_judge, n_spared = Meter(None, "judge", len(grid)), 0
        judging = Judging(self.folder, grid, meter_of_judge, rule.note, self._decider)
        while not rule.is_over:
            # The model that is loaded comes first, so that each look loads one model less.
            for m in sorted(rule.open_models, key=lambda m: m != desk.model):
                desk.ask(m, pending(done, grid.of_probes(m, *rule.block())))
            judging.run()
            rule.look()
            meter.spare(rule.n_spared - n_spared)
            n_spared = rule.n_spared
        self._decider.close()

    def _take_up(self, done: bytearray, grid: Grid, meter: Meter) -> list[set[str]]:
        """What earlier runs left, checked to belong together; by model, which engines answered."""
        engines: list[set[str]] = [set() for _ in self._plan.models]
        prefixes: set[str] = set()
        said = Said(len(grid))
        for row in answered(self.folder, done, grid):
            said.add(row)
            meter.had(is_failed(row), row.is_cached)
            engines[row.index // self._plan.n_per_model].add(row.engine)
            prefixes.update(exchange.prefix for exchange in row.exchanges)
        Prefixes(self.folder).check(prefixes)
        refuse_unknown_arithmetic(self.folder, self._plan.models, engines)
        self._drop_stale(said, grid)
        return engines

    def _judge(self, watch: Watch | None) -> None:
        grid = Grid(self._plan)
        meter = Meter(watch, "judge", len(grid))
        try:
            Judging(self.folder, grid, meter, None, self._decider).run()
        finally:
            self._decider.close()
        meter.close()
        if self._plan.application.rendering == "recorded":
            importers.agreement(self.folder)  # of these verdicts: another judge may have given them

    def _drop_stale(self, said: Said, grid: Grid) -> None:
        decider = self._decider  # before the choice is kept: what cannot be loaded is not chosen
        choose_judge(self.folder, decider.spec)
        drop_stale_verdicts(self.folder, said, grid, decider)

    @cached_property
    def _decider(self) -> Decider:
        find = self._find if self._judge_name else self._find_for_judge

        def load(name: str) -> Engine:
            grown = find(name)
            return self._loader(grown) if self._loader else load_engine(grown, self._open_store)

        models = Models(lambda name: find(name).record.id, load)
        return Decider(self._judge_name or chosen_judge(self.folder), models)

    def _estimate(self, watch: Watch | None) -> Result:
        meter = Meter(watch, "estimate", 1)
        root = self._store.root if self._store is not None else default_root()
        found = aggregate.estimate(self._plan, self.folder, root)
        numbers.write(self.folder, found)
        meter.tick()
        meter.close()
        return Result(self.folder, found)

    # --- models and engines ---

    def _known(self, records: Sequence[Model]) -> dict[str, Model]:
        """Models by id: these, and the store's where one of these has a parent that is not among them."""
        known = {record.id: record for record in records}
        if all(parent in known for record in records for parent in record.parents):
            return known
        return {model.id: model for model in self._open_store().models()} | known

    def _find(self, model: str | Grown | Model | Callable[..., Any]) -> Grown:
        if isinstance(model, Grown):
            return model
        if isinstance(model, Model):
            if model.format == "scripted":
                return Grown(model, Path())
            return Grown(model, self._open_store().folder(model))
        if isinstance(model, str) and model.startswith(scripted.PREFIX):
            scripted.parse(model)
            return scripted_model(model)
        return self._open_store().get(model)

    def _find_for_judge(self, name: str) -> Grown:
        """The model of a judge that judge.json names. A folder may come from anyone, so its words are looked
        up in the store alone; only a user's own words are resolved as a target."""
        if name.startswith(scripted.PREFIX):
            return self._find(name)
        try:
            return self._open_store().named(name)
        except UsageError as error:
            raise UsageError(
                f"{self.folder / JUDGE} chooses the judge '{chosen_judge(self.folder)}'. {error} Pull its "
                "model, or name the judge yourself: --judge.",
                code="judge-not-in-store",
            ) from None

    def _planned(self, model: PlannedModel) -> Grown:
        """A model of plan.json, by its whole id. A folder may come from anyone: see `_find_for_judge`."""
        if model.id in self._grown:
            return self._grown[model.id]
        if model.format == "scripted":
            scripted.parse(model.name)
            grown = scripted_model(model.name)
            if grown.record.id != model.id:
                raise Damaged(
                    f"{self.folder / plan.FILE}: '{model.name}' has not the id {model.id[:32]!r}.",
                    code="id-of-another-model",
                )
            return grown
        try:
            return self._open_store().by_id(model.id)
        except UnknownName as error:
            raise Unavailable(
                f"Model '{model.name}' of {self.folder / plan.FILE} is not in this store "
                f"({model.id[:32]!r}). Pull it, or name it yourself: the study's whole command, with --out.",
                code="model-not-in-store",
            ) from error

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = Store()
        return self._store

    @contextmanager
    def _engine(self, model: PlannedModel) -> Iterator[Engine]:
        """The model, loaded; one at a time, closed before the next."""
        grown = self._planned(model)
        engine = self._loader(grown) if self._loader is not None else load_engine(grown, self._open_store)
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def _attacker(self) -> Iterator[Attacker | None]:
        model = self._plan.attacker
        if not isinstance(model, PlannedModel):
            yield None
            return
        with Attacker(lambda: self._engine(model), self._cache, model) as attacker:
            yield attacker

    @contextmanager
    def _cache(self, engine: Engine) -> Iterator[ResponseCache | None]:
        if not engine.numerics:
            yield None
            return
        with self._open_store().cache() as cache:
            yield cache


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40].strip("-") or "study"
