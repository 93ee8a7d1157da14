"""The driver of a study with several workers: it leases trials, and writes every row.

Promises: a worker is started again when it dies, but not one that dies again and again. A lease comes back
when its worker dies, or is silent for too long. Of two answers of one trial the first is written. All
workers are of one kind of machine, so that both members of a pair are.
Leaves to others: which trials a lease holds (leases.py), where workers run (pool.py).
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from heredity.core.errors import (
    BudgetSpent,
    Damaged,
    EngineFailure,
    HeredityError,
    NotComparable,
    OutOfMemory,
)
from heredity.core.progress import PREPARE, ModelProgress, Progress
from heredity.core.records import Response
from heredity.core.row_codes import WORKER_DIED
from heredity.study.attack_context import SearchCache, SearchResult
from heredity.study.plan import Grid
from heredity.study.resume import EarlierRuns, refuse_other_arithmetic
from heredity.study.runner import FolderRecorder, OpenRun, StillToAsk
from heredity.study.storage import Prefixes, ResponseWriter, RunRecord, is_of_its_trial, run_records
from heredity.study.workers import messages
from heredity.study.workers.leases import LeaseBook
from heredity.study.workers.messages import (
    Answered,
    Began,
    Closed,
    Failed,
    Found,
    Hello,
    Loaded,
    Preparing,
    Setup,
    Started,
    Stop,
    ToDriver,
)
from heredity.study.workers.pool import Arrived, Pool

LATE_SECONDS = 900.0  # without a message from a worker that has a lease; after twice this it is ended
MOST_FAILURES = 3  # to start, to load a model, or of its engine, in a row
MOST_DEATHS = 30  # of workers that answered one model, in a row
_AT_ONCE = 256  # messages that are taken before leases are given again
_STOP_SECONDS = 10.0  # for workers to close their models at the end of a study
_WAIT_SECONDS = 0.5


@dataclass
class _Run:
    """A run of one engine in one worker: its row of runs.jsonl, and what takes its responses."""

    open: OpenRun
    write: ResponseWriter
    machine: str | msgspec.UnsetType


@dataclass
class _WorkerState:
    """The driver's view of a worker. `loading`: the model that it loads now, and `phase` of what."""

    number: int
    has_greeted: bool = False
    is_fit: bool = True
    model: int | None = None
    loading: int | None = None
    phase: Progress | None = None
    leases: list[int] = field(default_factory=list)
    n_unstarted: int = 0
    heard: float = 0.0
    is_late: bool = False
    n_found: int = 0  # results of searches that it was sent
    runs: dict[int, _Run] = field(default_factory=dict)


