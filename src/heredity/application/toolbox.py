"""The tools of an application that run, and the record of what they returned.

    with Toolbox(application, RecordedResults(path)) as toolbox:
        session = toolbox.session()         # of one conversation
        session.call(tool, arguments)       # a text for the model

The first result of a call is recorded, and served whenever the same call comes again. The next model, a
resumed study, and a replay that runs nothing get it, so that all meet one world.

Promises: a result is on disk before a model sees it. A call is a tool with its arguments; of a tool with a
state, also the calls of such tools before it. A call that cannot be answered fails its trial. An accident (a
timeout, a process that died) is shown to the model whose call it was, and to no other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Lock, Semaphore
from typing import Protocol
from weakref import WeakSet

from msgspec import UNSET, UnsetType

from heredity.application.functions import FunctionSource
from heredity.application.sandbox import Answer, Call, ConversationLimits, Offered, ToolProcess
from heredity.application.servers import McpServer, ServerSource, digest_listed
from heredity.application.spec import Application
from heredity.core.errors import ToolFailure, UsageError
from heredity.core.files import Closable, Rows
from heredity.core.records import SCHEMA, Record, Tool, ToolCall, ToolOutcome, digest
from heredity.core.sanitize import clean_call

PATIENCE = 0.1  # seconds: a call that has lasted so long is slow


class ToolSource(Protocol):
    """The origin of some tools that run."""

    @property
    def is_single(self) -> bool:
        """Whether conversations share one process, unless a tool has a state."""

    @property
    def limits(self) -> ConversationLimits:
        """The limits of its calls."""

    def process(self) -> ToolProcess:
        """A process for them, not started yet."""

    def open(self, process: ToolProcess) -> None:
        """Start a process of `process()`. Raises ToolFailure if what it offers has changed."""

    def name_of(self, tool: Tool) -> str:
        """The name by which the process knows a tool."""

    def identity(self, tool: Tool) -> Sequence[str]:
        """The parts of a tool, except its name, that its results depend on."""


def sources_of(
    tools: Sequence[Tool], servers: Sequence[McpServer], limits: ConversationLimits
) -> dict[str, ToolSource]:
    """The source of each tool that runs, by the tool's name."""
    functions = [tool for tool in tools if tool.function is not None]
    by_tool: dict[str, ToolSource] = {}
    for folder in dict.fromkeys(tool.home or "" for tool in functions):
        own = [tool for tool in functions if (tool.home or "") == folder]
        named = tuple((str(tool.function), tool.code or "") for tool in own)
        source = FunctionSource(folder, named, limits)
        by_tool.update((tool.name, source) for tool in own)
    for server in servers:
        own = [tool for tool in tools if tool.server == server.name]
        offered = [Offered(tool.name, tool.description, tool.schema or {}) for tool in own]
        listed = ServerSource(server, digest_listed(server.identity or "", offered), limits)
        by_tool.update((tool.name, listed) for tool in own)
    return by_tool


class ToolProcessPool(Closable):
    """Up to `most` processes of `make`. open: starts one. places: of all calls that may run at once.

    is_single: all calls run at once in one process, which can do that.
    """

    def __init__(
        self,
        make: Callable[[], ToolProcess],
        open: Callable[[ToolProcess], None],
        most: int,
        places: Semaphore,
        is_single: bool = False,
    ) -> None:
        self._make, self._open, self._most, self._places = make, open, most, places
        self._is_single, self._opening = is_single, Lock()
        self._all: list[ToolProcess] = []
        self._free: list[ToolProcess] = []
        self._since: dict[ToolProcess, float] = {}  # when the call of a process began; inf: not yet
        self._changed = Condition()

    @contextmanager
    def process(self) -> Iterator[ToolProcess]:
        """A process for one call, started. Raises ToolFailure."""
        if self._is_single:
            with self._places:
                with self._opening:
                    self._all = self._all or [self._make()]
                    self._open(self._all[0])
                yield self._all[0]
            return
        process = self._take()
        try:
            with self._places:
                self._open(process)
                self._since[process] = time.monotonic()
                yield process
        finally:
            with self._changed:
                del self._since[process]
                self._free.append(process)
                self._changed.notify_all()

    def close(self) -> None:
        """End all processes."""
        for process in self._all:
            process.close()

    def _take(self) -> ToolProcess:
        with self._changed:
            while not self._free:
                slow = time.monotonic() - PATIENCE
                if len(self._all) < self._most and all(since <= slow for since in self._since.values()):
                    self._all.append(self._make())
                    self._free.append(self._all[-1])
                else:
                    self._changed.wait(PATIENCE)
            process = next((each for each in self._free if each.opened is not None), self._free[-1])
            self._free.remove(process)
            self._since[process] = math.inf
            return process


