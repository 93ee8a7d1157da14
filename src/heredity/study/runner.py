"""One model of a study, loaded and asked: as it is, and as an attack on its weights changes it.

Promises: a model that an attack has changed shares the weights of the one that is loaded, answers under a
name of its own, and has a row of its own among the runs; what was answered before belongs to the same
arithmetic.
Leaves to others: which trials, and when (study.py); conversations (pump.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from heredity.core.cache import ResponseCache
from heredity.core.errors import BudgetSpent, EngineFailure
from heredity.core.progress import Meter
from heredity.core.records import Response
from heredity.core.rows import Rows
from heredity.engines.protocols import Engine
from heredity.redteam import attacks
from heredity.study.attack_context import Kit
from heredity.study.plan import PlannedModel
from heredity.study.scheduler import Ask, Prefix, Pump, shared_prefix
from heredity.study.storage import Keeper, Prefixes, refuse_other_arithmetic, running
from heredity.study.trials import Grid

Cache = Callable[[Engine], AbstractContextManager[ResponseCache | None]]


class Place(NamedTuple):
    """Where the answers of a study go, and how its models are opened."""

    folder: Path
    grid: Grid
    rows: Rows[Response]
    meter: Meter
    kit: Kit
    open: Callable[[PlannedModel], AbstractContextManager[Engine]]
    cache: Cache


@contextmanager
def asking(place: Place, m: int, earlier: set[str]) -> Iterator[Ask]:
    """Model `m`, loaded, as a function that asks it trials and keeps what it said."""
    model = place.grid.plan.models[m]
    place.meter.of(model.name)
    try:
        with place.open(model) as engine, place.cache(engine) as cache, ExitStack() as stack:
            refuse_other_arithmetic(place.folder, model, engine, earlier)
            prefix = shared_prefix(engine, place.grid.plan.application)
            Prefixes(place.folder).add(prefix)
            yield _Loaded(place, model, engine, prefix, cache, stack)
    except EngineFailure as error:
        kind = BudgetSpent if isinstance(error, BudgetSpent) else EngineFailure
        raise kind(
            f"Model '{model.name}' stopped answering: {error}. "
            f"What was answered is kept in {place.folder}; the same command goes on from there.",
            code=error.code,
        ) from error


class _Loaded:
    """Asks trials of one model, each by the engine that its attack leaves of it."""

    def __init__(
        self,
        place: Place,
        model: PlannedModel,
        engine: Engine,
        prefix: Prefix,
        cache: ResponseCache | None,
        stack: ExitStack,
    ) -> None:
        self._place, self._model, self._prefix, self._cache = place, model, prefix, cache
        self._stack = stack
        self._made = {"": (engine, self._keeper(engine))}  # by what changes the model; "" for nothing
        laid = [attacks.planned(spec) for spec in place.grid.plan.attacks]
        self._changes = ["+".join(part.spec for part in attack.changes) for attack in laid]
        self._laid = dict(zip(self._changes, laid, strict=True))

    def __call__(self, indices: Iterable[int]) -> None:
        if not any(self._changes):
            self._ask("", indices)
            return
        for change, some in groupby(indices, self._change):
            self._ask(change, some)

    def _change(self, index: int) -> str:
        plan = self._place.grid.plan
        return self._changes[index // (plan.samples * len(plan.probes)) % len(plan.attacks)]

    def _ask(self, change: str, indices: Iterable[int]) -> None:
        engine, keep = self._engine(change)
        try:
            Pump(engine, self._place.grid, self._prefix, keep, self._cache, self._place.kit).run(indices)
        finally:
            keep.flush()

    def _engine(self, change: str) -> tuple[Engine, Keeper]:
        if change not in self._made:
            base, keep = self._made[""]
            engine = self._place.kit.changed(self._laid[change], self._model, base)
            if engine is not base:
                self._stack.callback(engine.close)
                keep = self._keeper(engine)
            self._made[change] = (engine, keep)
        return self._made[change]

    def _keeper(self, engine: Engine) -> Keeper:
        count = self._stack.enter_context(running(self._place.folder, self._model, engine))
        return Keeper(self._place.rows, self._cache, self._place.meter, count)
