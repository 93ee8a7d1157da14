"""A worker: one loaded model that answers leases, in a process of its own.

Promises: it writes nothing into the study's folder. A state of a conversation, of an attacker or of a search
stays in it. It refuses model files that differ from the driver's record, and trials that its plan lacks.
Leaves to others: leasing trials and writing rows (driver.py), and carrying the messages (pool.py).
"""

from __future__ import annotations

import importlib
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from heredity.application.retrieval.store import searching_in
from heredity.application.toolbox import RecordedResults, Toolbox
from heredity.core import host
from heredity.core.cache import ResponseCache
from heredity.core.errors import Damaged, HeredityError, Unavailable, UnknownName, WrongHash
from heredity.core.progress import Progress
from heredity.core.records import Model, Response
from heredity.core.version import __version__
from heredity.engines import choose
from heredity.engines.protocols import Engine
from heredity.lineage.loading import load_engine, record_at_answer
from heredity.lineage.store import Store
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam.guard_readers import JudgeReaders
from heredity.redteam.judges import Models
from heredity.study.attack_context import AttackServices, SearchCache, SearchResult, attack_services
from heredity.study.named_models import stored_model
from heredity.study.plan import Grid, PlannedModel
from heredity.study.runner import ModelSlot, RunContext, account, begun_run, loaded_model
from heredity.study.storage import PromptPrefix
from heredity.study.workers import messages
from heredity.study.workers.leases import digest_trials
from heredity.study.workers.messages import (
    Answered,
    Began,
    Closed,
    Failed,
    Found,
    Hello,
    Lease,
    Loaded,
    Preparing,
    Setup,
    Started,
    ToDriver,
)
from heredity.study.workers.pool import Channel


def serve(channel: Channel) -> None:
    """Answer leases until the driver says stop. An error is sent to the driver, and ends the worker."""
    try:
        setup = messages.for_worker(cast(bytes, channel.receive(wait=True)))
        if not isinstance(setup, Setup):
            raise Damaged("A worker's first message is not its setup.", code="worker-message")
        StudyWorker(channel, setup).run()
    except Exception as error:
        channel.send(messages.encode(Failed.of(error)))
        if not isinstance(error, HeredityError):
            raise


class StudyWorker:
    """Answers the leases of one study."""

    def __init__(self, channel: Channel, setup: Setup) -> None:
        host.configure()
        self._channel, self._setup, self.grid = channel, setup, Grid(setup.plan)
        self._records = {record.id: record for record in setup.models}
        self._store = Store(setup.store, device=setup.device or None)
        self._loader = _imported(setup.loader) if setup.loader else None
        self._waiting: deque[Lease] = deque()
        self._is_stopped = False
        self.machine = machine(setup.models, self._store)
        self.searches = _SentSearches(self.send)
        self.searches.learn(setup.found)

    def send(self, message: ToDriver) -> None:
        """Send a message to the driver."""
        self._channel.send(messages.encode(message))

    def run(self) -> None:
        """Answer leases, model by model, until the driver says stop."""
        self.send(Hello(self.machine, platform.node(), os.getpid(), __version__))
        recorder, results = _SentRows(self), self._setup.results
        toolbox = None
        if results is not None:
            toolbox = Toolbox(self.grid.plan.application, RecordedResults(None, results), runs=False)
        with (
            searching_in(self._store),
            self._store.report.to(self._report),
            attack_services(self._setup.plan, self._open_model, self._open_cache, self.searches) as services,
            closing(JudgeReaders(self._models())) as readers,
        ):
            context = RunContext(
                Path(self._setup.folder), self.grid, recorder,
                services or AttackServices(searches=self.searches), self._open_model, self._open_cache,
                readers, toolbox,
            )  # fmt: skip
            with ModelSlot(lambda m: loaded_model(context, m)) as slot:
                while (lease := self._next(wait=True)) is not None:
                    slot.ask_one(lease.model, self._indices(lease))

    def _report(self, event: Progress) -> None:
        """Tell the driver of a phase that begins or is counted."""
        if event.phase:
            self.send(Preparing(event.phase, event.n_done, event.n_total, event.unit))

    @property
    def plan_seal(self) -> str:
        """The seal of plan.json, for rows of runs."""
        return self._setup.plan_seal

    def _indices(self, lease: Lease | None) -> Iterator[int]:
        """The trials of a lease, and of those that follow it without a pause and are of the same model."""
        m = None if lease is None else lease.model
        while lease is not None and lease.model == m:
            self.searches.learn(lease.found)
            for n, index in enumerate(lease.indices):
                if n == 0:
                    self.send(Started(lease.number))
                yield index
            lease = self._next(wait=False)
        if lease is not None:
            self._waiting.appendleft(lease)

    def _next(self, wait: bool) -> Lease | None:
        """The next lease; None after Stop, or without `wait` if none is there."""
        if self._waiting:
            return self._waiting.popleft()
        if self._is_stopped or (frame := self._channel.receive(wait)) is None:
            return None
        message = messages.for_worker(frame)
        if isinstance(message, Lease):
            if digest_trials(self.grid, message.indices) != message.digest:
                raise Damaged(
                    "A lease names trials that this worker's plan has not.", code="lease-other-plan"
                )
            return message
        self._is_stopped = True
        return None

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

            how = self._setup.remote
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
                code="model-not-in-store",
            ) from error
        if found.record.files != record.files:
            raise WrongHash(
                f"The worker on {platform.node()} has other files of '{record.name}' in {self._store.root} "
                "than the driver. Let both use the same store.",
                code="worker-other-files",
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


class _SentSearches(SearchCache):
    """Sends the results of searches to the driver, which writes them."""

    def __init__(self, send: Callable[[ToDriver], None]) -> None:
        super().__init__(None)
        self._send = send

    def write(self, found: SearchResult) -> None:
        self._send(Found(found))


class _SentRows:
    """A recorder that sends the rows of runs to the driver."""

    def __init__(self, worker: StudyWorker) -> None:
        self._worker, self._n_runs = worker, 0

    def loading(self, m: int) -> None:
        """The driver knows: it leased the trials."""

    def loaded(self, m: int, engine: Engine, prefix: PromptPrefix) -> None:
        self._worker.send(Loaded(m, engine.numerics, prefix))

    @contextmanager
    def run(self, m: int, engine: Engine, cache: ResponseCache | None) -> Iterator[_SentWriter]:
        self._n_runs += 1
        n, worker = self._n_runs, self._worker
        record = begun_run(worker.grid.plan.models[m], engine, worker.plan_seal)
        worker.send(Began(n, m, msgspec.structs.replace(record, machine=worker.machine or msgspec.UNSET)))
        try:
            yield _SentWriter(worker, n, cache)
        finally:
            worker.send(Closed(n, account(engine)))


class _SentWriter:
    """Sends responses to the driver."""

    def __init__(self, worker: StudyWorker, run: int, cache: ResponseCache | None) -> None:
        self._worker, self._run, self._cache = worker, run, cache

    def __call__(self, response: Response) -> None:
        self._worker.send(Answered(self._run, response))

    def flush(self) -> None:
        if self._cache is not None:
            self._cache.flush()


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
    found: EngineLoader = getattr(importlib.import_module(module), function)
    return found
