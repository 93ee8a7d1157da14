"""Ask one study in several processes: workers of this machine or of a Ray cluster, and parts of an array.

    Study(StudySpec(models, application)).run(workers=3)
    Study(StudySpec(models, application)).run(workers=Workers(8, on="ray"))
    heredity study plan.toml --out DIR --shard 3/64     asks part 3 of 64, into DIR/shards/03-of-64
    heredity study DIR                                  collects the rows of all parts, and continues

A worker holds one loaded model and writes into a folder of its own, DIR/workers/1. The driver is the process
that the user started. It gives each worker trials, copies its rows into the study, and replaces it. A part
(StudyPart) has no driver: the user's scheduler starts it.

Promises: rows are those of one process, in another order. Every trial gets one row. A killed worker or driver
costs the answers that were in flight. A worker is started again when it dies, but not one that dies again and
again. Trials that a worker died of are asked again, at last each by itself. All workers are of one kind of
machine, so that both members of a pair are. A worker ends with its driver, however that ends, and takes its
own processes with it.
Leaves to others: which trials are still to ask (storage.py), conversations (runner.py), starting the tasks of
an array, and placing and restarting machines (Ray).
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import NamedTuple, Protocol

import msgspec

from heredity.application.toolbox import RecordedResult, RecordedResults, Toolbox
from heredity.core import __version__, host, registry
from heredity.core.cache import ResponseCache
from heredity.core.errors import (
    BudgetSpent,
    Damaged,
    EngineFailure,
    HeredityError,
    NotComparable,
    OutOfMemory,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
    WrongHash,
    first_line,
    how_to_install,
)
from heredity.core.files import Rows, read_file, refuse_linked_folders, write_atomic
from heredity.core.host import Device
from heredity.core.progress import PREPARE, ModelProgress, Progress, TimeLeft, TrialMeter, Work
from heredity.core.records import WORKER_DIED, Model, Response, encode
from heredity.engines import Engine, choose
from heredity.engines.remote.services import Calls, Price
from heredity.lineage.store import Store, load_engine, record_at_answer, searching_in
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam.judges import Models
from heredity.redteam.judges.guard import JudgeReaders
from heredity.study.plan import PLAN, Grid, Plan, PlannedModel, TrialSet, read_saved
from heredity.study.resolve import stored_model
from heredity.study.runner import (
    FOUND,
    FolderRecorder,
    ModelSlot,
    OpenRun,
    RunContext,
    SearchCache,
    SearchResult,
    StillToAsk,
    attack_services,
    loaded_model,
)
from heredity.study.storage import (
    PREFIXES,
    RESPONSES,
    RUNS,
    EarlierRuns,
    Prefixes,
    PromptPrefix,
    ResponseWriter,
    RunCount,
    RunRecord,
    answered_rows,
    open_responses,
    refuse_other_arithmetic,
    run_records,
)

# --- a worker -----------------------------------------------------------------------------------------
# It refuses model files that differ from the driver's record. The state of a conversation, of an attacker or
# of a search stays in it.


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
        find = partial(stored_model, lambda: self._store)  # the models of guards, which the plan names
        of_guards = Models(lambda name: find(name).record.id, lambda name: self._load(find(name)))
        with (
            Rows(self._folder / RESPONSES, Response) as rows,
            searching_in(self._store),
            self._store.report.to(self._report),
            attack_services(setup.plan, self._open_model, self._open_cache, self._searches) as services,
            closing(JudgeReaders(of_guards)) as readers,
        ):
            context = RunContext(
                Path(setup.folder), self._grid, _PartRecorder(self, rows), services, self._open_model,
                self._open_cache, readers, toolbox,
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

    def _load(self, grown: Grown) -> Engine:
        if self._loader is not None:
            return self._loader(grown)
        if grown.record.format == "remote" and choose(grown.record) == "remote":
            from heredity.engines.remote import engine as remote
            from heredity.engines.remote.services import Calls

            how = self._setup
            calls = Calls(how.concurrency, keys=how.keys, prices=how.prices)
            engine = remote.load(grown.record, grown.folder, calls=calls)
            record_at_answer(engine, grown, self._store)
            return engine
        return load_engine(grown, self._store)

    def _find(self, record: Model) -> Grown:
        """The model in this worker's store. Raises WrongHash if its files are not those of the record."""
        if record.format == "scripted":
            return Grown(record, Path())
        try:
            grown = self._store.by_id(record.id)
        except UnknownName as error:
            if not record.files:  # a model elsewhere, which the store records when it first answers
                return Grown(record, self._store.folder(record))
            raise Unavailable(
                f"The worker on {platform.node()} has no model '{record.name}' ({record.id}) in "
                f"{self._store.root}. The store must be on storage that all workers share, under one path.",
                code="model-not-pulled",
            ) from error
        if grown.record.files != record.files:
            raise WrongHash(
                f"The worker on {platform.node()} has other files of '{record.name}' in {self._store.root} "
                "than the driver. Let both use the same store."
            )
        return grown

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


