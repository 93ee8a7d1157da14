"""Several workers that ask the trials of one study: processes of this machine, or actors of a Ray cluster.

    Study(StudySpec(models, application)).run(workers=3)
    Study(StudySpec(models, application)).run(workers=Workers(8, on="ray"))

A worker (worker.py) holds one loaded model and writes into a folder of its own (shards.py). The driver is the
process that the user started. It gives each worker trials, copies its rows into the study, and replaces it.

Promises: rows are those of one process, in another order. Every trial gets one row. A killed worker or driver
costs the answers that were in flight. A worker is started again when it dies, but not one that dies again and
again. Trials that a worker died of are asked again, at last each by itself. All workers are of one kind of
machine, so that both members of a pair are.
Leaves to others: which trials are still to ask (resume.py), conversations (runner.py).
"""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from heredity.application.toolbox import Toolbox
from heredity.core import registry
from heredity.core.errors import (
    BudgetSpent,
    EngineFailure,
    HeredityError,
    NotComparable,
    OutOfMemory,
    UsageError,
)
from heredity.core.files import Rows
from heredity.core.host import Device
from heredity.core.progress import ModelProgress
from heredity.core.records import WORKER_DIED, Model, Response
from heredity.core.version import __version__
from heredity.engines.remote.budget import Calls
from heredity.study.attack_context import FOUND, SearchResult
from heredity.study.launch import LocalWorker, RayPlace, address_of, stopped_by_sigterm
from heredity.study.plan import Grid, Plan, PlannedModel, TrialSet
from heredity.study.resume import EarlierRuns, refuse_other_arithmetic
from heredity.study.runner import FolderRecorder, OpenRun, StillToAsk
from heredity.study.shards import WORKERS
from heredity.study.storage import (
    PREFIXES,
    RUNS,
    Prefixes,
    PromptPrefix,
    ResponseWriter,
    RunCount,
    RunRecord,
    answered_rows,
    open_responses,
    run_records,
)
from heredity.study.worker import Lease, Setup, Status

