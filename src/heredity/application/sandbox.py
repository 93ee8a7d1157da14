"""The process of some tools, which is ended if it takes too long or returns too much, and its pipe.

    python -m heredity.application.sandbox COMMAND ARGUMENT...    a command that ends with its parent (Linux)

Promises: every call has an answer; a tool that hangs, crashes, exits or floods its pipe gives an error code.
The prints of a tool reach neither the pipe nor the terminal. On Linux the process ends with its
parent, also in the middle of a call, and so does all that it started.
Leaves to others: the tools in it (functions.py, servers.py), and the record of their results (toolbox.py). A
process does not confine its tools: they have the rights of the user.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import Popen
from threading import Lock, RLock, Thread, Timer
from typing import IO, NoReturn

import msgspec

from heredity.core.errors import BadArgument, ToolFailure
from heredity.core.files import Closable
from heredity.core.records import Record, encode
from heredity.core.sanitize import clean_text

TOOL_SECONDS = 30.0
RESULT_CHARACTERS = 16_000
CALLS_AT_ONCE = 8


class ConversationLimits(Record, frozen=True, omit_defaults=True):
    """The limits of one conversation; None: no limit.

    tokens   of all prompts and answers together, as each request counts its whole prompt again
    seconds  from the first request on. In a study many conversations share an engine and each waits for the
             others, so that this depends on the machine

    Of one call of a tool that runs: tool_seconds, by default 30, and result_characters, by default 16,000.
    calls_at_once: calls that run at once, of all conversations of a study; by default 8.
    """

    tokens: int | None = None
    seconds: float | None = None
    tool_seconds: float | None = None
    result_characters: int | None = None
    calls_at_once: int | None = None

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise BadArgument(f"limits.{key} must be above 0, not {value}", key=f"limits.{key}")
        for key in ("seconds", "tool_seconds"):  # 5 is 5.0, in a digest too
            if isinstance(value := getattr(self, key), int):
                msgspec.structs.force_setattr(self, key, float(value))

    @property
    def seconds_of_call(self) -> float:
        """The time for one call of a tool that runs."""
        return TOOL_SECONDS if self.tool_seconds is None else self.tool_seconds

    @property
    def characters_of_result(self) -> int:
        """The size of the largest result of a tool that runs."""
        return RESULT_CHARACTERS if self.result_characters is None else self.result_characters

    @property
    def most_calls(self) -> int:
        """The number of calls that run at once."""
        return CALLS_AT_ONCE if self.calls_at_once is None else self.calls_at_once


LENGTH = struct.Struct(">Q")


class Offered(Record, frozen=True):
    """A tool as its process describes it. `code`: a hash of the file it is from; "" for none."""

    name: str
    description: str
    schema: dict[str, object]
    code: str = ""


class Opened(Record, frozen=True, tag=True):
    """The first message of the process: its tools."""

    tools: tuple[Offered, ...]
    identity: str = ""  # of a server: its own name and version


class NotOpened(Record, frozen=True, tag=True):
    """The first message of a process that offers nothing, and why."""

    text: str


class Call(Record, frozen=True):
    """A call to run. Its answer has the same number."""

    tool: str
    arguments: dict[str, object]
    number: int = 0


class Answer(Record, frozen=True, tag=True):
    """The result of a call, or its error, in words for the model."""

    text: str
    error_code: str = ""
    number: int = 0


def send(pipe: IO[bytes], data: bytes) -> None:
    """Write one frame."""
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes], most: int) -> bytes:
    """Read one frame. Raises EOFError if the other side is gone, OverflowError over `most` bytes."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (n_bytes,) = LENGTH.unpack(head)
    if n_bytes > most:
        raise OverflowError
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


START_SECONDS = 120.0  # to start, import and list
_MAX_SWEEPS = 100
MAX_LISTED = 4_000_000  # bytes of a description of all tools
_PACKAGE_ROOT = Path(__file__).parents[2]


