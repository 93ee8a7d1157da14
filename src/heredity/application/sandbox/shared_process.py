"""The process of a server that all conversations share: it runs their calls at once.

Promises: each call has its own time. A late one does not end the others, unless the process answered none
since it began. The server hangs as a whole then, and is ended. The next call starts it again.
Leaves to others: the process itself (process.py), and running calls at once in it (child.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from queue import Empty, SimpleQueue
from subprocess import Popen
from threading import RLock, Thread

import msgspec

from heredity.application.sandbox.messages import Answer, Call, Opened, receive, send
from heredity.application.sandbox.process import ToolProcess, died, late
from heredity.core.records import encode

_Process = Popen[bytes]


class SharedToolProcess(ToolProcess):
    """Runs the calls of several threads at once."""

    def __init__(self, arguments: Sequence[str], folder: str, seconds: float, most: int) -> None:
        super().__init__(arguments, folder, seconds, most)
        self._lock = RLock()
        self._waiting: dict[int, tuple[_Process, SimpleQueue[Answer]]] = {}  # by the number of the call
        self._read: _Process | None = None  # whose answers are read
        self._n_called = self._n_answered = 0

    def open(self) -> Opened:
        """Start the process, if it is not running, and return what it offers. Raises ToolFailure."""
        with self._lock:
            return super().open()

    def close(self) -> None:
        """End the process and all that it started."""
        with self._lock:
            super().close()

    def call(self, call: Call) -> Answer:
        """Run a call. Raises ToolFailure only if the process cannot start."""
        answers = SimpleQueue[Answer]()
        with self._lock:
            self.open()
            process = self._process
            assert process is not None and process.stdin is not None
            if self._read is not process:
                self._read = process
                Thread(target=self._receive_all, args=(process,), daemon=True).start()
            self._n_called += 1
            number, n_answered = self._n_called, self._n_answered
            self._waiting[number] = process, answers
            try:
                send(process.stdin, encode(msgspec.structs.replace(call, number=number)))
            except OSError:
                self._fail(process)
        try:
            answer = answers.get(timeout=self._seconds)
        except Empty:
            return self._late(number, process, n_answered)
        if answer.error_code == "tool-died":
            self._end_it(process)
            return msgspec.structs.replace(answer, number=0)
        return msgspec.structs.replace(self._checked(answer), number=0)

    def _late(self, number: int, process: _Process, n_answered: int) -> Answer:
        """Give up a call, and the process too if it answered nothing meanwhile."""
        with self._lock:
            self._waiting.pop(number, None)
            if self._n_answered == n_answered:
                self._end_it(process)
        return late(self._seconds)

    def _end_it(self, process: _Process) -> None:
        """End this process, unless another one runs by now."""
        with self._lock:
            if self._process is process:
                self.close()

    def _receive_all(self, process: _Process) -> None:
        """Hand out the answers of a process until it ends."""
        assert process.stdout is not None
        try:
            while True:
                answer = msgspec.json.decode(receive(process.stdout, self._largest), type=Answer)
                with self._lock:
                    self._n_answered += 1
                    _, answers = self._waiting.pop(answer.number, (process, None))
                if answers is not None:
                    answers.put(answer)
        except (OSError, ValueError, EOFError, OverflowError, msgspec.DecodeError):
            self._fail(process)

    def _fail(self, process: _Process) -> None:
        """Answer all calls of a process that ended."""
        with self._lock:
            failed = [number for number, (each, _) in self._waiting.items() if each is process]
            queues = [self._waiting.pop(number)[1] for number in failed]
        for answers in queues:
            answers.put(died())