# --- parts --------------------------------------------------------------------------------------------
# All parts have one plan.json. A trial is in one part, by a digest that all models share, so both members of
# a pair are. Collecting copies rows and changes no part. The folders of workers whose driver was killed are
# collected too, and removed.

SHARDS, WORKERS = "shards", "workers"
MAX_SHARDS = 10_000
_FOLDER = re.compile(r"(\d{1,5})-of-(\d{1,5})")


@dataclass(frozen=True)
class StudyPart:
    """Part `i` of `n` of a plan's trials; the first part is 1."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> StudyPart:
        """The part that "3/64" names. Raises UsageError."""
        i, separator, n = text.partition("/")
        if separator and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) <= MAX_SHARDS:
            return cls(int(i), int(n))
        raise UsageError(
            f"'{text[:40]}' is not a part. Write I/N with 1 <= I <= N <= {MAX_SHARDS:,}, such as 3/64."
        )

    def folder(self, study: Path) -> Path:
        """The folder of this part."""
        return study / SHARDS / f"{self.i:0{len(str(self.n))}}-of-{self.n}"

    def of(self, grid: Grid, indices: Iterator[int]) -> Iterator[int]:
        """Those of `indices` that are in this part."""
        return (index for index in indices if _part(grid, index, self.n) == self.i)


class PartProgress(NamedTuple):
    """The progress of one part: answered trials of all that it has."""

    part: StudyPart
    n_done: int
    n_total: int


def part_folder(study: Path, part: StudyPart) -> Path:
    """Make the folder of a part with the plan.json of its study, and return it."""
    if other := {each.n for each in shards_of(study)} - {part.n}:
        raise UsageError(
            f"{study / SHARDS} has parts of {other.pop()}, not of {part.n}. Use the same number in "
            "every task, or another --out."
        )
    folder = part.folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).exists():
        write_atomic(folder / PLAN, read_file(study / PLAN))
    return folder


def shards_of(study: Path) -> list[StudyPart]:
    """The parts of a study that have a folder, in order. Raises Refused if one is a link."""
    refuse_linked_folders(study, SHARDS)
    if not (study / SHARDS).is_dir():
        return []
    matches = (_FOLDER.fullmatch(each.name) for each in (study / SHARDS).iterdir())
    return sorted((StudyPart(int(m[1]), int(m[2])) for m in matches if m), key=lambda part: part.i)


def gather(study: Path, grid: Grid) -> list[PartProgress]:
    """Copy the rows of all parts that the study has not yet; returns the progress of each part.

    The caller holds the study's lock. Rows of tasks that still run are copied too, as far as they are. Raises
    Damaged for a part with another plan, and NotComparable if two parts computed one model differently.
    """
    parts, left = shards_of(study), worker_folders(study)
    if not parts and not left:
        return []
    answered = TrialSet(len(grid))
    for _ in answered_rows(open_responses(study), grid, answered):
        pass
    own, folders = read_saved(study), [part.folder(study) for part in parts]
    for folder in folders:
        if read_saved(folder) != own:
            raise Damaged(
                f"{folder / PLAN} is not the plan of {study}. Remove the folder, and ask the part again."
            )
    folders += left
    _refuse_mixed_numerics(study, folders, grid)
    n_done = [_copy(folder, study, grid, answered) for folder in folders]
    # After the answers: a task that still runs has recorded the run of each.
    for name, kind in ((RUNS, RunRecord), (FOUND, SearchResult)):
        known = Counter(encode(row) for row in Rows(study / name, kind))
        with Rows(study / name, kind) as rows:
            for row in (row for folder in folders for row in Rows(folder / name, kind)):
                spelt = encode(row)
                if known[spelt]:  # of equal rows as many as the parts have
                    known[spelt] -= 1
                else:
                    rows.append(row)
    shutil.rmtree(study / WORKERS, ignore_errors=True)
    n_total = _sizes(grid, parts[0].n) if parts else []
    return [PartProgress(part, n, n_total[part.i - 1]) for part, n in zip(parts, n_done, strict=False)]


def worker_folders(study: Path) -> list[Path]:
    """The folders of the workers of a study. Raises Refused if one is a link."""
    refuse_linked_folders(study, WORKERS)
    return sorted(each for each in (study / WORKERS).glob("*") if each.is_dir())


def _copy(folder: Path, study: Path, grid: Grid, answered: TrialSet) -> int:
    """Copy the rows of one part; returns how many responses it has."""
    prefixes, n = Prefixes(study), 0
    for prefix in Rows(folder / PREFIXES, PromptPrefix):
        prefixes.add(prefix)
    with Rows(study / RESPONSES, Response) as rows:
        for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
            n += 1
            if answered.add(row.index):
                rows.append(row)
    return n


def _sizes(grid: Grid, n: int) -> list[int]:
    """The number of trials in each of `n` parts."""
    sizes = [0] * n
    for index in grid.of_model(0):
        sizes[_part(grid, index, n) - 1] += 1
    return [size * len(grid.plan.models) for size in sizes]


def _part(grid: Grid, index: int, n: int) -> int:
    """The part, from 1 to `n`, of a trial: by a digest of the plan's seed and the cell, without the model."""
    cell = f"{grid.plan.seed}\0{index % grid.plan.n_per_model}".encode()
    return int.from_bytes(hashlib.blake2b(cell, digest_size=8).digest(), "big") % n + 1


