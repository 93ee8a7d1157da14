"""The steps of a study: ask each model its trials, and judge every response.

Promises: one model is loaded at a time, and only if it has trials left. A model that an attack has changed
shares the weights of the loaded one. It has its own engine name, and its own row among the runs.
Leaves to others: the order of the trials (study.py), conversations (scheduler.py), files (storage.py).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from heredity.core.cache import ResponseCache
from heredity.core.errors import BudgetSpent, EngineFailure, HeredityError
from heredity.core.files import Rows
from heredity.core.progress import Meter
from heredity.core.records import (
    JUDGE_FAILED,
    Outcome,
    Response,
    Verdict,
    digest_response,
    is_failed,
    is_out_of_scope,
)
from heredity.engines import base_numerics, is_batch_unverified
from heredity.engines.protocols import Accountant, Engine
from heredity.redteam import attacks
from heredity.redteam.judges import Decider, needs_judge
from heredity.study import storage
from heredity.study.attack_context import AttackServices
from heredity.study.plan import Grid, PlannedModel, TrialSet
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


@dataclass(frozen=True)
class RunContext:
    """The folder of a study, and access to its models, caches and attack services."""

    folder: Path
    grid: Grid
    rows: Rows[Response]  # responses.jsonl, for writing
    meter: Meter
    services: AttackServices | None  # None: no attack needs any
    open_model: Callable[[PlannedModel], AbstractContextManager[Engine]]
    open_cache: OpenCache
    plan_seal: str = ""


# --- asking ---------------------------------------------------------------------------------------


class ModelSlot:
    """The place of the one loaded model: it is loaded on its first trial, and closed before the next one."""

    def __init__(self, load: Callable[[int], AbstractContextManager[AskTrials]]) -> None:
        self._load, self._open = load, ExitStack()
        self.model: int | None = None  # the loaded model, by its place in the plan

    def ask(self, m: int, indices: Iterator[int]) -> None:
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
def loaded_model(context: RunContext, m: int, earlier: set[str]) -> Iterator[AskTrials]:
    """Model `m`, loaded, as a function that asks it trials. `earlier`: its engines in earlier runs."""
    model = context.grid.plan.models[m]
    context.meter.of(model.name)
    try:
        with context.open_model(model) as engine, context.open_cache(engine) as cache, ExitStack() as stack:
            refuse_other_arithmetic(context.folder, model, engine, earlier)
            prefix = shared_prefix(engine, context.grid.plan.application)
            Prefixes(context.folder).add(prefix)
            yield _LoadedModel(context, model, engine, prefix, cache, stack)
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
        model: PlannedModel,
        engine: Engine,
        prefix: PromptPrefix,
        cache: ResponseCache | None,
        stack: ExitStack,
    ) -> None:
        self._context, self._model, self._prefix, self._cache = context, model, prefix, cache
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
            engine, context.grid, self._prefix, writer, self._cache, context.services
        )
        try:
            scheduler.run(indices)
        finally:
            writer.flush()

    def _engine(self, change: str) -> tuple[Engine, ResponseWriter]:
        if change not in self._engines:
            base, writer = self._engines[""]
            services = self._context.services or AttackServices(self._context.folder)
            engine = services.changed_engine(self._attacks[change], self._model, base)
            if engine is not base:
                self._stack.callback(engine.close)
                writer = self._writer(engine)
            self._engines[change] = (engine, writer)
        return self._engines[change]

    def _writer(self, engine: Engine) -> ResponseWriter:
        count = self._stack.enter_context(recorded_run(self._context, self._model, engine))
        return ResponseWriter(self._context.rows, self._cache, self._context.meter, count)


@contextmanager
def recorded_run(context: RunContext, model: PlannedModel, engine: Engine) -> Iterator[RunCount]:
    """Write a row of runs.jsonl at the start, so that a killed run is recorded, and one at the end."""
    started, count = time.monotonic(), RunCount()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    begun = RunRecord(
        model.id, engine.name, at, platform.node(), 0.0, 0, 0, 0, _versions(), engine.numerics,
        base_numerics=base_numerics(engine), is_batch_unverified=is_batch_unverified(engine),
        plan_seal=context.plan_seal,
    )  # fmt: skip
    folder = context.folder
    with Rows(folder / RUNS, RunRecord) as rows:
        rows.append(begun)
    try:
        yield count
    finally:
        ended = msgspec.structs.replace(
            begun,
            seconds=round(time.monotonic() - started, 3),
            n_asked=count.n_asked,
            n_errors=count.n_errors,
            n_cached=count.n_cached,
            account=engine.account() if isinstance(engine, Accountant) else {},
        )
        # A full disk was reported by the responses already; this row is only a record.
        with suppress(HeredityError, OSError), Rows(folder / RUNS, RunRecord) as rows:
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
        self._responses = open_responses(folder, grid)
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
