"""A process that asks trials of a study for its driver, and writes into a folder of its own.

Promises: a state of a conversation, of an attacker or of a search stays in it. It refuses model files that
differ from the driver's record.
Leaves to others: which trials it asks, and collecting its rows (workers.py); its start (launch.py).
"""

from __future__ import annotations

import importlib
import os
import platform
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from heredity.application.toolbox import RecordedResult, RecordedResults, Toolbox
from heredity.core import host, registry
from heredity.core.cache import ResponseCache
from heredity.core.errors import EngineFailure, HeredityError, Unavailable, UnknownName, WrongHash, first_line
from heredity.core.files import Rows
from heredity.core.progress import PREPARE, Progress, TimeLeft, TrialMeter, Work
from heredity.core.records import Model, Response
from heredity.core.version import __version__
from heredity.engines import choose
from heredity.engines.protocols import Engine
from heredity.engines.remote.budget import Price
from heredity.lineage.store import Store, load_engine, record_at_answer, searching_in
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam.judges import Models
from heredity.redteam.judges.guard import JudgeReaders
from heredity.study.attack_context import FOUND, AttackServices, SearchCache, SearchResult, attack_services
from heredity.study.named_models import stored_model
from heredity.study.plan import PLAN, Grid, Plan, PlannedModel
from heredity.study.runner import FolderRecorder, ModelSlot, RunContext, loaded_model
from heredity.study.storage import RESPONSES, Prefixes, PromptPrefix

_WAIT_SECONDS = 0.5  # until a call returns that has nothing to report


class Setup(msgspec.Struct, frozen=True):
    """Everything about a study that its workers need, and that does not change.

    models   the records of the plan's models and of its attacker
    store    the folder of the store. The worker must see it under this path, and the study's `folder`
    host     of the driver; a worker there uses the store's cache of answers
    loader   "package.module:function" that makes an Engine of a Grown model; "" for the usual one
    device   where models answer; "" for the fastest that a worker finds
    keys, prices, concurrency   of models behind an API (engines/remote); the values stay in the environment
    results  of tools, in a replay; None if no tool of the application runs
    """

    plan: Plan
    plan_seal: str
    models: tuple[Model, ...]
    store: str
    folder: str
    host: str
    loader: str = ""
    device: str = ""
    keys: dict[str, str] = {}
    prices: dict[str, Price] = {}
    concurrency: int = 64
    results: tuple[RecordedResult, ...] | None = None


class Lease(NamedTuple):
    """Trials of one model for one worker. is_alone: it may have no others, as this one has ended workers."""

    m: int
    indices: tuple[int, ...]
    is_alone: bool = False


class Status(NamedTuple):
    """The state of a worker.

    machine   its kind, as far as that can change an answer; None: it still starts
    n_begun   how many of the leases that it was given it has begun
    phase     of the model that it loads, if that reports one
    """

    host: str
    pid: int
    version: str
    machine: str | None
    n_begun: int
    phase: Progress | None
    error: HeredityError | None
    is_closed: bool


