"""The steps of a study: ask each model its trials, and judge every response.

Promises: one model is loaded at a time, and only if it has trials left. A model that an attack has changed
shares the weights of the loaded one. It has its own engine name, and its own row among the runs.
Leaves to others: the order of the trials (study.py), conversations (scheduler.py), files (storage.py), and
several processes that ask at once (workers.py).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from heredity.application.guards.protocols import GuardReaders
from heredity.application.toolbox import Toolbox
from heredity.core.cache import ResponseCache
from heredity.core.errors import BudgetSpent, EngineFailure, HeredityError
from heredity.core.files import Rows
from heredity.core.progress import Meter, TrialMeter
from heredity.core.records import (
    JUDGE_FAILED,
    Outcome,
    Response,
    Verdict,
    digest_response,
    is_failed,
    is_out_of_scope,
)
from heredity.engines import base_numerics, check_schema, is_batch_unverified
from heredity.engines.protocols import Accountant, Engine
from heredity.redteam import attacks
from heredity.redteam.judges import Decider, needs_judge
from heredity.study import storage
from heredity.study.attack_context import AttackServices, SearchCache, attack_services
from heredity.study.behind_guards import behind_guards
from heredity.study.plan import Grid, Plan, PlannedModel, TrialSet
from heredity.study.resume import refuse_other_arithmetic
from heredity.study.scheduler import ConversationScheduler, shared_prefix
from heredity.study.storage import (
    RUNS,
    VERDICTS,
    Prefixes,
    PromptPrefix,
    ResponseWriter,
    RunCount,
    RunRecord,
    answered_rows,
    open_responses,
    verdict_rows,
)

OpenCache = Callable[[Engine], AbstractContextManager[ResponseCache | None]]
AskTrials = Callable[[Iterable[int]], None]  # asks one loaded model the trials at these indices
StillToAsk = Callable[[], Iterator[int]]  # the trials of one model that have no row yet


class Asker(Protocol):
    """Asks the models of a study their trials: in this process, or in others."""

    @property
    def model(self) -> int | None:
        """A model that is loaded, by its place in the plan."""

    def ask(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Ask models their trials; returns when every trial has its row."""


@dataclass(frozen=True)
class RunContext:
    """Access to the models, caches and attack services of a study, and the place of its rows."""

    folder: Path  # where the answers are kept, for messages
    grid: Grid
    recorder: FolderRecorder
    services: AttackServices | None  # None: no attack needs any
    open_model: Callable[[PlannedModel], AbstractContextManager[Engine]]
    open_cache: OpenCache
    readers: GuardReaders  # the models of guards
    toolbox: Toolbox | None = None  # of an application whose tools run


# --- asking ---------------------------------------------------------------------------------------


