"""A server program of another environment: started, awaited, and ended with all its child processes.

Promises: the program has a process group of its own. The group ends on close, on an exception during the
start, and with this process, even after kill -9. Its output is kept in a file of its own. An error reports
how the program ended, with the cause from its output.
Leaves to others: the requests to the server.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from heredity.core.errors import Unavailable

_GRACE_SECONDS = 10.0
_READ_BYTES = 1 << 20  # of the end of a log; the cause precedes the last line by many lines
# Waits for the end of its input, which comes with the end of this process, and then ends the group.
_WATCH = """
read -r _
kill -TERM "$1"
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" || break; sleep 1; done
kill -s KILL -- "-$1"
"""
# A logger's words in front of a line: "(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:9] ".
_LOGGED = re.compile(r"(?:\([^)]*\) )?(?:([A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
# The last line of an exception, or of an option parser.
_CAUSE = re.compile(r"(?:[\w.]*(?:Error|Exception)|[\w.]+: error): ")


class ServerProgram:
    """A started program that answers `health` (an address) with 200 once it is ready.

    log: the file for its output; another name next to it if another program uses that file.
    """

    def __init__(
        self, command: Sequence[str], health: str, log: Path, seconds: float, environment: Mapping[str, str]
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._held = _alone(log)
        self._watch: subprocess.Popen[bytes] | None = None
        with self._log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own, so that its workers end with it
                    env={**os.environ, **environment},
                )
            except OSError as error:
                self._held.release()
                raise Unavailable(f"{command[0]} does not start: {error.strerror}.") from error
        atexit.register(self.close)
        try:
            self._watch = _watch(self._process.pid)
            self._wait(health, seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The id of the program and of its group."""
        return self._process.pid

    def ended(self, seconds: float = 0.0) -> str:
        """Return how the program ended, "" while it runs. `seconds`: how long to wait for its end."""
        with suppress(subprocess.TimeoutExpired):
            return f"the server ended with code {self._process.wait(seconds)}: {self._tail()}"
        return ""

    def close(self) -> None:
        """End the whole group. The program gets some seconds to end its workers; then the group is killed."""
        atexit.unregister(self.close)
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        finally:  # a second Ctrl-C arrives here at once
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # even if the program itself has ended
            self._process.wait()
            if self._watch is not None:  # last: until here it guards against a sudden end of this process
                self._watch.kill()
                self._watch.communicate()
            self._held.release()

    def _wait(self, health: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline:
                if why := self.ended():
                    raise Unavailable(f"It does not start: {why}")
                with suppress(httpx.HTTPError):
                    if client.get(health).status_code == 200:
                        return
                time.sleep(0.1)
        raise Unavailable(f"The server was not ready within {seconds:g} s: {self._tail()}")

    def _tail(self) -> str:
        text = self._log.read_bytes()[-_READ_BYTES:].decode("utf-8", "replace")
        return f"{cause(text)} (all of it: {self._log})"


def cause(text: str) -> str:
    """Return the cause of a program's end from its log: the first logged error and the first exception.

    Later exceptions only repeat the first one. Without either, the last lines are returned.
    """
    logged, named, lines = [], [], []
    for each in text.splitlines():
        match = _LOGGED.match(each)
        if line := each[match.end() if match else 0 :].strip():
            lines.append(line[:200])
            if match and match[1] == "ERROR":
                logged.append(line[:200])
            if _CAUSE.match(line):
                named.append(line[:300])
    causes = list(dict.fromkeys([*logged[:1], *named[:1]]))
    return " / ".join(causes or lines[-3:])


def _alone(log: Path) -> tuple[Path, FileLock]:
    """Return the first of log, log-2, ... that no other program uses, and its lock. The file is new."""
    own, number = log, 1
    while True:
        held = FileLock(f"{own}.lock", timeout=0, thread_local=False)
        with suppress(Timeout):
            held.acquire()
            own.unlink(missing_ok=True)  # not emptied: a program may outlive a killed owner and still write
            return own, held
        number += 1
        own = log.with_stem(f"{log.stem}-{number}")


def _watch(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, "sh", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal must not reach it
    )


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