def _refuse_mixed_numerics(study: Path, parts: list[Path], grid: Grid) -> None:
    for model in grid.plan.models:
        held: dict[str, Path] = {}
        for folder in (study, *parts):
            for run in run_records(folder):
                if run.model == model.id:
                    held.setdefault(run.base_numerics, folder)
        if len(held) > 1:
            (one, here), (other, there), *_ = held.items()
            raise NotComparable(
                f"'{model.name}' answered in {here} as '{one}' computes, and in {there} as '{other}': these "
                f"answers would not belong together. Remove {there}, and ask its trials again on a machine "
                "of the first kind, with its versions."
            )


_LOG = "worker.log"
_LAST_WORDS = 400  # characters of a lost worker's output in messages


# --- processes of this machine ---------------------------------------------------------------------
# A process is an executor of one, which breaks when its process dies. Its output goes nowhere but into the
# message about its loss. Ctrl-C and SIGTERM stop the driver, which ends its workers.


class LocalWorker:
    """A worker, as its driver holds it (workers.WorkerHandle).

    n: how many share its cores, and its GPUs (has_gpus). Variables that the user has set stay.
    """

    def __init__(self, setup: bytes, folder: Path, n: int, has_gpus: bool = True) -> None:
        self._log, variables = folder / _LOG, dict[str, str]()
        if "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(max(1, host.n_cores() // n))
        if has_gpus and (gpus := host.visible_gpus()):
            variables["CUDA_VISIBLE_DEVICES"] = gpus[(int(folder.name) - 1) % len(gpus)]
        spawn = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, spawn, _begin, (setup, str(folder)))
        self._first: Future[Status] | None = None
        others = set(multiprocessing.active_children())
        with _spawning(variables):
            self._first = self.poll(())  # an executor starts its process with the first call
        self._process = (set(multiprocessing.active_children()) - others).pop()

    def poll(self, given: Sequence[Lease | None]) -> Future[Status]:
        """Give trials to the worker; its state, when it changes."""
        first, self._first = self._first, None
        if first is not None and not given:
            return first
        try:
            return self._executor.submit(_poll, given)
        except RuntimeError as error:  # it died or was ended between two calls
            lost: Future[Status] = Future()
            lost.set_exception(error)
            return lost

    def kill(self) -> None:
        """End the process and all that it started."""
        pid = self._process.pid
        if sys.platform != "win32" and pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has not begun its group, or has ended
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._executor.shutdown()

    def why_lost(self, error: Exception) -> str:  # noqa: ARG002
        """Why the process ended: its signal or exit code, and the last line that it wrote."""
        self.kill()
        code = self._process.exitcode or 0
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        with suppress(OSError):
            if lines := self._log.read_text("utf-8", "replace").strip().splitlines():
                return f"{ended}; its last words: {lines[-1][-_LAST_WORDS:]}"
        return ended