class ModelSlot:
    """The place of the one loaded model: it is loaded on its first trial, and closed before the next one."""

    def __init__(
        self, load: Callable[[int], AbstractContextManager[AskTrials]], meter: TrialMeter | None = None
    ) -> None:
        self._load, self._open, self._meter = load, ExitStack(), meter
        self.model: int | None = None  # the loaded model, by its place in the plan

    def ask(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Ask models their trials, one model after the other."""
        for m, still_to_ask in work:
            indices = still_to_ask()
            self.ask_one(m, indices if self._meter is None else self._meter.begun(indices))

    def ask_one(self, m: int, indices: Iterator[int]) -> None:
        """Ask model `m` its trials at `indices`; without any, it is not loaded."""
        if (first := next(indices, None)) is None:
            return
        if m != self.model:
            self._open.close()
            self.model, self._ask = m, self._open.enter_context(self._load(m))
        self._ask(chain((first,), indices))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)


@contextmanager
def one_process(
    grid: Grid,
    recorder: FolderRecorder,
    open_model: Callable[[PlannedModel], AbstractContextManager[Engine]],
    open_cache: OpenCache,
    readers: GuardReaders,
    toolbox: Toolbox | None = None,
) -> Iterator[ModelSlot]:
    """An Asker that loads the models in this process, one at a time. readers: closed at the end."""
    folder = recorder.folder
    searches = SearchCache(folder)
    with attack_services(grid.plan, open_model, open_cache, searches) as services, closing(readers):
        context = RunContext(folder, grid, recorder, services, open_model, open_cache, readers, toolbox)
        with ModelSlot(lambda m: loaded_model(context, m), recorder.meter) as slot:
            yield slot


@contextmanager
def loaded_model(context: RunContext, m: int) -> Iterator[AskTrials]:
    """Model `m`, loaded, as a function that asks it trials."""
    model = context.grid.plan.models[m]
    context.recorder.loading(m)
    try:
        with context.open_model(model) as engine, context.open_cache(engine) as cache, ExitStack() as stack:
            check_schema(engine, context.grid.plan.application.decoding)
            engine = behind_guards(engine, model, context.grid.plan.application, cache, context.readers)
            prefix = shared_prefix(engine, context.grid.plan.application)
            context.recorder.loaded(m, engine, prefix)
            yield _LoadedModel(context, m, engine, prefix, cache, stack)
    except EngineFailure as error:
        kind = BudgetSpent if isinstance(error, BudgetSpent) else EngineFailure
        raise kind(
            f"Model '{model.name}' stopped answering: {error}. "
            f"Its answers so far are kept in {context.folder}; the same command resumes there.",
            code=error.code,
        ) from error


class _LoadedModel:
    """Asks trials of one model, each with the engine as its attack changes it."""

    def __init__(
        self,
        context: RunContext,
        m: int,
        engine: Engine,
        prefix: PromptPrefix,
        cache: ResponseCache | None,
        stack: ExitStack,
    ) -> None:
        self._context, self._m, self._prefix, self._cache = context, m, prefix, cache
        self._stack = stack
        self._engines = {"": (engine, self._writer(engine))}  # by the change to the model; "" for none
        loaded = [attacks.planned(spec) for spec in context.grid.plan.attacks]
        self._changes = ["+".join(part.spec for part in attack.changes) for attack in loaded]
        self._attacks = dict(zip(self._changes, loaded, strict=True))

    def __call__(self, indices: Iterable[int]) -> None:
        if not any(self._changes):
            self._ask("", indices)
            return
        for change, some in groupby(indices, self._change):
            self._ask(change, some)

    def _change(self, index: int) -> str:
        plan = self._context.grid.plan
        return self._changes[index // (plan.samples * len(plan.probes)) % len(plan.attacks)]

    def _ask(self, change: str, indices: Iterable[int]) -> None:
        engine, writer = self._engine(change)
        context = self._context
        scheduler = ConversationScheduler(
            engine, context.grid, self._prefix, writer, self._cache, context.services, context.toolbox,
        )  # fmt: skip
        try:
            scheduler.run(indices)
        finally:
            writer.flush()

    def _engine(self, change: str) -> tuple[Engine, ResponseWriter]:
        if change not in self._engines:
            base, writer = self._engines[""]
            services = self._context.services or AttackServices()
            model = self._context.grid.plan.models[self._m]
            engine = services.changed_engine(self._attacks[change], model, base)
            if engine is not base:
                self._stack.callback(engine.close)
                writer = self._writer(engine)
            self._engines[change] = (engine, writer)
        return self._engines[change]

    def _writer(self, engine: Engine) -> ResponseWriter:
        return self._stack.enter_context(self._context.recorder.run(self._m, engine, self._cache))


class FolderRecorder:
    """Writes the rows of runs into a study's folder, whose lock this process holds.

    engines: those that answered in earlier runs, by model
    machine: the kind of it, for the rows of a worker
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        rows: Rows[Response],
        meter: TrialMeter,
        engines: Sequence[set[str]],
        seal: str,
        machine: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        self.folder, self.plan, self.rows, self.meter = folder, plan, rows, meter
        self.engines, self.seal, self.machine = engines, seal, machine

    def loading(self, m: int) -> None:
        self.meter.left.only(("load", m))
        self.meter.of(self.plan.models[m].name)

    def loaded(self, m: int, engine: Engine, prefix: PromptPrefix) -> None:
        self.meter.left.only(None)
        self.meter.of(self.plan.models[m].name)  # it was loading until now
        refuse_other_arithmetic(self.folder, self.plan.models[m], engine.numerics, self.engines[m])
        Prefixes(self.folder).add(prefix)

    @contextmanager
    def run(self, m: int, engine: Engine, cache: ResponseCache | None) -> Iterator[ResponseWriter]:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        begun = RunRecord(
            self.plan.models[m].id, engine.name, at, platform.node(), 0.0, 0, 0, 0, _versions(),
            engine.numerics, base_numerics=base_numerics(engine),
            is_batch_unverified=is_batch_unverified(engine), plan_seal=self.seal, machine=self.machine,
        )  # fmt: skip
        run = OpenRun(self.folder, begun)
        try:
            yield ResponseWriter(self.rows, cache, self.meter, run.count, self.machine)
        finally:
            run.close(engine.account() if isinstance(engine, Accountant) else {})


class OpenRun:
    """Writes a row of runs.jsonl at the start, so that a killed run is recorded, and one at the end."""

    def __init__(self, folder: Path, begun: RunRecord) -> None:
        self.begun, self._folder, self._started = begun, folder, time.monotonic()
        self.count = RunCount()
        with Rows(folder / RUNS, RunRecord) as rows:
            rows.append(begun)

    def close(self, account: dict[str, object]) -> None:
        """Write the row of the end."""
        ended = msgspec.structs.replace(
            self.begun,
            seconds=round(time.monotonic() - self._started, 3),
            n_asked=self.count.n_asked,
            n_errors=self.count.n_errors,
            n_cached=self.count.n_cached,
            account=account,
        )
        # A full disk was reported by the responses already; this row is only a record.
        with suppress(HeredityError, OSError), Rows(self._folder / RUNS, RunRecord) as rows:
            rows.append(ended)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("heredity", *(n for n in ("numpy", "torch", "transformers") if n in sys.modules)):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- judging --------------------------------------------------------------------------------------


class JudgingStep:
    """Gives every response its verdict, once. Each call of `run` judges the responses since the last one.

    `note` gets the index and outcome of every verdict, first those of earlier runs.
    """

    def __init__(
        self,
        folder: Path,
        grid: Grid,
        meter: Meter,
        note: Callable[[int, Outcome | None], None] | None = None,
        decider: Decider | None = None,
    ) -> None:
        self._folder, self._grid, self._meter = folder, grid, meter
        self._note = note or (lambda index, outcome: None)  # noqa: ARG005
        self._decider = decider or Decider()
        self.n_by_judge = 0  # new verdicts of the judge, not of the checks
        self._judged, self._seen = TrialSet(len(grid)), TrialSet(len(grid))
        self._by_id = {probe.id: probe for probe in grid.plan.probes}
        self._responses = open_responses(folder)
        for row in verdict_rows(folder, grid, self._judged):
            if not is_out_of_scope(row):
                meter.had(is_failed(row))
            self._note(row.index, row.outcome)

    def run(self) -> None:
        """Judge the new responses."""
        last = time.monotonic()
        answered = answered_rows(self._responses, self._grid, self._seen)
        new = (response for response in answered if self._judged.add(response.index))
        with Rows(self._folder / VERDICTS, Verdict) as rows:
            while some := list(islice(new, self._decider.at_once)):
                for row in self._verdicts(some):
                    rows.append(row)
                    if not is_out_of_scope(row):
                        self._meter.tick(is_failed(row))
                    self._note(row.index, row.outcome)
                if time.monotonic() - last >= storage.FLUSH_SECONDS:
                    rows.flush()
                    last = time.monotonic()
        self._responses.skip_read()

    def _verdicts(self, some: list[Response]) -> Iterator[Verdict]:
        asked = [(self._by_id[response.probe], response) for response in some]
        found = self._decider.verdicts(asked, self._grid.plan.application)
        for (probe, response), row in zip(asked, found, strict=True):
            self.n_by_judge += needs_judge(probe)
            yield msgspec.structs.replace(
                row,
                response=digest_response(response),
                judged_by=self._decider.judged_by(probe),
                error_code=_error_code(row, response),
            )


def _error_code(row: Verdict, response: Response) -> str | msgspec.UnsetType:
    """The code of a verdict row with an error: the response's, or that of a failed judge."""
    if row.error is None:
        return msgspec.UNSET
    return response.error_code if response.error is not None else JUDGE_FAILED