TOOL_RESULTS = "tool_results.jsonl"
# Errors that say nothing about the call: they are not recorded, and the same call runs again.
ACCIDENTS = ("tool-timeout", "tool-died")
MAX_PROCESSES = 8  # of conversations whose tools have a state; an older one starts again when it is needed


class RecordedResult(Record, frozen=True):
    """A row of tool_results.jsonl: the result of a call, as every model sees it."""

    key: str
    tool: str
    arguments: dict[str, object]
    text: str
    error_code: str | UnsetType = UNSET
    after: tuple[ToolCall, ...] | UnsetType = UNSET  # of a tool with a state: the calls before it
    schema: int = SCHEMA

    @property
    def is_accident(self) -> bool:
        """Whether the tool itself gave no result."""
        return self.error_code in ACCIDENTS


class RecordedResults(Closable):
    """Results by call, of a file; without a path they are kept for this run only.

    more: results recorded elsewhere. Those that the file lacks are added to it. Accidents, which earlier
    releases recorded, are passed over.
    """

    def __init__(self, path: Path | None = None, more: Iterable[RecordedResult] = ()) -> None:
        self._rows = None if path is None else Rows(path, RecordedResult)
        self._by_key: dict[str, RecordedResult] = {}
        self._lock, self._freed, self._running = Lock(), Condition(), set[str]()
        for row in self._rows or ():
            if not row.is_accident:
                self._by_key.setdefault(row.key, row)  # the first result of a call is the one that was served
        for row in more:
            if row.key not in self._by_key and not row.is_accident:
                self.add(row)

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Hold back other threads that make the same call: it runs once."""
        with self._freed:
            self._freed.wait_for(lambda: key not in self._running)
            self._running.add(key)
        try:
            yield
        finally:
            with self._freed:
                self._running.discard(key)
                self._freed.notify_all()

    def get(self, key: str) -> RecordedResult | None:
        """The recorded result of a call."""
        return self._by_key.get(key)

    def add(self, row: RecordedResult) -> None:
        """Record a result, also on disk."""
        with self._lock:
            self._by_key[row.key] = row
            if self._rows is not None:
                self._rows.append(row)
                self._rows.write()  # before a model sees it

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[RecordedResult]:
        return iter(self._by_key.values())

    def close(self) -> None:
        """Put all on the disk and let go of the file."""
        if self._rows is not None:
            self._rows.close()


def recorded_in(folder: Path) -> list[RecordedResult]:
    """The results that a study recorded. Raises UsageError if it recorded none, Damaged for a broken row."""
    path = folder / TOOL_RESULTS if folder.is_dir() else folder.resolve()
    if not path.exists():
        raise UsageError(f"{folder} has no {TOOL_RESULTS}: no tool ran there.")
    return list(Rows(path, RecordedResult))


@dataclass
class _Own:
    """A process of one conversation, and how many of the conversation's calls it has run."""

    process: ToolProcess
    n_run: int = 0


