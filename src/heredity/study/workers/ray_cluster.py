"""Workers as actors of a Ray cluster. Frames are the arguments and results of an actor's methods.

Ray moves code and values with pickle, and anyone who reaches its ports can run code. So a cluster that does
not ask for a token is refused. heredity sends only frames of bytes (messages.py). Ray finds the actor's class
by its name, because heredity is installed on every machine.

Promises: usage statistics are off. A cluster that heredity starts listens on the loopback address. It has a
token of its own, and ends with the driver.
Leaves to others: placing and restarting machines (Ray), and answering (worker.py).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue, SimpleQueue

from heredity.core import host
from heredity.core.errors import HeredityError, Refused, Unavailable, UsageError, first_line, how_to_install
from heredity.study.workers.pool import Arrived
from heredity.study.workers.worker import serve

PREFIX = "ray"
_AT_ONCE = 64  # frames that a call of an actor returns
_WAIT_SECONDS = 2.0  # of a call that has no frame to return
_MOST_WAITING = 1024  # frames that the driver has not taken
_START_SECONDS = "90"  # until a cluster of our own answers; Ray's 20 are too few on a busy machine
_OBJECT_STORE = 100 << 20  # bytes of a cluster of our own: frames are small
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
            "`ray start --address` takes.",
            code="workers-place",
        )
    return address


class FrameQueue:
    """The worker's side within an actor (pool.Channel): frames that came, and frames that go."""

    def __init__(self) -> None:
        self.incoming: SimpleQueue[bytes] = SimpleQueue()
        self.outgoing: Queue[bytes] = Queue(_MOST_WAITING)

    def receive(self, wait: bool) -> bytes | None:
        with suppress(Empty):
            return self.incoming.get(block=wait)
        return None

    def send(self, frame: bytes) -> None:
        self.outgoing.put(frame)


class RayWorker:
    """The actor: a thread that answers, and methods that carry its frames."""

    def __init__(self) -> None:
        self._frames, self._has_ended = FrameQueue(), False
        threading.Thread(target=self._serve, daemon=True).start()

    def put(self, frame: bytes) -> None:
        """Take a frame of the driver."""
        self._frames.incoming.put(frame)

    def take(self) -> tuple[list[bytes], bool]:
        """Frames for the driver, and whether they were the last."""
        has_ended = self._has_ended  # first: what it sent before its end is in the queue
        found: list[bytes] = []
        with suppress(Empty):
            found.append(self._frames.outgoing.get(timeout=0 if has_ended else _WAIT_SECONDS))
            while len(found) < _AT_ONCE:
                found.append(self._frames.outgoing.get_nowait())
        return found, has_ended and self._frames.outgoing.empty()

    def _serve(self) -> None:
        try:
            serve(self._frames)
        finally:
            self._has_ended = True


@dataclass
class _Actor:
    """An actor, as the driver holds it. `call` does a method and waits for its result."""

    call: Callable[..., tuple[list[bytes], bool]]
    put: Callable[[bytes], object]
    kill: Callable[[], object]
    is_lost: bool = False


class RayPool:
    """Starts workers on a Ray cluster (pool.Pool).

    address    HOST:PORT of a running cluster that asks for a token; "" starts one on this machine
    n          workers that share its processors
    has_weights  whether models are computed: each worker then gets a GPU, if the cluster has any
    """

    def __init__(self, address: str, n: int, has_weights: bool) -> None:
        self.place = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        self._arrived: Queue[Arrived] = Queue(_MOST_WAITING)
        self._actors: dict[int, _Actor] = {}
        self._n_started, self._is_closed = 0, False
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
        found = ray.cluster_resources()
        gpus = 1 if has_weights and found.get("GPU", 0) >= 1 else 0
        cpus = max(1, int(found.get("CPU", n) // n))
        # Three calls at a time: one that waits for frames, and one that brings them, never wait for another.
        self._remote = ray.remote(RayWorker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=3
        )

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
                f"{self.place} cannot be used: {first_line(error).rstrip('.')}. {_ADVICE[bool(address)]}",
                code="cluster-unreachable",
            ) from error

    def start(self) -> int:
        """Start a worker and return its number. It waits until the cluster has room for it."""
        self._n_started += 1
        number, ray, handle = self._n_started, self._ray, self._remote.remote()
        actor = _Actor(
            call=lambda: ray.get(handle.take.remote()),
            put=handle.put.remote,
            kill=lambda: ray.kill(handle),
        )
        self._actors[number] = actor
        threading.Thread(target=self._read, args=(number, actor), daemon=True).start()
        return number

    def send(self, worker: int, frame: bytes) -> None:
        """Send a frame; one to a lost worker is dropped."""
        if (actor := self._actors.get(worker)) is not None and not actor.is_lost:
            with suppress(self._ray.exceptions.RayError):
                actor.put(frame)

    def receive(self, seconds: float) -> Arrived | None:
        """The next frame or loss of any worker; None after this time."""
        with suppress(Empty):
            arrived = self._arrived.get(timeout=seconds) if seconds > 0 else self._arrived.get_nowait()
            if arrived.frame is None:
                del self._actors[arrived.worker]
            return arrived
        return None

    def kill(self, worker: int) -> None:
        """End a worker at once; its loss arrives."""
        if worker in self._actors:
            self._actors[worker].kill()

    def close(self) -> None:
        """End all workers, and a cluster of our own."""
        self._is_closed = True
        for actor in self._actors.values():
            with suppress(self._ray.exceptions.RayError):
                actor.kill()
        self._ray.shutdown()
        self._environment.restore()
        _read_settings_again()

    def _read(self, number: int, actor: _Actor) -> None:
        why = ""
        try:
            has_ended = False
            while not has_ended:
                frames, has_ended = actor.call()
                for frame in frames:
                    self._put(Arrived(number, frame))
            actor.kill()
        except Exception as error:  # of Ray, or because the cluster is shut down
            why = first_line(error)
        actor.is_lost = True
        self._put(Arrived(number, None, why or "it has ended"))

    def _put(self, arrived: Arrived) -> None:
        while not self._is_closed:
            try:
                self._arrived.put(arrived, timeout=0.5)
                return
            except Full:  # the driver is slower than its workers
                continue


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
            " to the cluster of --on by itself.",
            code="cluster-connected",
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
            "on its machines. Start it with RAY_AUTH_MODE=token and a token on every machine.",
            code="cluster-without-token",
        )
    if answer != "refused":
        raise Unavailable(
            f"No Ray cluster answers at {address}. Give the address that `ray start --address` takes.",
            code="cluster-unreachable",
        )