class ToolProcess(Closable):
    """Runs calls one after the other. It starts with the first call, and again after it was ended.

    arguments: the module of this folder that runs in it, and its settings. seconds: for one call. most:
    characters of one result.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: str = "",
        seconds: float = TOOL_SECONDS,
        most: int = RESULT_CHARACTERS,
    ) -> None:
        self._arguments, self._folder = list(arguments), folder
        self._seconds, self._most = seconds, most
        self._process: subprocess.Popen[bytes] | None = None
        self._is_late = self._is_stopped = False
        self.opened: Opened | None = None

    def open(self) -> Opened:
        """Start the process, if it is not running, and return what it offers. Raises ToolFailure."""
        if self._is_stopped:
            raise ToolFailure("the process of the tools was stopped")
        if self._process is not None and self.opened is not None:
            return self.opened
        self._start()
        try:
            first = msgspec.json.decode(self._receive(START_SECONDS, MAX_LISTED), type=Opened | NotOpened)
        except (EOFError, OverflowError, msgspec.DecodeError) as error:
            is_late = self._is_late
            self.close()
            what = f"did not start within {START_SECONDS:g} s" if is_late else "died as it started"
            if isinstance(error, OverflowError):
                what = f"describes its tools in more than {MAX_LISTED:,} bytes"
            raise ToolFailure(f"the process of the tools {what}") from None
        if isinstance(first, NotOpened):
            self.close()
            raise ToolFailure(first.text)
        self.opened = first
        return first

    def call(self, call: Call) -> Answer:
        """Run a call. Raises ToolFailure only if the process cannot start."""
        self.open()
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            send(process.stdin, encode(call))
            answer = msgspec.json.decode(self._receive(self._seconds, self._largest), type=Answer)
        except (OSError, EOFError, OverflowError, msgspec.DecodeError) as error:
            is_late = self._is_late
            self.close()
            if is_late:
                return late(self._seconds)
            if isinstance(error, OverflowError):
                return too_large(self._most)
            return died()
        return self._checked(answer)

    def _checked(self, answer: Answer) -> Answer:
        """An answer of the process as the model may read it. Raises ToolFailure if the tools changed."""
        if answer.error_code == "tool-changed":
            self.refuse_changed(answer.text)
        if answer.error_code == "tool-died":
            self.close()  # an MCP server is gone, and what talked to it is of no use
        text = clean_text(answer.text)
        return too_large(self._most) if len(text) > self._most else msgspec.structs.replace(answer, text=text)

    @property
    def _largest(self) -> int:
        """The most bytes of an answer."""
        return 8 * self._most + 10_000

    def refuse_changed(self, what: str) -> NoReturn:
        """End the process, whose tools are not those that the application has. Raises ToolFailure."""
        self.close()
        raise ToolFailure(f"{what}: its results would not belong together. Restore it, or make another study")

    def stop(self) -> None:
        """End the process from another thread, for good. A call that runs has died then."""
        self._is_stopped = True
        if (process := self._process) is not None:
            _kill(process)

    def close(self) -> None:
        """End the process and all that it started."""
        process, self._process, self.opened = self._process, None, None
        if process is None:
            return
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()

    def _start(self) -> None:
        self.close()
        # A function is found there as it is here.
        paths = dict.fromkeys(map(os.path.abspath, [str(_PACKAGE_ROOT), *sys.path]))
        module, *settings = self._arguments
        # -P: the tools' folder must not stand before the standard library.
        command = [sys.executable, "-P", "-m", f"{__package__}.{module}", str(self._most), *settings]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._folder or None,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
        except OSError as error:
            raise ToolFailure(f"the process of the tools does not start: {error.strerror or error}") from None
        if self._is_stopped:  # meanwhile
            _kill(self._process)

    def _receive(self, seconds: float, most: int) -> bytes:
        process = self._process
        assert process is not None and process.stdout is not None
        self._is_late = False
        timer = Timer(seconds, self._end, [process])
        timer.daemon = True
        timer.start()
        try:
            return receive(process.stdout, most)
        finally:
            timer.cancel()
            timer.join()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._is_late = True
        _kill(process)


def late(seconds: float) -> Answer:
    """The answer of a call that took too long."""
    return Answer(f"the tool took more than {seconds:g} s", "tool-timeout")


def died() -> Answer:
    """The answer of a call whose process ended."""
    return Answer("the tool's process died", "tool-died")


def too_large(most: int) -> Answer:
    """The answer of a call whose result is too large."""
    return Answer(f"the result has more than {most:,} characters", "result-too-large")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it started, which share its group or descend from it."""
    if process.poll() is None and sys.platform != "win32":
        with suppress(OSError):
            os.kill(process.pid, signal.SIGSTOP)  # it must not answer that its server has died
        end_descendants(process.pid)
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def end_descendants(pid: int) -> None:
    """Kill all that a process has started, also what left its group. Without /proc it kills nothing."""
    for _ in range(_MAX_SWEEPS):  # what is killed may just have started another one
        parents = dict(filter(None, map(_parent_of, Path("/proc").glob("[0-9]*/stat"))))
        ended = {pid}
        while more := {each for each, parent in parents.items() if parent in ended} - ended:
            ended |= more
        if ended == {pid}:
            return
        for each in ended - {pid}:
            with suppress(OSError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.002)