class StudyWorker:
    """Asks trials in a thread of its own; its driver gives them by `poll`, from any other thread."""

    def __init__(self, setup: bytes, folder: str) -> None:
        self._setup, self._folder = msgspec.msgpack.decode(setup, type=Setup), Path(folder)
        self._given, self._news = SimpleQueue[Lease | None](), threading.Event()
        self._waiting, self._n_begun, self._is_stopped, self._is_closed = deque[Lease](), 0, False, False
        self._machine: str | None = None
        self._phase: Progress | None = None
        self._error: HeredityError | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def poll(self, given: Sequence[Lease | None]) -> Status:
        """Take leases (None: close the model, and end). The state, once it changes or after a moment."""
        for each in given:
            self._given.put(each)
        self._news.wait(_WAIT_SECONDS)
        self._news.clear()
        return Status(
            platform.node(), os.getpid(), __version__, self._machine, self._n_begun, self._phase, self._error,
            self._is_closed,
        )  # fmt: skip

    def _serve(self) -> None:
        try:
            self._ask()
        except HeredityError as error:
            self._error = error
        except Exception as error:
            self._error = EngineFailure(registry.fault_of(error) or first_line(error))
        finally:
            self._is_closed = True
            self._news.set()

    def _ask(self) -> None:
        host.configure()
        setup, self._grid = self._setup, Grid(self._setup.plan)
        if not Path(setup.folder, PLAN).exists():
            raise Unavailable(
                f"The worker on {platform.node()} does not see {setup.folder}. The study's folder must be on "
                "storage that all workers share, under one path, as the store."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._records = {record.id: record for record in setup.models}
        self._store = Store(setup.store, device=setup.device or None)
        self._loader = _imported(setup.loader) if setup.loader else None
        self._machine = machine(setup.models, self._store)
        self._news.set()
        toolbox = None
        if setup.results is not None:
            toolbox = Toolbox(setup.plan.application, RecordedResults(None, setup.results), runs=False)
        self._searches = SearchCache(self._folder)
        with (
            Rows(self._folder / RESPONSES, Response) as rows,
            searching_in(self._store),
            self._store.report.to(self._report),
            attack_services(setup.plan, self._open_model, self._open_cache, self._searches) as services,
            closing(JudgeReaders(self._models())) as readers,
        ):
            context = RunContext(
                Path(setup.folder), self._grid, _PartRecorder(self, rows),
                services or AttackServices(searches=self._searches), self._open_model, self._open_cache,
                readers, toolbox,
            )  # fmt: skip
            with ModelSlot(lambda m: loaded_model(context, m)) as slot:
                while (lease := self._next(wait=True)) is not None:
                    slot.ask_one(lease.m, self._indices(lease))
                    self._news.set()

    def _indices(self, lease: Lease | None) -> Iterator[int]:
        """The trials of a lease and of those of its model that follow, so that its batch never runs empty."""
        m = None if lease is None else lease.m
        while lease is not None and lease.m == m:
            self._searches.learn(Rows(Path(self._setup.folder) / FOUND, SearchResult))
            self._n_begun += 1
            self._news.set()
            yield from lease.indices
            lease = self._next(wait=False)
        if lease is not None:
            self._waiting.append(lease)

    def _next(self, wait: bool) -> Lease | None:
        """The next lease; None after the last one, or without `wait` if it is not there yet."""
        if self._waiting:
            return self._waiting.popleft()
        with suppress(Empty):
            if not self._is_stopped and (given := self._given.get(block=wait)) is not None:
                return given
            self._is_stopped = True
        return None

    def _report(self, event: Progress) -> None:
        if event.step == PREPARE:
            self._phase = event if event.phase else None
            self._news.set()

    # --- models ---

    @contextmanager
    def _open_model(self, model: PlannedModel) -> Iterator[Engine]:
        engine = self._load(self._find(self._records[model.of or model.id]))
        try:
            yield engine
        finally:
            engine.close()

    def _models(self) -> Models:
        """The models of guards, which the plan names, in this worker's store."""
        find = partial(stored_model, lambda: self._store)
        return Models(lambda name: find(name).record.id, lambda name: self._load(find(name)))

    def _load(self, grown: Grown) -> Engine:
        if self._loader is not None:
            return self._loader(grown)
        if grown.record.format == "remote" and choose(grown.record) == "remote":
            from heredity.engines.remote import engine as remote

            how = self._setup
            calls = remote.Calls(how.concurrency, keys=how.keys, prices=how.prices)
            engine = remote.load(grown.record, grown.folder, calls=calls)
            record_at_answer(engine, grown, self._store)
            return engine
        return load_engine(grown, self._store)

    def _find(self, record: Model) -> Grown:
        """The model in this worker's store. Raises WrongHash if its files are not those of the record."""
        if record.format == "scripted":
            return Grown(record, Path())
        try:
            found = self._store.by_id(record.id)
        except UnknownName as error:
            if not record.files:  # a model elsewhere, which the store records when it first answers
                return Grown(record, self._store.folder(record))
            raise Unavailable(
                f"The worker on {platform.node()} has no model '{record.name}' ({record.id}) in "
                f"{self._store.root}. The store must be on storage that all workers share, under one path.",
                code="model-not-pulled",
            ) from error
        if found.record.files != record.files:
            raise WrongHash(
                f"The worker on {platform.node()} has other files of '{record.name}' in {self._store.root} "
                "than the driver. Let both use the same store."
            )
        return found

    @contextmanager
    def _open_cache(self, engine: Engine) -> Iterator[ResponseCache | None]:
        # SQLite's log works among processes of one machine only.
        if not engine.numerics or platform.node() != self._setup.host:
            yield None
            return
        with self._store.cache() as cache:
            yield cache


class _PartRecorder(FolderRecorder):
    """Writes the rows of a worker into its folder. Their driver counts them, and compares arithmetic."""

    def __init__(self, worker: StudyWorker, rows: Rows[Response]) -> None:
        setup, n = worker._setup, len(worker._grid)
        meter = TrialMeter(None, n, TimeLeft({0: Work(n)}), n)
        machine = worker._machine or msgspec.UNSET
        super().__init__(worker._folder, setup.plan, rows, meter, (), setup.plan_seal, machine)

    def loading(self, m: int) -> None:
        """The driver knows: it gave the trials."""

    def loaded(self, m: int, engine: Engine, prefix: PromptPrefix) -> None:  # noqa: ARG002
        Prefixes(self.folder).add(prefix)


def machine(records: tuple[Model, ...], store: Store) -> str:
    """The kind of this machine, as far as it can change an answer; "" if no model is computed here."""
    if all(record.format in ("scripted", "remote") for record in records):
        return ""
    try:
        return host.machine_name(store.device())
    except ImportError:  # no torch: what answers is another library
        return platform.machine()


def _imported(name: str) -> EngineLoader:
    module, _, function = name.partition(":")
    engine_loader: EngineLoader = getattr(importlib.import_module(module), function)
    return engine_loader