class Toolbox(Closable):
    """Runs the tools of one application. runs: whether a call without a recorded result is run.

    Threads may share it, one for each session.
    """

    def __init__(
        self, application: Application, results: RecordedResults | None = None, runs: bool = True
    ) -> None:
        self.results = RecordedResults() if results is None else results
        self.runs = runs
        limits = ConversationLimits() if application.limits is None else application.limits
        self._sources = sources_of(application.tools, application.mcp or (), limits)
        self._lock, self._busy, self._is_stopped = Lock(), set[ToolSession](), False
        self._live = WeakSet[ToolProcess]()
        most = limits.most_calls
        self._places = Semaphore(most)
        self._shared = {
            source: ToolProcessPool(
                partial(self._process, source), source.open, most, self._places, source.is_single
            )
            for source in dict.fromkeys(self._sources.values())
        }
        self._own: dict[ToolSession, dict[ToolSource, _Own]] = {}  # the longest unused first

    def session(self) -> ToolSession:
        """The tools of one conversation."""
        return ToolSession(self)

    def source(self, tool: Tool) -> ToolSource:
        """Where a tool that runs comes from."""
        return self._sources[tool.name]

    def close(self) -> None:
        """End all processes."""
        for session in list(self._own):
            self.end(session)
        for pool in self._shared.values():
            pool.close()
        self.results.close()

    def stop(self) -> None:
        """End all processes from another thread, for good: calls that run have no result."""
        with self._lock:
            self._is_stopped, live = True, list(self._live)
        for process in live:
            process.stop()

    def end(self, session: ToolSession) -> None:
        """End the processes of a conversation."""
        with self._lock:
            processes = self._own.pop(session, {})
        for own in processes.values():
            own.process.close()

    def run(self, session: ToolSession, tool: Tool, call: Call, before: Sequence[Call]) -> Answer:
        """Run a call that has no recorded result. Raises ToolFailure.

        before: the earlier calls of the conversation that the tool's state has seen.
        """
        source = self.source(tool)
        if not self.runs:
            raise ToolFailure(
                f"the call of {tool.name} is not among the recorded results, and a replay runs no tool"
            )
        if tool.is_stateful is not True:
            with self._shared[source].process() as process:
                return process.call(call)
        with self._places, self._mine(session) as mine:
            if source not in mine:
                mine[source] = _Own(self._process(source))
            own = mine[source]
            if own.process.opened is None:
                own.n_run = 0
            source.open(own.process)
            for earlier in before[own.n_run :]:
                own.process.call(earlier)
                if own.process.opened is None:
                    raise ToolFailure(
                        f"the process of {tool.name} ended while it repeated the calls before this one: its "
                        "state is lost"
                    )
            answer = own.process.call(call)
            own.n_run = len(before) + 1
            return answer

    def _process(self, source: ToolSource) -> ToolProcess:
        """A process of a source, which `stop` ends."""
        process = source.process()
        with self._lock:
            self._live.add(process)
            if self._is_stopped:
                process.stop()
        return process

    @contextmanager
    def _mine(self, session: ToolSession) -> Iterator[dict[ToolSource, _Own]]:
        """The processes of a conversation, which no other may end meanwhile."""
        with self._lock:
            mine = self._own[session] = self._own.pop(session, {})  # now the last
            self._busy.add(session)
            idle = [each for each in self._own if each not in self._busy]
            n_over = max(0, len(self._own) - MAX_PROCESSES)
            ended = [own for old in idle[:n_over] for own in self._own.pop(old).values()]
        try:
            for own in ended:
                own.process.close()
            yield mine
        finally:
            with self._lock:
                self._busy.discard(session)


class ToolSession:
    """The tools of one conversation, and the outcomes of its calls."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        # Of tools with a state: all calls, and those that a new process has to see first.
        self._calls: dict[ToolSource, tuple[list[ToolCall], list[Call]]] = {}
        self._outcomes: list[ToolOutcome] = []

    def call(self, tool: Tool, arguments: Mapping[str, object]) -> str:
        """The result of a call, for the model. Raises ToolFailure if the tool cannot run.

        An accident leaves the conversation's state as it was: the calls after it do not have it before them.
        """
        source, arguments = self._toolbox.source(tool), clean_call(ToolCall("", dict(arguments))).arguments
        is_stateful = tool.is_stateful is True
        earlier, seen = self._calls.setdefault(source, ([], [])) if is_stateful else ([], [])
        after = tuple(earlier)
        key = digest([tool.name, source.identity(tool), arguments, after])
        call = Call(source.name_of(tool), arguments)
        results = self._toolbox.results
        with results.turn(key):
            row, is_recorded = results.get(key), True
            if row is None:
                answer, is_recorded = self._toolbox.run(self, tool, call, seen), False
                row = RecordedResult(
                    key, tool.name, arguments, answer.text, answer.error_code or UNSET, after or UNSET
                )
                if row.is_accident:
                    self.note(tool, answer.error_code)
                    return shown(tool, row)
                results.add(row)
        seen.append(call)
        earlier.append(ToolCall(tool.name, arguments))
        self._outcomes.append(ToolOutcome(tool.name, key, is_recorded, row.error_code))
        return shown(tool, row)

    def note(self, tool: Tool, error_code: str) -> None:
        """Count a call without a result of its tool."""
        self._outcomes.append(ToolOutcome(tool.name, error_code=error_code))

    def taken(self) -> tuple[ToolOutcome, ...]:
        """The outcomes of the calls since the last time."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        return outcomes

    def close(self) -> None:
        """End the processes of this conversation."""
        self._toolbox.end(self)


def shown(tool: Tool, row: RecordedResult) -> str:
    """A result as the model reads it."""
    if not isinstance(row.error_code, UnsetType):
        return f"error: {row.text}"
    return row.text or tool.result
