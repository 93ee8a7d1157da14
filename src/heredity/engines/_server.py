"""A server program of another environment: started, waited for, and ended with all that it started.

Promises: the program has a process group of its own, which is killed on close, on an exception while it
starts and at the end of this process; what it printed is kept in a file, and its end is told where it fails.
Leaves to others: what the server is asked. A kill -9 of heredity itself leaves the program running.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from heredity.errors import Unavailable

_GRACE_SECONDS = 10.0


class Server:
    """A started program that answers `health` (an address) with 200 once it is ready."""

    def __init__(
        self, command: Sequence[str], health: str, log: Path, seconds: float, environment: Mapping[str, str]
    ) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own: its workers end with it
                    env={**os.environ, **environment},
                )
            except OSError as error:
                raise Unavailable(f"{command[0]} does not start: {error.strerror}.") from error
        atexit.register(self.close)
        try:
            self._wait(health, seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the program, and of its group."""
        return self._process.pid

    def close(self) -> None:
        """End the whole group: politely, and after a while not."""
        atexit.unregister(self.close)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, kind)  # also where the program itself is gone
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)

    def _wait(self, health: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline:
                if (code := self._process.poll()) is not None:
                    raise Unavailable(f"The server ended with code {code} while it started: {self._tail()}")
                with suppress(httpx.HTTPError):
                    if client.get(health).status_code == 200:
                        return
                time.sleep(0.1)
        raise Unavailable(f"The server was not ready within {seconds:g} s: {self._tail()}")

    def _tail(self) -> str:
        text = self._log.read_bytes()[-4000:].decode("utf-8", "replace")
        last = " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
        return f"{last[-400:]} (all of it: {self._log})"


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