def _parent_of(stat: Path) -> tuple[int, int] | None:
    """A process that runs, and its parent."""
    try:
        state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):  # it has just ended
        return None
    return None if state in b"ZX" else (int(stat.parent.name), int(parent))


class SharedToolProcess(ToolProcess):
    """Runs the calls of several threads at once: the process of a server that conversations share.

    Each call has its own time. A late one does not end the others, unless the process answered none since it
    began. The server hangs as a whole then, and is ended. The next call starts it again.
    """

    def __init__(self, arguments: Sequence[str], folder: str, seconds: float, most: int) -> None:
        super().__init__(arguments, folder, seconds, most)
        self._lock = RLock()
        self._waiting: dict[int, tuple[Popen[bytes], SimpleQueue[Answer]]] = {}  # by the number of the call
        self._read: Popen[bytes] | None = None  # whose answers are read
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
            with self._lock:
                self._waiting.pop(number, None)
                if self._n_answered == n_answered:
                    self._end_it(process)
            return late(self._seconds)
        if answer.error_code == "tool-died":
            self._end_it(process)
            return msgspec.structs.replace(answer, number=0)
        return msgspec.structs.replace(self._checked(answer), number=0)

    def _end_it(self, process: Popen[bytes]) -> None:
        """End this process, unless another one runs by now."""
        with self._lock:
            if self._process is process:
                self.close()

    def _receive_all(self, process: Popen[bytes]) -> None:
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

    def _fail(self, process: Popen[bytes]) -> None:
        """Answer all calls of a process that ended."""
        with self._lock:
            failed = [number for number, (each, _) in self._waiting.items() if each is process]
            queues = [self._waiting.pop(number)[1] for number in failed]
        for answers in queues:
            answers.put(died())


_MAX_CALL = 10_000_000  # bytes of a call
_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1
_MAX_ERROR = 500  # characters of what a tool raises


def serve(
    start: Callable[[], Opened | NotOpened], run: Callable[[Call], Answer], most: int, at_once: int = 1
) -> None:
    """Say what is offered, then answer calls until the pipe closes, several of them at once."""
    if sys.platform == "linux":  # what a tool detaches stays a descendant of this process
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    calls = SimpleQueue[bytes]()
    Thread(target=_read, args=(source, calls), daemon=True).start()
    send(target, encode(start()))
    writing = Lock()

    def work() -> None:
        while True:
            call = msgspec.json.decode(calls.get(), type=Call)
            answer = _answer(run, call)
            answer = too_large(most) if len(answer.text) > most else answer
            with writing:
                send(target, encode(msgspec.structs.replace(answer, number=call.number)))

    for _ in range(at_once - 1):
        Thread(target=work, daemon=True).start()
    work()


def raised(error: BaseException) -> str:
    """The words of an error that a tool raised."""
    return clean_text(f"{type(error).__name__}: {error}")[:_MAX_ERROR]


def _read(source: IO[bytes], calls: SimpleQueue[bytes]) -> None:
    while True:
        try:
            calls.put(receive(source, _MAX_CALL))
        except (EOFError, OverflowError, OSError):
            end_descendants(os.getpid())
            os._exit(0)  # the study is gone, and a tool may hang


def _answer(run: Callable[[Call], Answer], call: Call) -> Answer:
    try:
        answer = run(call)
        return Answer(clean_text(answer.text), answer.error_code)
    except BaseException as error:  # SystemExit too: a tool that exits must not end the others
        return Answer(raised(error), "tool-raised")


def settings() -> tuple[int, list[str]]:
    """The characters of a result, and the other arguments of this process."""
    return int(sys.argv[1]), sys.argv[2:]


def become(command: list[str]) -> None:
    """Run a command in place of this process, which ends with its parent: no server outlives its study."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(ImportError, OSError, ValueError):  # the client's own limits are not the server's
        import resource

        for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
            most = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most, most))
    os.execvp(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1:])
