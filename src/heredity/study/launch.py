"""Start workers: as processes of this machine, or as actors of a Ray cluster.

A process is an executor of one, which breaks when its process dies. Ray moves code and values with pickle,
and anyone who reaches its ports can run code. So a cluster that does not ask for a token is refused. Ray
finds the actor's class by its name: heredity is on every machine.

Promises: a worker ends with its driver, however that ends, and takes its own processes with it. The output of
a process goes nowhere but into the message about its loss. Ctrl-C and SIGTERM stop the driver, which ends its
workers. Usage statistics of Ray are off. A cluster that heredity starts listens on the loopback address. It
has a token of its own, and ends with the driver.
Leaves to others: asking (worker.py), placing and restarting machines (Ray).
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from heredity.core import host
from heredity.core.errors import HeredityError, Refused, Unavailable, UsageError, first_line, how_to_install

if TYPE_CHECKING:  # a new process imports this file first, and begins its session before it loads the rest
    from heredity.study.worker import Lease, Status, StudyWorker

_LOG = "worker.log"
_LAST_WORDS = 400  # characters of a lost worker's output in messages


# --- processes of this machine ---------------------------------------------------------------------


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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_driver, daemon=True).start()
    # What a library prints goes into the message about its loss, and nothing here reads a terminal.
    Path(folder).mkdir(parents=True, exist_ok=True)
    log = os.open(Path(folder, _LOG), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for stream, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(handle, stream)
    from heredity.study.worker import StudyWorker

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
        from heredity.study.worker import StudyWorker

        found = ray.cluster_resources()
        gpus = 1 if has_weights and found.get("GPU", 0) >= 1 else 0
        cpus = max(1, int(found.get("CPU", n) // n))
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