MAX_WORKERS = 4096
LATE_SECONDS = 1800.0  # without a row from a worker that has trials; then it is ended
SIZE = 32  # trials that a worker is given at once
MAX_FAILURES = 3  # to start, to load a model, or of its engine, in a row
MAX_DEATHS = 30  # of workers that answered one model, in a row
_WITH_OTHERS, _ALONE = 2, 3  # deaths of workers after which a trial is asked by itself, and then is an error
_STOP_SECONDS = 10.0  # for workers to close their models at the end of a study
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """Workers that ask the trials of a study; each holds one loaded model.

    n             how many
    on            "": processes of this machine; "ray": a Ray cluster that is started here; "ray://HOST:PORT":
                  a running one
    late_seconds  a worker that has no answer for so long is ended, and another one asks its trials
    loader        "package.module:function" that makes an Engine of a Grown model in each worker; "" for the
                  usual one
    calls         how models behind an API are called; None: the defaults. Each worker has its share of the
                  concurrency
    """

    n: int
    on: str = ""
    late_seconds: float = LATE_SECONDS
    loader: str = ""
    calls: Calls | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_WORKERS:
            raise UsageError(f"A study has 1 to {MAX_WORKERS:,} workers, not {self.n}.")
        if self.on:
            address_of(self.on)
        budget = None if self.calls is None else self.calls.budget
        if budget is not None and (budget.max_tokens, budget.max_cost) != (None, None):
            raise UsageError(
                "Workers cannot share a budget: one process counts it. A model behind an API waits rather "
                "than computes, so leave --workers out and raise --concurrency."
            )

    @classmethod
    def of(cls, workers: Workers | int | None, plan: Plan, has_own_loader: bool) -> Workers | None:
        """The workers that these settings mean; None for none.

        has_own_loader: the study has an `engine_loader`. Raises UsageError if workers need it, or an object
        that the user's code gave as a plug-in.
        """
        found = cls(workers) if isinstance(workers, int) else workers
        if found is not None and has_own_loader and not found.loader and found.calls is None:
            raise UsageError(
                "Workers load the models themselves: an `engine_loader` stays in its process. Name it "
                'instead: Workers(n, loader="package.module:function").'
            )
        for each in plan.plugins or () if found is not None else ():
            if (its := registry.outside(each.folder, each.name)) and its.plugin is not None:
                raise UsageError(
                    f"Workers load plug-ins by their names: the object {each.name} stays in its process. "
                    "Give it an entry point in a package, or leave --workers out."
                )
        return found

    @contextmanager
    def driver(
        self,
        grid: Grid,
        recorder: FolderRecorder,
        earlier: EarlierRuns,
        records: Sequence[Model],
        store: Path,
        device: Device | None,
        replayed: Toolbox | None = None,
    ) -> Iterator[Driver]:
        """The driver of these workers. They end with the block, at once if it raises.

        replayed: the tools of the application. No worker runs them; each serves the recorded results.
        """
        calls = self.calls or Calls()
        setup = Setup(
            grid.plan, recorder.seal, tuple(records), str(store.absolute()), str(recorder.folder.absolute()),
            platform.node(), self.loader, "" if device is None else str(device), dict(calls.keys),
            dict(calls.prices), max(1, calls.concurrency // self.n),
            None if replayed is None else tuple(replayed.results),
        )  # fmt: skip
        with ExitStack() as stack:
            stack.enter_context(stopped_by_sigterm())
            if self.on:
                has_weights = any(record.files for record in records)
                cluster = RayPlace(address_of(self.on), self.n, has_weights)
                stack.callback(cluster.close)
                start: Start = cluster.start
            else:
                start = partial(LocalWorker, n=self.n, has_gpus=device is None or str(device) == "cuda")
            driver = Driver(start, self, setup, grid, recorder, earlier)
            stack.callback(driver.kill)
            yield driver
            driver.close()


class WorkerHandle(Protocol):
    """A worker, as its driver holds it."""

    def poll(self, given: Sequence[Lease | None]) -> Future[Status]:
        """Give trials to the worker (None: no more come); its state, when that changes."""

    def kill(self) -> None:
        """End the worker at once, with all that it started."""

    def why_lost(self, error: Exception) -> str:
        """Why it died, from the error of a call."""


Start = Callable[[bytes, Path], WorkerHandle]  # starts a worker with its setup and its folder


# --- which trials are given next --------------------------------------------------------------------


class _ModelQueue:
    """The trials of one model that no worker has."""

    def __init__(self, new: Iterator[int], n_new: int) -> None:
        self.new, self.n_new = new, n_new
        self.returned: deque[tuple[int, ...]] = deque()
        self.alone: deque[int] = deque()
        self.n_left = n_new  # without an answer, those that workers have included

    def __len__(self) -> int:
        return self.n_new + sum(map(len, self.returned)) + len(self.alone)


class TrialQueue:
    """The trials that are still to ask. `answered`: those that have a row; each new answer is added to it."""

    def __init__(self, grid: Grid, answered: TrialSet, size: int = SIZE) -> None:
        self._plan, self._answered, self._size = grid.plan, answered, size
        self._queues: dict[int, _ModelQueue] = {}
        self._deaths: Counter[tuple[int, bool]] = Counter()  # of workers, by trial and whether it was alone

    def add(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Add trials of models; there must be none left of an earlier call."""
        self._queues = {m: _ModelQueue(still(), sum(1 for _ in still())) for m, still in work}

    def models(self) -> list[int]:
        """The models with trials that no worker has."""
        return [m for m in self._queues if self.waiting(m)]

    def waiting(self, m: int) -> int:
        """The number of trials of a model that no worker has."""
        return len(self._queues[m]) if m in self._queues else 0

    def left(self, m: int) -> int:
        """The number of trials of a model without an answer."""
        return self._queues[m].n_left if m in self._queues else 0

    def unanswered(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Those of `indices` without an answer."""
        return tuple(self._answered.missing(indices))

    def answer(self, index: int) -> bool:
        """Note an answer. False if the trial had one already: drop this one."""
        is_new = self._answered.add(index)
        if is_new and (m := index // self._plan.n_per_model) in self._queues:
            self._queues[m].n_left -= 1
        return is_new

    def take(self, m: int, n_workers: int, is_idle: bool) -> Lease | None:
        """The next trials of a model; None if this worker gets no more now.

        n_workers: those that could ask the model; near the end they get fewer at once, so that all have work.
        is_idle: whether the worker has no other trials, as one that must be asked by itself needs.
        """
        queue = self._queues[m]
        while queue.returned:
            if left := self.unanswered(queue.returned.popleft()):
                return Lease(m, left)
        size = max(1, min(self._size, -(-queue.n_new // (2 * n_workers))))
        if queue.n_new and (new := self.unanswered(self._next_new(queue, size))):
            return Lease(m, new)
        while is_idle and queue.alone:
            if left := self.unanswered([queue.alone.popleft()]):
                return Lease(m, left, is_alone=True)
        return None

    def _next_new(self, queue: _ModelQueue, size: int) -> list[int]:
        """Up to `size` trials that no worker had, all of one attack."""
        some: list[int] = []
        while len(some) < size and queue.n_new:
            if some and (some[-1] + 1) % (self._plan.samples * len(self._plan.probes)) == 0:
                break
            some.append(next(queue.new))
            queue.n_new -= 1
        return some

    def give_back(self, lease: Lease, is_suspect: bool) -> tuple[int, ...]:
        """Take back what a worker has not answered. It returns the trials that must become errors.

        is_suspect: the worker died, which any of these trials may have caused.
        """
        queue, left = self._queues[lease.m], self.unanswered(lease.indices)
        if is_suspect:
            self._deaths.update((index, lease.is_alone) for index in left)
        if lease.is_alone or any(self._deaths[index, False] >= _WITH_OTHERS for index in left):
            over = tuple(index for index in left if self._deaths[index, True] >= _ALONE)
            queue.alone.extend(index for index in left if index not in over)
            return over
        if left:
            queue.returned.append(left)
        return ()


# --- the driver -------------------------------------------------------------------------------------


@dataclass
class _WorkerState:
    """The driver's view of a worker, and the readers of its folder."""

    handle: WorkerHandle
    responses: Rows[Response]
    runs: Rows[RunRecord]
    prefixes: Rows[PromptPrefix]
    searches: Rows[SearchResult]
    answered: TrialSet
    call: Future[Status] | None = None
    status: Status | None = None  # None: it starts
    is_fit: bool = True
    model: int | None = None  # that it has loaded
    to_give: list[Lease | None] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)  # that have trials without an answer
    n_given: int = 0
    heard: float = field(default_factory=time.monotonic)

    @property
    def loading(self) -> int | None:
        """The model that it loads, or is about to load."""
        m = self.leases[0].m if self.leases else None
        return None if m == self.model else m

    @property
    def n_unbegun(self) -> int:
        """How many of its leases it has not begun."""
        return self.n_given - (0 if self.status is None else self.status.n_begun)


class Driver:
    """Asks the models of a study by workers (runner.Asker)."""

    def __init__(
        self,
        start: Start,
        workers: Workers,
        setup: Setup,
        grid: Grid,
        recorder: FolderRecorder,
        earlier: EarlierRuns,
    ) -> None:
        self._start_worker, self._n_wanted, self._late_seconds = start, workers.n, workers.late_seconds
        self._setup, self._grid, self._recorder = msgspec.msgpack.encode(setup), grid, recorder
        self._earlier, self._queue = earlier, TrialQueue(grid, earlier.answered)
        self._write = ResponseWriter(recorder.rows, None, recorder.meter, RunCount())
        self._workers: list[_WorkerState] = []
        self._n_started, self._is_closing = 0, False
        self._searched = {row.key for row in Rows(recorder.folder / FOUND, SearchResult)}
        self._by_id = {model.id: m for m, model in enumerate(grid.plan.models)}
        self._numerics: dict[int, str] = {}  # of the base model, by model that was loaded in this run
        answered = set().union(*earlier.engines)
        held = (run.machine for run in run_records(recorder.folder) if run.engine in answered)
        self._machine = next((name for name in held if not isinstance(name, msgspec.UnsetType)), "")
        self._failures: Counter[tuple[str, int | None]] = Counter()  # in a row, by kind and model
        self._n_failed: Counter[int] = Counter()  # error rows of this run, by model

    @property
    def model(self) -> int | None:
        """A model that a worker has loaded."""
        return next((state.model for state in self._workers if state.model is not None), None)

    def ask(self, work: Sequence[tuple[int, StillToAsk]]) -> None:
        """Ask models their trials; returns when every trial has its row."""
        self._queue.add(work)
        if work:
            self._recorder.meter.left.only(("load", work[0][0]))
        while n_left := sum(map(self._queue.left, range(len(self._grid.plan.models)))):
            while len(self._workers) < min(self._n_wanted, n_left):
                self._start()
            for state in self._workers:
                self._give(state)
            self._show()
            self._hear()
            self._end_late()
        self._write.flush()
        self._show()

    def close(self) -> None:
        """Let the workers close their models, and take the last rows of their runs."""
        self._is_closing = True
        for state in self._workers:
            state.to_give.append(None)
        until = time.monotonic() + _STOP_SECONDS
        while any(state.status for state in self._workers) and time.monotonic() < until:
            self._hear()

    def kill(self) -> None:
        """End every worker, and copy the rows that it has not been asked for."""
        for state in self._workers:
            state.handle.kill()
        while self._workers:
            self._collect(self._workers.pop())
        self._write.flush()
        shutil.rmtree(self._recorder.folder / WORKERS, ignore_errors=True)

    # --- workers ---

    def _start(self) -> None:
        self._n_started += 1
        folder = self._recorder.folder.absolute() / WORKERS / str(self._n_started)
        state = _WorkerState(
            self._start_worker(self._setup, folder), open_responses(folder), Rows(folder / RUNS, RunRecord),
            Rows(folder / PREFIXES, PromptPrefix), Rows(folder / FOUND, SearchResult),
            TrialSet(len(self._grid)),
        )  # fmt: skip
        self._workers.append(state)

    def _give(self, state: _WorkerState) -> None:
        if state.status is None or not state.is_fit:
            return
        while (m := self._model_for(state)) is not None:
            lease = self._queue.take(m, self._n_workers_of(m, state), is_idle=not state.leases)
            if lease is None:
                return
            if not state.leases:
                state.heard = time.monotonic()
            state.leases.append(lease)
            state.to_give.append(lease)
            state.n_given += 1

    def _model_for(self, state: _WorkerState) -> int | None:
        """The model of the next trials of a worker; None if it gets none now.

        One lease waits at the worker while it answers others, so that its batch never runs empty. It changes
        its model only when it has no lease left. A model is first loaded by one worker: what that measures is
        kept for the others, and if it does not fit, it fails once.
        """
        if state.n_unbegun or state.loading is not None or any(lease.is_alone for lease in state.leases):
            return None
        if state.model is not None and self._queue.waiting(state.model):
            return state.model
        if state.leases:
            return None
        first = {each.loading for each in self._workers} - set(self._numerics)
        open_models = [m for m in self._queue.models() if m not in first]
        share = {m: self._queue.waiting(m) / (1 + self._n_workers_of(m)) for m in open_models}
        return max(open_models, key=lambda m: share[m], default=None)

    def _n_workers_of(self, m: int, besides: _WorkerState | None = None) -> int:
        """The workers that have a model or load it, with `besides`."""
        n = sum(m in (each.model, each.loading) for each in self._workers if each is not besides)
        return n + (besides is not None)

    def _end_late(self) -> None:
        for state in self._workers:
            # Loading takes as long as it takes: a worker that dies of it is lost.
            is_answering = state.leases and state.loading is None
            if is_answering and time.monotonic() - state.heard > self._late_seconds:
                state.handle.kill()  # its loss arrives
                state.heard = time.monotonic()

    def _return(self, state: _WorkerState, is_death: bool) -> None:
        """Take back what a worker has not answered. is_death: it died of the trials that it had begun."""
        n_begun = max(1, len(state.leases) - state.n_unbegun)
        for n, lease in enumerate(state.leases):
            for index in self._queue.give_back(lease, is_suspect=is_death and n < n_begun):
                self._write_death(index)
        state.leases = []

    def _write_death(self, index: int) -> None:
        """Write the error row of a trial that ended its workers, and a run of the driver's own for it."""
        trial, m = self._grid.trial(index), index // self._grid.plan.n_per_model
        row = Response(
            index, trial.id, trial.model.id, self._grid.application, trial.probe.id, trial.attack,
            trial.sample, trial.seed, (), "worker", "each worker that was asked this died", False,
            error_code=WORKER_DIED,
        )  # fmt: skip
        at, numerics = datetime.now(UTC).isoformat(timespec="seconds"), self._numerics.get(m, "")
        run = RunRecord(
            trial.model.id, "worker", at, platform.node(), 0.0, 0, 0, 0, {}, numerics,
            base_numerics=numerics, plan_seal=self._recorder.seal,
        )  # fmt: skip
        opened = OpenRun(self._recorder.folder, run)
        if self._queue.answer(index):
            ResponseWriter(self._recorder.rows, None, self._recorder.meter, opened.count)(row)
            self._n_failed[m] += 1
        opened.close({})

    # --- what workers report ---

    def _hear(self) -> None:
        """Give the workers their trials, and take the state and the rows of those that report."""
        calls: dict[Future[Status], _WorkerState] = {}
        for state in self._workers:
            # An idle worker is not asked, so that it can be given trials at once.
            is_idle = state.status is not None and not (state.leases or state.n_unbegun or self._is_closing)
            if state.call is None and not is_idle:
                state.call, state.to_give = state.handle.poll(state.to_give), []
            if state.call is not None:
                calls[state.call] = state
        for call in wait(calls, _WAIT_SECONDS, FIRST_COMPLETED).done:
            calls[call].call = None
            self._take(calls[call], call)

    def _take(self, state: _WorkerState, call: Future[Status]) -> None:
        self._collect(state)
        if isinstance(error := call.exception(), Exception):
            self._lost(state, state.handle.why_lost(error))
            return
        status, before = call.result(), state.status
        if status.error is not None and not self._is_closing:
            state.handle.kill()
            self._workers.remove(state)
            m = None if state.loading is not None else state.model
            if (
                not isinstance(status.error, EngineFailure)
                or isinstance(status.error, BudgetSpent)
                or m is None
            ):
                raise status.error
            if self._n_failures("engine", m) >= MAX_FAILURES:
                raise status.error
            self._return(state, is_death=True)
        elif status.is_closed:
            state.handle.kill()
            self._workers.remove(state)
        elif status.machine is not None:
            state.status = status
            if before is None:
                self._greet(state, status, status.machine)
            elif before.n_begun != status.n_begun:
                state.heard = time.monotonic()

    def _collect(self, state: _WorkerState) -> None:
        """Copy the new rows of a worker. Raises NotComparable if it computes as no other worker does."""
        rows = list(answered_rows(state.responses, self._grid, state.answered))
        # After the answers: the run of each is there by now.
        if runs := list(state.runs):
            prefixes = Prefixes(self._recorder.folder)
            for prefix in state.prefixes:
                prefixes.add(prefix)
            for run in runs:
                self._refuse_other_arithmetic(state, run)
            with Rows(self._recorder.folder / RUNS, RunRecord) as target:
                target.extend(runs)
            state.model = self._by_id[runs[-1].model]
            self._failures["load", state.model] = 0
        for found in (each for each in state.searches if each.key not in self._searched):
            self._searched.add(found.key)
            with Rows(self._recorder.folder / FOUND, SearchResult) as searches:
                searches.append(found)
        for reader in (state.responses, state.runs, state.prefixes, state.searches):
            reader.skip_read()
        if rows or runs:
            state.heard = time.monotonic()
            self._recorder.meter.left.only(None)  # they loaded until now
        for row in rows:
            m = row.index // self._grid.plan.n_per_model
            self._failures["engine", m] = self._failures["death", m] = 0
            if self._queue.answer(row.index):
                self._n_failed[m] += row.error is not None
                self._write(row)
        state.leases = [lease for lease in state.leases if self._queue.unanswered(lease.indices)]

    def _refuse_other_arithmetic(self, state: _WorkerState, run: RunRecord) -> None:
        m, numerics = self._by_id[run.model], run.base_numerics
        model = self._grid.plan.models[m]
        try:
            refuse_other_arithmetic(self._recorder.folder, model, numerics, self._earlier.engines[m])
            if self._numerics.setdefault(m, numerics) != numerics:
                raise NotComparable(
                    f"Two workers compute '{model.name}' differently: '{self._numerics[m]}' and "
                    f"'{numerics}'. Use workers of one kind of machine, with the same libraries."
                )
        except NotComparable:
            state.handle.kill()
            if state in self._workers:
                self._workers.remove(state)  # its rows are not wanted
            raise

    def _greet(self, state: _WorkerState, status: Status, machine: str) -> None:
        if status.version != __version__:
            raise NotComparable(
                f"The worker on {status.host} has heredity {status.version}, the driver {__version__}. "
                "Install the same version on all machines."
            )
        self._failures["start", None] = 0
        self._machine = self._machine or machine
        state.is_fit = machine in ("", self._machine)
        if not any(each.is_fit for each in self._workers):
            raise NotComparable(
                f"The answers of this study are of machines '{self._machine}', and {status.host} is "
                f"'{machine}'. Both members of a pair must be answered on one kind of machine: use workers "
                "of that kind, or another folder."
            )

    # --- losses ---

    def _lost(self, state: _WorkerState, reason: str) -> None:
        """Give back what a dead worker had. Raises if starting another one would not help."""
        self._workers.remove(state)
        if self._is_closing:
            return
        loading, m = state.loading, state.model
        self._return(state, is_death=loading is None)
        if state.status is None:
            if self._n_failures("start", None) >= MAX_FAILURES:
                raise HeredityError(f"Workers end before they start: {reason}")
        elif loading is not None:
            self._lost_loading(loading, reason)
        elif m is not None and self._n_failures("death", m) >= MAX_DEATHS:
            raise EngineFailure(
                f"{MAX_DEATHS} workers in a row died while they answered as "
                f"'{self._grid.plan.models[m].name}': {reason}"
            )

    def _lost_loading(self, m: int, reason: str) -> None:
        if self._n_failures("load", m) < MAX_FAILURES:
            return
        if self._n_workers_of(m):  # it fits, but not once more
            self._n_wanted = max(1, len(self._workers))
            return
        raise OutOfMemory(
            f"{MAX_FAILURES} workers died while they loaded '{self._grid.plan.models[m].name}' ({reason}). "
            "The memory is probably too small: use fewer --workers, a quantized form of the model, or "
            "machines with more memory."
        )

    def _n_failures(self, kind: str, m: int | None) -> int:
        """Count one more failure of a kind, and return how many there were in a row."""
        self._failures[kind, m] += 1
        return self._failures[kind, m]

    def _show(self) -> None:
        """Report the state of the models and the workers."""
        plan = self._grid.plan
        loading = Counter(state.loading for state in self._workers)
        phases = {state.loading: state.status and state.status.phase for state in self._workers}
        models = tuple(
            ModelProgress(
                model.name, plan.n_per_model - self._queue.left(m),
                self._queue.left(m) - self._queue.waiting(m), self._n_failed[m], loading[m],
                None if m in self._numerics else phases.get(m),
            )
            for m, model in enumerate(plan.models)
            if self._queue.left(m) or m in self._numerics
        )  # fmt: skip
        n_starting = sum(state.status is None for state in self._workers)
        self._recorder.meter.workers(len(self._workers), models, n_starting)


def asked_models(plan: Plan) -> list[PlannedModel]:
    """The models that are loaded in a study: those of the plan without guards, and the attacker."""
    attacker = [plan.attacker] if isinstance(plan.attacker, PlannedModel) else []
    return [*(model for model in plan.models if not model.of), *attacker]