class Driver:
    """Asks the models of a study through a pool of workers (runner.Asker)."""

    def __init__(
        self,
        pool: Pool,
        n_workers: int,
        setup: Setup,
        grid: Grid,
        recorder: FolderRecorder,
        earlier: EarlierRuns,
        late_seconds: float = LATE_SECONDS,
    ) -> None:
        self._pool, self._n_wanted, self._setup = pool, n_workers, messages.encode(setup)
        self._version, self._grid, self._recorder, self._earlier = setup.version, grid, recorder, earlier
        self._late_seconds = late_seconds
        self._book = LeaseBook(grid, earlier.answered)
        self._workers: dict[int, _WorkerState] = {}
        self._prefixes = Prefixes(recorder.folder)
        self._searches, self._found = SearchCache(recorder.folder), list(setup.found)
        self._numerics: dict[int, str] = {}  # of the base model, by model that was loaded in this run
        self._machine = _machine_of(recorder, earlier)
        self._failures: Counter[tuple[str, int | None]] = Counter()  # in a row, by kind and model
        self._n_failed: Counter[int] = Counter()  # error rows of this run, by model

    @property
    def model(self) -> int | None:
        """A model that a worker has loaded."""
        return next((state.model for state in self._workers.values() if state.model is not None), None)

    def ask(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Ask models their trials; returns when every trial has its row."""
        self._book.add(work)
        if work:
            self._recorder.meter.left.only(("load", work[0][0]))
        while not self._book.is_done:
            self._start_workers()
            self._assign()
            self._show()
            wait, n = _WAIT_SECONDS, 0
            while n < _AT_ONCE and (arrived := self._pool.receive(wait)) is not None:
                self._take(arrived)
                wait, n = 0.0, n + 1
            self._give_back_late()
        self._show()

    def close(self) -> None:
        """Let the workers close their models, and take their last messages."""
        for state in self._workers.values():
            self._pool.send(state.number, messages.encode(Stop()))
        until = time.monotonic() + _STOP_SECONDS
        busy = {
            n
            for n, state in self._workers.items()
            if state.has_greeted and not state.is_late and not self._out(state)
        }
        while busy and (left := until - time.monotonic()) > 0:
            arrived = self._pool.receive(min(left, _WAIT_SECONDS))
            if arrived is None:
                continue
            if arrived.frame is None:
                busy.discard(arrived.worker)
            elif isinstance(message := messages.for_driver(arrived.frame), Closed):
                self._end_run(self._workers[arrived.worker], message)
        self.end_runs()

    def end_runs(self) -> None:
        """Record the end of every run that is open."""
        for state in self._workers.values():
            for run in state.runs.values():
                run.write.flush()
                run.open.close({})
            state.runs.clear()

    # --- workers ---

    def _start_workers(self) -> None:
        n_useful = max(1, sum(map(self._book.left, range(len(self._grid.plan.models)))))
        while len(self._workers) < min(self._n_wanted, n_useful):
            number = self._pool.start()
            self._workers[number] = _WorkerState(number, heard=time.monotonic())
            self._pool.send(number, self._setup)

    def _assign(self) -> None:
        for state in self._workers.values():
            if not state.has_greeted or not state.is_fit or state.is_late:
                continue
            while (m := self._model_for(state)) is not None:
                lease = self._book.take(m, self._n_workers_of(m, state), is_idle=not self._out(state))
                if lease is None:
                    break
                if state.model != m:
                    state.model, state.loading, state.phase = None, m, None
                more = tuple(self._found[state.n_found :])
                state.n_found = len(self._found)
                state.leases.append(lease.number)
                state.n_unstarted += 1
                if not state.leases[1:]:
                    state.heard = time.monotonic()
                self._pool.send(state.number, messages.encode(msgspec.structs.replace(lease, found=more)))

    def _model_for(self, state: _WorkerState) -> int | None:
        """The model of the next lease of a worker; None if it gets none now.

        One lease waits at the worker while it answers others, so that its batch never runs empty. It changes
        its model only when it has no lease left. A model is first loaded by one worker: what that measures is
        kept for the others, and if it does not fit, it fails once.
        """
        out = self._out(state)
        if state.n_unstarted or any(map(self._book.is_alone, out)):
            return None
        own = state.model if state.loading is None else state.loading
        if own is not None and self._book.waiting(own):
            return own if state.loading is None or not out else None
        if out:
            return None
        first = {s.loading for s in self._workers.values() if s.loading is not None} - set(self._numerics)
        open_models = [m for m in self._book.models() if m not in first]
        share = {m: self._book.waiting(m) / (1 + self._n_workers_of(m)) for m in open_models}
        return max(open_models, key=lambda m: share[m], default=None)

    def _n_workers_of(self, m: int, besides: _WorkerState | None = None) -> int:
        n = sum(m in (s.model, s.loading) for s in self._workers.values() if s is not besides)
        return n + (besides is not None)

    def _out(self, state: _WorkerState) -> list[int]:
        """The leases of a worker that wait for answers."""
        state.leases = [number for number in state.leases if self._book.is_out(number)]
        return state.leases

    def _give_back_late(self) -> None:
        now = time.monotonic()
        for state in list(self._workers.values()):
            # Loading takes as long as it takes: a worker that dies of it is lost.
            if state.loading is not None or not (self._out(state) or state.is_late):
                continue
            silent = now - state.heard
            if silent > 2 * self._late_seconds:
                self._pool.kill(state.number)
                state.heard = now
            elif silent > self._late_seconds and not state.is_late:
                state.is_late = True
                self._return(state, is_death=False)

    def _return(self, state: _WorkerState, is_death: bool) -> None:
        for number in state.leases:
            for index in self._book.give_back(number, is_death):
                self._write_death(index)
        state.leases, state.n_unstarted = [], 0

    def _write_death(self, index: int) -> None:
        """Write the error row of a trial that ended its workers."""
        trial = self._grid.trial(index)
        row = Response(
            index, trial.id, trial.model.id, self._grid.application, trial.probe.id, trial.attack,
            trial.sample, trial.seed, (), "worker", "each worker that was asked this died", False,
            error_code=WORKER_DIED,
        )  # fmt: skip
        m = self._grid.plan.models.index(trial.model)
        if self._book.answer(index):
            with self._own_run(m) as run:
                run.write(row)
            self._n_failed[m] += 1

    @contextmanager
    def _own_run(self, m: int) -> Iterator[_Run]:
        """A run of the driver itself, for rows that no worker sent."""
        model, numerics = self._grid.plan.models[m], self._numerics.get(m, "")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        run = self._opened(
            RunRecord(
                model.id, "worker", at, platform.node(), 0.0, 0, 0, 0, {}, numerics,
                base_numerics=numerics, plan_seal=self._recorder.seal,
            )
        )  # fmt: skip
        try:
            yield run
        finally:
            run.write.flush()
            run.open.close({})

    # --- messages ---

    def _take(self, arrived: Arrived) -> None:
        state = self._workers.get(arrived.worker)
        if state is None:
            return
        if arrived.frame is None:
            self._lost(state, arrived.lost)
            return
        state.heard, state.is_late = time.monotonic(), False
        self._hear(state, messages.for_driver(arrived.frame))

    def _hear(self, state: _WorkerState, message: ToDriver) -> None:
        match message:
            case Answered():
                self._write(state, message)
            case Started():
                self._recorder.meter.left.only(None)  # they loaded until now
                self._book.start(message.lease)
                state.n_unstarted -= message.lease in state.leases
            case Loaded():
                self._loaded(state, message)
            case Preparing(phase, n_done, n_total, unit):
                state.phase = Progress(PREPARE, "", n_done, n_total, unit=unit, phase=phase)
            case Began():
                run = self._opened(message.record)
                state.runs[message.run] = run
            case Closed():
                self._end_run(state, message)
            case Found():
                self._keep(message.result)
            case Hello():
                self._greet(state, message)
            case Failed():
                self._failed(state, message)

    def _keep(self, result: SearchResult) -> None:
        if all(result.key != found.key for found in self._found):
            self._searches.write(result)
            self._found.append(result)

    def _greet(self, state: _WorkerState, hello: Hello) -> None:
        if hello.version != self._version:
            raise NotComparable(
                f"The worker on {hello.host} has heredity {hello.version}, the driver {self._version}. "
                "Install the same version on all machines.",
                code="worker-version",
            )
        state.has_greeted = True
        self._failures["start", None] = 0
        self._machine = self._machine or hello.machine
        state.is_fit = hello.machine in ("", self._machine)
        if not state.is_fit:
            self._refuse_if_all_unfit(hello)

    def _refuse_if_all_unfit(self, hello: Hello) -> None:
        if any(state.is_fit for state in self._workers.values()):
            return
        raise NotComparable(
            f"The answers of this study are of machines '{self._machine}', and {hello.host} is "
            f"'{hello.machine}'. Both members of a pair must be answered on one kind of machine: use workers "
            "of that kind, or another folder.",
            code="machine-differs",
        )

    def _loaded(self, state: _WorkerState, message: Loaded) -> None:
        m = message.model
        model = self._grid.plan.models[m]
        refuse_other_arithmetic(self._recorder.folder, model, message.numerics, self._earlier.engines[m])
        if self._numerics.setdefault(m, message.numerics) != message.numerics:
            raise NotComparable(
                f"Two workers compute '{model.name}' differently: '{self._numerics[m]}' and "
                f"'{message.numerics}'. Use workers of one kind of machine, with the same libraries.",
                code="numerics-differ",
            )
        self._prefixes.add(message.prefix)
        state.model, state.loading = m, None
        self._failures["load", m] = 0

    def _opened(self, record: RunRecord) -> _Run:
        opened = OpenRun(self._recorder.folder, record)
        writer = ResponseWriter(self._recorder.rows, None, self._recorder.meter, opened.count)
        return _Run(opened, writer, record.machine)

    def _end_run(self, state: _WorkerState, message: Closed) -> None:
        if (run := state.runs.pop(message.run, None)) is not None:
            run.write.flush()
            run.open.close(message.account)

    def _write(self, state: _WorkerState, message: Answered) -> None:
        response, run = message.response, state.runs.get(message.run)
        if run is None or not is_of_its_trial(response, self._grid):
            raise Damaged("A worker answered a trial that is not of this plan.", code="trial-not-planned")
        m = response.index // self._grid.plan.n_per_model
        self._failures["engine", m] = self._failures["death", m] = 0
        if not self._book.answer(response.index):
            return  # another worker was faster
        if run.machine is not msgspec.UNSET:
            response = msgspec.structs.replace(response, machine=run.machine)
        self._n_failed[m] += response.error is not None
        run.write(response)

    # --- losses ---

    def _failed(self, state: _WorkerState, message: Failed) -> None:
        """Raise a worker's error, unless a new worker may get further: its engine failed on the way."""
        error, m = message.error(), state.model
        if not isinstance(error, EngineFailure) or isinstance(error, BudgetSpent) or m is None:
            raise error
        if self._n_failures("engine", m) >= MOST_FAILURES:
            raise error
        self._return(state, is_death=True)

    def _lost(self, state: _WorkerState, reason: str) -> None:
        """Give back what a dead worker held. Raises if starting another one would not help."""
        del self._workers[state.number]
        for run in state.runs.values():
            run.write.flush()
            run.open.close({})
        self._return(state, is_death=state.loading is None)
        if not state.has_greeted:
            if self._n_failures("start", None) >= MOST_FAILURES:
                raise HeredityError(
                    f"Workers on {self._pool.place} end before they start: {reason}", code="worker-start"
                )
        elif state.loading is not None:
            self._lost_loading(state.loading, reason)
        elif state.model is not None and self._n_failures("death", state.model) >= MOST_DEATHS:
            raise EngineFailure(
                f"{MOST_DEATHS} workers in a row died while they answered as "
                f"'{self._grid.plan.models[state.model].name}': {reason}",
                code="worker-died",
            )

    def _lost_loading(self, m: int, reason: str) -> None:
        if self._n_failures("load", m) < MOST_FAILURES:
            return
        if self._n_workers_of(m):  # it fits, but not once more
            self._n_wanted = max(1, len(self._workers))
            return
        raise OutOfMemory(
            f"{MOST_FAILURES} workers died while they loaded '{self._grid.plan.models[m].name}' ({reason}). "
            "The memory is probably too small: use fewer --workers, a quantized form of the model, or "
            "machines with more memory.",
            code="worker-died-loading",
        )

    def _n_failures(self, kind: str, m: int | None) -> int:
        """Count one more failure of a kind, and return how many there were in a row."""
        self._failures[kind, m] += 1
        return self._failures[kind, m]

    # --- progress ---

    def _show(self) -> None:
        plan, states = self._grid.plan, self._workers.values()
        loading = Counter(state.loading for state in states)
        phases = {state.loading: state.phase for state in states if state.phase is not None}
        models = tuple(
            ModelProgress(
                model.name,
                plan.n_per_model - self._book.left(m),
                self._book.leased(m),
                self._n_failed[m],
                loading[m],
                None if m in self._numerics else phases.get(m),
            )
            for m, model in enumerate(plan.models)
            if self._book.left(m) or m in self._numerics
        )
        n_starting = sum(not state.has_greeted for state in states)
        self._recorder.meter.workers(len(states), models, n_starting)


def _machine_of(recorder: FolderRecorder, earlier: EarlierRuns) -> str:
    """The kind of machine that answered in earlier runs of several workers; "" for none."""
    answered = set().union(*earlier.engines)
    held = (run.machine for run in run_records(recorder.folder) if run.engine in answered)
    return next((name for name in held if not isinstance(name, msgspec.UnsetType)), "")
