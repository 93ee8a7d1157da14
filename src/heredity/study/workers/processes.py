"""Workers as processes of this machine. Frames go through pipes, each after its length in four bytes.

Promises: a worker ends with its driver, however that ends, and takes its own processes with it. Its output
goes nowhere but into the message about its loss. Ctrl-C reaches the driver only, which ends its workers.
Leaves to others: answering (worker.py).
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, Queue, SimpleQueue
from typing import IO

from heredity.core import host
from heredity.core.errors import Damaged
from heredity.study.workers.messages import MOST_BYTES
from heredity.study.workers.pool import Arrived

_LENGTH = struct.Struct(">I")
_MOST_WAITING = 1024  # frames that the driver has not taken: then the workers wait
_LAST_WORDS = 400  # characters of a lost worker's output in messages
_MAIN = "from heredity.study.workers.processes import main; main()"


class ProcessPool:
    """Starts worker processes on this machine (pool.Pool).

    n         how many share its cores
    has_gpus  they share its GPUs, too
    """

    place = "this machine"

    def __init__(self, n: int, has_gpus: bool = True) -> None:
        self._n, self._has_gpus, self._n_started = n, has_gpus, 0
        self._processes: dict[int, _WorkerProcess] = {}
        self._arrived: Queue[Arrived] = Queue(_MOST_WAITING)

    def start(self) -> int:
        """Start a worker and return its number."""
        self._n_started += 1
        environment = os.environ | shares(self._n, self._n_started - 1, self._has_gpus)
        self._processes[self._n_started] = _WorkerProcess(self._n_started, environment, self._arrived)
        return self._n_started

    def send(self, worker: int, frame: bytes) -> None:
        """Send a frame; one to a lost worker is dropped."""
        if worker in self._processes:
            self._processes[worker].send(frame)

    def receive(self, seconds: float) -> Arrived | None:
        """The next frame or loss of any worker; None after this time."""
        with suppress(Empty):
            arrived = self._arrived.get(timeout=seconds) if seconds > 0 else self._arrived.get_nowait()
            if arrived.frame is None:
                self._processes.pop(arrived.worker).end()
            return arrived
        return None

    def kill(self, worker: int) -> None:
        """End a worker at once; its loss arrives."""
        if worker in self._processes:
            self._processes[worker].kill()

    def close(self) -> None:
        """End all workers. No process stays."""
        for process in self._processes.values():
            process.kill()
        # Their threads may wait for room in the queue.
        while any(process.is_read for process in self._processes.values()):
            self.receive(0.05)
        for process in self._processes.values():
            process.end()
        self._processes.clear()


def shares(n: int, number: int, has_gpus: bool) -> dict[str, str]:
    """Environment variables that give worker `number` of `n` its share of cores and GPUs.

    Variables that the user has set stay.
    """
    found: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, host.n_cores() // n))
    if has_gpus and (gpus := host.visible_gpus()):
        found["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return found


class _WorkerProcess:
    """One process, and the thread that reads its frames."""

    def __init__(self, number: int, environment: Mapping[str, str], arrived: Queue[Arrived]) -> None:
        self._number, self._arrived = number, arrived
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in end)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver; and it is a group that can be ended whole
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_read(self) -> bool:
        """Whether its frames are still being read."""
        return self._reader.is_alive()

    def send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is lost, which arrives by itself
            write_frame(self._process.stdin, frame)

    def kill(self) -> None:
        """End the process and all that it started."""
        if self._process.returncode is not None:
            return
        if sys.platform == "win32":
            self._process.kill()
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Wait for the end of a killed process, and close its pipes."""
        self._reader.join()  # which has waited for the process
        for pipe in (self._process.stdin, self._process.stdout, self._output):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        why = ""
        try:
            while (frame := read_frame(self._process.stdout)) is not None:
                self._arrived.put(Arrived(self._number, frame))
        except (OSError, Damaged) as error:
            why = str(error)
        # It ends, or has ended. Before it is waited for, its number cannot be another group's.
        self.kill()
        code = self._process.wait()
        self._arrived.put(Arrived(self._number, None, why or self._explained(code)))

    def _explained(self, code: int) -> str:
        """Why the process ended: its signal or exit code, and the last line that it wrote."""
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4 * _LAST_WORDS))
        lines = self._output.read().decode("utf-8", "replace").strip().splitlines()
        return f"{ended}; its last words: {lines[-1][-_LAST_WORDS:]}" if lines else ended


def write_frame(pipe: IO[bytes], frame: bytes) -> None:
    """Write a frame behind its length."""
    pipe.write(_LENGTH.pack(len(frame)) + frame)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the pipe, in the middle of a frame too. Raises Damaged."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (n,) = _LENGTH.unpack(head)
    if n > MOST_BYTES:
        raise Damaged(f"A worker's message has {n:,} bytes, more than {MOST_BYTES:,}.", code="worker-message")
    frame = pipe.read(n)
    return frame if len(frame) == n else None


# --- in the worker's process -----------------------------------------------------------------------


class PipeChannel:
    """The worker's side of the pipes (pool.Channel). When the driver is gone, the worker ends."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._frames: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self, wait: bool) -> bytes | None:
        with suppress(Empty):
            return self._frames.get(block=wait)
        return None

    def send(self, frame: bytes) -> None:
        try:
            write_frame(self._outgoing, frame)
        except OSError:
            _end_group()

    def _read(self) -> None:
        while (frame := read_frame(self._incoming)) is not None:
            self._frames.put(frame)
        _end_group()


def _end_group() -> None:
    """End this process and what it started: there is no driver to answer to."""
    if sys.platform != "win32" and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run a worker on standard input and output."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the frames, and nothing here reads a terminal.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    from heredity.study.workers.worker import serve

    code = 1
    try:
        serve(PipeChannel(incoming, outgoing))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # At once: threads of engines (an answer that never came) must not keep the process.
        os._exit(code)
