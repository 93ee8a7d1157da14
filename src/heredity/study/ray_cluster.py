"""Workers as actors of a Ray cluster.

Ray moves code and values with pickle, and anyone who reaches its ports can run code. So a cluster that does
not ask for a token is refused. Ray finds the actor's class by its name: heredity is on every machine.

Promises: usage statistics are off. A cluster that heredity starts listens on the loopback address. It has a
token of its own, and ends with the driver.
Leaves to others: placing and restarting machines (Ray), and asking (worker.py).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from heredity.core import host
from heredity.core.errors import HeredityError, Refused, Unavailable, UsageError, first_line, how_to_install
from heredity.study.worker import Lease, Status, StudyWorker

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