@contextmanager
def _spawning(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, a new process gets these variables, runs no script of the user first, and hears no Ctrl-C."""
    main, before = sys.modules["__main__"], {name: os.environ.get(name) for name in variables}
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(variables)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        sys.modules["__main__"] = main
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM stops as Ctrl-C does, so that workers and their semaphores end with this process."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_worker: StudyWorker  # of this process, once it has begun


def _begin(setup: bytes, folder: str) -> None:
    """Begin the worker of this process."""
    global _worker
    if sys.platform != "win32":
        os.setsid()  # Ctrl-C is for the driver; and it is a group that can be ended whole
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # drops one that came before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    # What a library prints goes into the message about its loss, and nothing here reads a terminal.
    Path(folder).mkdir(parents=True, exist_ok=True)
    log = os.open(Path(folder, _LOG), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for stream, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(handle, stream)
    _worker = StudyWorker(setup, folder)


def _poll(given: Sequence[Lease | None]) -> Status:
    return _worker.poll(given)


def _end_with_driver() -> None:
    """End this process, and what it started, once there is no driver to answer to."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


# --- actors of Ray ---------------------------------------------------------------------------------
# Ray moves code and values with pickle, and anyone who reaches its ports can run code. So a cluster that does
# not ask for a token is refused. Ray finds the actor's class by its name: heredity is on every machine. Usage
# statistics of Ray are off. A cluster that heredity starts listens on the loopback address, has a token of
# its own, and ends with the driver.

PREFIX = "ray"
_START_SECONDS = "90"  # until a cluster of our own answers; Ray's 20 are too few on a busy machine
_OBJECT_STORE = 100 << 20  # bytes of a cluster of our own: messages are small
_ADVICE = {  # by whether the cluster was running
    False: "Its logs are in /tmp/ray/session_latest/logs. --workers without --on needs no cluster.",
    True: "Run heredity on a machine of the cluster, with the cluster's token in RAY_AUTH_TOKEN or"
    " RAY_AUTH_TOKEN_PATH.",
}
_TOKEN_SECONDS = 180.0
# Asks the cluster at argv[1] without a token. An answer means that it asks nobody for one.
_WITHOUT_TOKEN = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_get(b"heredity", None, timeout=10)
except AuthenticationError:
    print("refused")
else:
    print("answered")
"""


def address_of(on: str) -> str:
    """The HOST:PORT in "ray://HOST:PORT"; "" for "ray", a cluster of our own. Raises UsageError."""
    if on == PREFIX:
        return ""
    scheme, _, address = on.partition("://")
    name, _, port = address.rpartition(":")
    if scheme != PREFIX or not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"Workers do not run on '{on[:80]}'. Write ray, or ray://HOST:PORT with the address that "
            "`ray start --address` takes."
        )
    return address


@dataclass(frozen=True)
class RayWorker:
    """A worker as its driver holds it (workers.WorkerHandle)."""

    poll: Callable[[Sequence[Lease | None]], Future[Status]]
    kill: Callable[[], None]

    def why_lost(self, error: Exception) -> str:
        """Ray's reason for its end."""
        return first_line(error)


class RayPlace:
    """A Ray cluster, and the workers that are started on it.

    address    HOST:PORT of a running cluster that asks for a token; "" starts one on this machine
    n          workers that share its processors
    has_weights  whether models are computed: each worker then gets a GPU, if the cluster has any
    """

    def __init__(self, address: str, n: int, has_weights: bool) -> None:
        self.name = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        _refuse_connected()
        self._environment = _Environment()
        self._environment.settle(address)  # before Ray is imported: it reads this once
        try:
            import ray
        except ImportError as error:
            self._environment.restore()
            raise Unavailable(
                f"Workers on Ray need ray, which is not installed ({error}). {how_to_install('ray')}",
                code="package-missing",
            ) from error
        self._ray = ray
        try:
            self._connect(address, n)
        except BaseException:
            self._environment.restore()
            _read_settings_again()
            raise
        resources: dict[str, float] = ray.cluster_resources()
        gpus = 1 if has_weights and resources.get("GPU", 0) >= 1 else 0
        cpus = max(1, int(resources.get("CPU", n) // n))
        self._remote = ray.remote(StudyWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)

    def _connect(self, address: str, n: int) -> None:
        """Connect this process to the cluster, or start one. Raises Unavailable or Refused."""
        ray = self._ray
        _read_settings_again()
        try:
            if address:
                require_token(address)
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            else:
                ray.init(
                    address="local",  # without it, Ray connects to any cluster of this machine
                    num_cpus=max(n, host.n_cores()), include_dashboard=False, log_to_driver=False,
                    configure_logging=False, object_store_memory=_OBJECT_STORE,
                )  # fmt: skip
        except HeredityError:
            raise
        except Exception as error:
            raise Unavailable(
                f"{self.name} cannot be used: {first_line(error).rstrip('.')}. {_ADVICE[bool(address)]}"
            ) from error

    def start(self, setup: bytes, folder: Path) -> RayWorker:
        """Start a worker, once the cluster has room for it."""
        handle, ray = self._remote.remote(setup, str(folder)), self._ray
        return RayWorker(lambda given: handle.poll.remote(given).future(), lambda: ray.kill(handle))

    def close(self) -> None:
        """End all workers, and a cluster of our own."""
        self._ray.shutdown()
        self._environment.restore()
        _read_settings_again()


SETTINGS = (
    "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_NUM_REDIS_GET_RETRIES", "PYTHONBREAKPOINT",
)  # fmt: skip


class _Environment:
    """The variables of Ray in this process and in those that it starts, and what they were before."""

    def __init__(self) -> None:
        self._before = {name: os.environ.get(name) for name in SETTINGS}

    def settle(self, address: str) -> None:
        """Ask for a token, and turn usage statistics off. A cluster of our own gets a new token."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        if not address:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            os.environ.pop("RAY_ADDRESS", None)
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch for loopback, on Linux too
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", _START_SECONDS)

    def restore(self) -> None:
        """Set the variables as they were."""
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _refuse_connected() -> None:
    """Raise Unavailable if this process uses a cluster already: Ray connects a process to one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise Unavailable(
            "This process is connected to a Ray cluster already. Call ray.shutdown() first: heredity connects"
            " to the cluster of --on by itself."
        )


def _read_settings_again() -> None:
    """Let Ray read mode and token again: it keeps those of its import, or of an earlier cluster."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def require_token(address: str) -> None:
    """Raise Refused if the cluster answers somebody without a token, Unavailable if nobody answers."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _WITHOUT_TOKEN, address],
            env=environment, capture_output=True, text=True, timeout=_TOKEN_SECONDS, check=False,
        )  # fmt: skip
        answer = asked.stdout.strip()
    except subprocess.TimeoutExpired:
        answer = ""
    if answer == "answered":
        raise Refused(
            f"The Ray cluster at {address} asks for no token, so anyone who reaches its ports can run code "
            "on its machines. Start it with RAY_AUTH_MODE=token and a token on every machine."
        )
    if answer != "refused":
        raise Unavailable(
            f"No Ray cluster answers at {address}. Give the address that `ray start --address` takes."
        )


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
        chosen = cls(workers) if isinstance(workers, int) else workers
        if chosen is not None and has_own_loader and not chosen.loader and chosen.calls is None:
            raise UsageError(
                "Workers load the models themselves: an `engine_loader` stays in its process. Name it "
                'instead: Workers(n, loader="package.module:function").'
            )
        for each in plan.plugins or () if chosen is not None else ():
            if (its := registry.outside(each.folder, each.name)) and its.plugin is not None:
                raise UsageError(
                    f"Workers load plug-ins by their names: the object {each.name} stays in its process. "
                    "Give it an entry point in a package, or leave --workers out."
                )
        return chosen

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
        state.leases = []

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
        for search in (each for each in state.searches if each.key not in self._searched):
            self._searched.add(search.key)
            with Rows(self._recorder.folder / FOUND, SearchResult) as searches:
                searches.append(search)
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
