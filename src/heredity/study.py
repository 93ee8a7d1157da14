"""Ask every probe of every model inside one application, keep what was said, and say what it comes to.

Promises: the same plan asks the same questions in the same order; nothing is asked twice; killed at any
moment, the same command goes on; memory does not grow with the number of trials.
Leaves to others: whether an answer was bad (judges/), what that means (stats/), how it looks (report/).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from heredity import engines, judges, plan, registry, tally
from heredity import estimates as numbers
from heredity.application import Application
from heredity.engines import Engine, Load, scripted
from heredity.errors import EngineFailure, Unavailable, UnknownName
from heredity.estimates import ALL, Estimates, Measure, ModelCard, Pair, Rate, main_scope
from heredity.ledger import (
    FLUSH_SECONDS,
    RESPONSES,
    VERDICTS,
    Keeper,
    Prefixes,
    Said,
    answered,
    drop_stale_verdicts,
    marks,
    refuse_other_arithmetic,
    refuse_unknown_arithmetic,
    running,
    set_errors_aside,
)
from heredity.lineage import Grown, Store
from heredity.lineage import scripted as scripted_model
from heredity.plan import Grid, Plan, PlannedModel
from heredity.progress import Meter, Progress
from heredity.pump import Pump, shared_prefix
from heredity.records import Model, Response, Verdict, digest, digest_response
from heredity.store import Lock, ResponseCache, Rows

__all__ = ["Prefixes", "Progress", "Result", "Study", "load_engine"]

EngineLoader = Callable[[Grown], Engine]
Watch = Callable[[Progress], None]


class Study:
    """Models x probes x attacks x samples inside one application, in a folder.

    models         names, "scripted:NAME", Grown or Model values; from `store` (None: the default one)
    application    an Application or the path of its TOML
    probes         suite or technique names, probe ids, paths; see probes.load
    out            the folder; None: studies/<application>-<start of the plan's digest> under the current one
    engine_loader  makes an Engine of a Grown, where the usual one is not wanted

    Nothing is written before a step runs. Raises UsageError for what is not there or does not fit.
    """

    def __init__(
        self,
        models: Sequence[str | Grown | Model],
        application: Application | Path | str,
        probes: Sequence[str] | str = "core",
        attacks: Sequence[str] = ("direct",),
        samples: int = 1,
        seed: int = 0,
        store: Store | None = None,
        out: Path | str | None = None,
        margin: float = 0.05,
        confidence: float = 0.95,
        engine_loader: EngineLoader | None = None,
    ) -> None:
        self._store, self._loader = store, engine_loader
        grown = [self._find(model) for model in models]
        if not isinstance(application, Application):
            application = Application.load(application)
        records = [g.record for g in grown]
        self._plan = plan.resolve(
            records, application, probes, attacks, samples, seed, margin=margin, confidence=confidence
        )
        self._grown = {g.record.id: g for g in grown}
        name = f"{_file_name(application.name)}-{digest(self._plan)[:8]}"
        self.folder = Path(out) if out is not None else Path("studies") / name

    @classmethod
    def open(
        cls, folder: Path | str, store: Store | None = None, engine_loader: EngineLoader | None = None
    ) -> Study:
        """The study that a folder holds, with the plan as it was saved. Models are looked up when asked."""
        study = cls.__new__(cls)
        study.folder = Path(folder)
        study._plan = plan.read(study.folder)
        study._store, study._loader, study._grown = store, engine_loader, {}
        return study

    def run(self, progress: Watch | None = None, *, retry_errors: bool = False) -> Result:
        """Every step, each from where it stopped. `progress` is called at most ten times a second.

        retry_errors: ask again what came to an error; those rows are kept in errors.jsonl.
        """
        with Lock(self.folder):
            plan.write(self.folder, self._plan)
            self._ask(progress, retry_errors)
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
            drop_stale_verdicts(self.folder, said, grid)
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
            set_errors_aside(self.folder, grid)
        done = bytearray(len(grid) // 8 + 1)
        meter = Meter(watch, "ask", len(grid))
        engines = self._take_up(done, grid, meter)
        with Rows(self.folder / RESPONSES, Response) as rows:
            for m, model in enumerate(self._plan.models):
                if next(plan.pending(done, grid.of_model(m)), None) is not None:
                    meter.of(model.name)
                    indices = plan.pending(done, grid.of_model(m))
                    self._ask_model(model, indices, grid, rows, meter, engines[m])
        meter.close()

    def _take_up(self, done: bytearray, grid: Grid, meter: Meter) -> list[set[str]]:
        """What earlier runs left, checked to belong together; by model, which engines answered."""
        engines: list[set[str]] = [set() for _ in self._plan.models]
        prefixes: set[str] = set()
        said = Said(len(grid))
        for row in answered(self.folder, done, grid):
            said.add(row)
            meter.had(row.error is not None, row.is_cached)
            engines[row.index // self._plan.n_per_model].add(row.engine)
            prefixes.update(exchange.prefix for exchange in row.exchanges)
        Prefixes(self.folder).check(prefixes)
        refuse_unknown_arithmetic(self.folder, self._plan.models, engines)
        drop_stale_verdicts(self.folder, said, grid)
        return engines

    def _ask_model(
        self,
        model: PlannedModel,
        indices: Iterator[int],
        grid: Grid,
        rows: Rows[Response],
        meter: Meter,
        earlier: set[str],
    ) -> None:
        try:
            with self._engine(model) as engine, self._cache(engine) as cache:
                refuse_other_arithmetic(self.folder, model, engine, earlier)
                prefix = shared_prefix(engine, self._plan.application)
                Prefixes(self.folder).add(prefix)
                with running(self.folder, model, engine) as count:
                    keep = Keeper(rows, cache, meter, count)
                    try:
                        Pump(engine, grid, prefix, keep, cache).run(indices)
                    finally:
                        keep.flush()
        except EngineFailure as error:
            raise EngineFailure(
                f"Model '{model.name}' stopped answering: {error}. "
                f"What was answered is kept in {self.folder}; the same command goes on from there."
            ) from error

    def _judge(self, watch: Watch | None) -> None:
        grid = Grid(self._plan)
        judged, seen = bytearray(len(grid) // 8 + 1), bytearray(len(grid) // 8 + 1)
        meter = Meter(watch, "judge", len(grid))
        for row in marks(self.folder, judged, grid):
            meter.had(row.error is not None)
        application, by_id = self._plan.application, {probe.id: probe for probe in self._plan.probes}
        last, version = time.monotonic(), judges.version()
        with Rows(self.folder / VERDICTS, Verdict) as rows:
            for response in answered(self.folder, seen, grid):
                if not plan.mark(judged, response.index):
                    continue
                verdict = judges.decide(by_id[response.probe], response, application)
                own = digest_response(response)
                rows.append(msgspec.structs.replace(verdict, response=own, judged_by=version))
                meter.tick(verdict.error is not None)
                if time.monotonic() - last >= FLUSH_SECONDS:
                    rows.flush()
                    last = time.monotonic()
        meter.close()

    def _estimate(self, watch: Watch | None) -> Result:
        meter = Meter(watch, "estimate", 1)
        found = tally.estimate(self._plan, self.folder)
        numbers.write(self.folder, found)
        meter.tick()
        meter.close()
        return Result(self.folder, found)

    # --- models and engines ---

    def _find(self, model: str | Grown | Model) -> Grown:
        if isinstance(model, Grown):
            return model
        if isinstance(model, Model):
            if model.format == "scripted":
                return Grown(model, Path())
            return Grown(model, self._open_store().folder(model))
        if model.startswith(scripted.PREFIX):
            scripted.parse(model)
            return scripted_model(model)
        return self._open_store().get(model)

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = Store()
        return self._store

    @contextmanager
    def _engine(self, model: PlannedModel) -> Iterator[Engine]:
        """The model, loaded; one at a time, closed before the next."""
        is_scripted = model.format == "scripted"
        grown = self._grown.get(model.id) or self._find(model.name if is_scripted else model.id)
        engine = self._loader(grown) if self._loader is not None else load_engine(grown, self._open_store)
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def _cache(self, engine: Engine) -> Iterator[ResponseCache | None]:
        if not engine.numerics:
            yield None
            return
        with self._open_store().cache() as cache:
            yield cache


def load_engine(grown: Grown, store: Store | Callable[[], Store]) -> Engine:
    """The engine of a model (engines.choose), for one who closes it. A function in place of `store` is called
    if needed.

    Raises Unavailable where that engine, or what it is made of, is not here.
    """
    load = _loader(grown.record)
    if grown.record.format == "scripted":
        return load(grown.record, grown.folder)
    store = store if isinstance(store, Store) else store()
    ready = store.ready(grown)
    return load(ready.record, ready.folder, store.root / "tuning" / ready.record.id)


def _loader(model: Model) -> Load:
    name = engines.choose(model)
    try:
        load: Load = registry.load("engines", name).load
    except UnknownName as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}") from error
    except ImportError as error:
        raise Unavailable(
            f"The engine '{name}', which '{model.name}' needs, is not installed ({error}). "
            f"Install it: pip install 'heredity[{name}]'"
        ) from error
    return load


@dataclass(frozen=True)
class Result:
    """What a study found: `estimates` in full, and a look-up for the two questions asked most."""

    folder: Path
    estimates: Estimates

    def rate(
        self,
        model: str | Grown | Model,
        technique: str | None = None,
        attack: str = ALL,
        measure: Measure = "breach",
    ) -> Rate:
        """One cell, by default all judge-free breaches together (judged ones, where there are no others).

        `technique` is one of the study's, or "judge_free", "judged"; for over-refusal "all". Raises
        UnknownName where the study has none such."""
        technique = technique or main_scope(self.estimates, measure)
        key = (self._card(model).id, technique, attack, measure)
        for rate in self.estimates.rates:
            if (rate.model, rate.technique, rate.attack, rate.measure) == key:
                return rate
        known = [*{r.technique for r in self.estimates.rates}, *self.estimates.attacks]
        raise UnknownName(f"{measure} rate", f"{technique} under {attack}", known)

    def pair(
        self,
        a: str | Grown | Model,
        b: str | Grown | Model,
        measure: Measure = "breach",
        scope: str | None = None,
    ) -> Pair:
        """`b` compared with `a` on the same trials, in either order: `difference` is the rate of `b` minus
        that of `a`. `scope` is as for `rate`. Raises UnknownName where the study has no such pair."""
        first, second = self._card(a), self._card(b)
        wanted = (measure, scope or main_scope(self.estimates, measure))
        for pair in self.estimates.pairs:
            if (pair.measure, pair.technique) != wanted:
                continue
            if (pair.a, pair.b) == (first.id, second.id):
                return pair
            if (pair.a, pair.b) == (second.id, first.id):
                return numbers.turned(pair)
        raise UnknownName("pair", f"{first.name} and {second.name}", [])

    def _card(self, model: str | Grown | Model) -> ModelCard:
        record = model.record if isinstance(model, Grown) else model
        for card in self.estimates.models:
            if record in (card.name, card.id) or (isinstance(record, Model) and record.id == card.id):
                return card
        name = record if isinstance(record, str) else record.name
        raise UnknownName("model of this study", name, [card.name for card in self.estimates.models])


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40].strip("-") or "study"
