"""A worker thread that shares one engine among many callers.

An engine answers a stream of requests. The worker owns the engine, takes requests in the order of their
arrival, and returns each answer to its caller.

Promises: an answer is the engine's own and does not depend on the batch. A cancelled request frees its
place. More than `most` open requests are refused at once. An engine failure fails all requests in flight,
and the next request is tried again. A stream ends when nobody has asked for a while; the memory of its batch
goes back to the system.
Leaves to others: the requests and the format of the answers (app.py, schema.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from heredity.core import host
from heredity.core.errors import Busy, EngineFailure, HeredityError
from heredity.core.records import Message, Reply, Request, Tool
from heredity.core.sanitize import clean, clean_text
from heredity.engines import (
    AddressedRequest,
    Capabilities,
    Engine,
    Scorer,
    TokenScores,
    capabilities,
)

WIDTH = 8  # requests in flight for an engine that does not report its own width
MAX_OPEN = 256  # open requests
IDLE_SECONDS = 10.0  # without a request, before a stream ends
_CLOSED = "the service is closed"
_log = logging.getLogger(__name__)
T = TypeVar("T")
# Of the request that this task, or thread of guards, answers; "" if all callers are one (app.py).
CALLER: ContextVar[str] = ContextVar("caller", default="")


class Hears(Protocol):
    """A callback that receives an answer while it is generated; the engine's thread calls it."""

    def __call__(self, more: str) -> None: ...


@dataclass(eq=False)
class Ticket:
    """One request and its pending `reply`: a future of the answer, or of an error that fails all
    requests.

    settled: called once, with the outcome; the request is then no longer in flight.
    """

    request: Request
    hears: Hears | None = None
    settled: Callable[[Reply | HeredityError], None] | None = None
    reply: Future[Reply] = field(default_factory=Future)
    is_wanted: bool = True
    is_settled: bool = False
    left: Callable[[Ticket], None] | None = None

    def drop(self) -> None:
        """Cancel the request. One that the engine has not started frees its place at once."""
        self.is_wanted = False
        if self.left is not None:
            self.left(self)


@dataclass(eq=False)
class _Work(Generic[T]):
    """A function of the engine that runs in its thread, between two steps of the answers."""

    function: Callable[[Engine], T]
    result: Future[T] = field(default_factory=Future)

    def run(self, engine: Engine) -> None:
        """Run it, unless its caller has left."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.function(engine))
        except HeredityError as error:
            self.result.set_exception(error)
        except Exception as error:
            _log.error("an engine failed", exc_info=error)
            failure = EngineFailure(f"{type(error).__name__}: {str(error)[:300]}")
            self.result.set_exception(failure)


class Service(Protocol):
    """The part of a server that answers for one model: a worker, or a share of one (model_registry.py)."""

    @property
    def engine(self) -> Engine:
        """The engine of the model."""

    @property
    def most(self) -> int:
        """The most requests that may be open."""

    @property
    def n_open(self) -> int:
        """The number of requests of this model that wait or are in flight."""

    @property
    def n_prompt_tokens(self) -> int:
        """The tokens of all prompts that were answered since the start."""

    @property
    def n_tokens(self) -> int:
        """The tokens of all answers since the start."""

    @property
    def failure(self) -> HeredityError | None:
        """The last failure, until an answer succeeds."""

    @property
    def shows_tools(self) -> bool:
        """Whether the model's chat template shows tools."""

    def ask(self, request: Request, hears: Hears | None = None) -> Ticket:
        """Queue a request. Raises Busy if too many are open, EngineFailure if the service is closed."""

    def compute(self, function: Callable[[Engine], T]) -> Future[T]:
        """Queue a function of the model's engine, which runs between two steps."""

    def hold(self) -> None:
        """Keep the model until `release`, for an answer that takes several steps."""

    def release(self) -> None:
        """End a `hold`."""

    def close(self) -> None:
        """Free the model."""


def shows_tools(engine: Engine) -> bool:
    """Return True if the model's chat template shows tools; some ignore them in silence."""
    without = Request(0, (Message("user", "hello"),))
    try:
        shown = engine.render(msgspec.structs.replace(without, tools=(Tool("look_up", "Looks up."),)))
        return shown != engine.render(without)
    except HeredityError:
        return False


class EngineWorker:
    """An engine in its own thread. `close` refuses the requests that still wait."""

    def __init__(self, engine: Engine, most: int = MAX_OPEN, idle_seconds: float = IDLE_SECONDS) -> None:
        self.engine, self.most = engine, most
        can = capabilities(engine)
        self._streamer = can.streamer
        self._width = WIDTH if can.streamer is None else can.streamer.width
        # A stream of a service has no batch in memory, and knows which of its threads still wait.
        self._idle_seconds = idle_seconds if can.provenance.first_answer is None else None
        self._asked: SimpleQueue[Ticket | _Work[object] | None] = SimpleQueue()
        self._under_way: dict[int, Ticket] = {}
        self._n_asked = self._n_open = 0
        self.n_prompt_tokens = self.n_tokens = 0  # of all answers since the start
        self._lock = threading.Lock()
        self.failure: HeredityError | None = None  # the last failure, until an answer succeeds
        self._is_closing = self._has_ended = False
        host.end_helpers()  # of this thread, which has loaded the engine
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_open(self) -> int:
        """The number of requests that wait or are in flight."""
        return self._n_open

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the model's chat template shows tools."""
        return shows_tools(self.engine)

    def ask(
        self,
        request: Request,
        hears: Hears | None = None,
        settled: Callable[[Reply | HeredityError], None] | None = None,
    ) -> Ticket:
        """Queue a request. Raises Busy if too many are open, EngineFailure if the worker is closed."""
        with self._lock:
            self._open()
            self._n_asked += 1
            if caller := CALLER.get():
                request = AddressedRequest(**msgspec.structs.asdict(request) | {"caller": caller})
            keyed = msgspec.structs.replace(request, key=self._n_asked)
            ticket = Ticket(keyed, hears, settled, left=self._leave)
            self._asked.put(ticket)
        return ticket

    def compute(self, function: Callable[[Engine], T]) -> Future[T]:
        """Queue a function of the engine, which runs between two steps. It counts as an open request.

        Raises Busy if too many are open, EngineFailure if the worker is closed.
        """
        with self._lock:
            self._open()
            work = _Work(function)
            work.result.add_done_callback(self._end_work)
            self._asked.put(work)  # type: ignore[arg-type]  # its result stays with the caller
        return work.result

    def post(self, function: Callable[[Engine], None]) -> None:
        """Queue a function that has to run and that nobody waits for; a closed worker drops it."""
        with self._lock:
            if not self._is_closing:
                self._asked.put(_Work(function))

    def hold(self) -> None:
        """Do nothing: the model stays as long as the worker."""

    def release(self) -> None:
        """Do nothing."""

    def _open(self) -> None:
        """Count one more open request. The caller holds the lock."""
        if self._is_closing:
            raise EngineFailure(_CLOSED)
        if self._n_open >= self.most:
            raise Busy(f"{self._n_open:,} requests are already open. Try again later.")
        self._n_open += 1

    def _end_work(self, _: Future[T]) -> None:
        with self._lock:
            self._n_open -= 1

    def close(self) -> None:
        """Finish the requests in flight, refuse those that wait, and free the engine."""
        with self._lock:
            self._is_closing = True
            self._asked.put(None)  # after all queued requests
        self._thread.join()
        self.engine.close()

    # --- the engine's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        """Send requests to the engine in one stream; after a pause or a failure, start a new stream with the
        next request.

        A failure may come from one request in flight, or may be temporary. No caller may wait forever.
        """
        while not self._has_ended:
            if (first := self._next(None)) is None:
                continue
            try:
                requests = self._requests(first)
                stream = self._streamer
                for reply in self.engine.reply(requests) if stream is None else stream.stream(requests, self):
                    self._settle(self._under_way.pop(reply.key), clean(reply))
                    self.failure = None
                failure: HeredityError = EngineFailure("the engine stopped before it answered")
            except HeredityError as error:
                failure = error
            except BaseException as error:
                _log.error("an engine failed", exc_info=error)
                failure = EngineFailure(f"{type(error).__name__}: {str(error)[:300]}")
            if self._under_way:
                self.failure = failure
            for ticket in self._under_way.values():
                self._settle(ticket, failure)
            self._under_way.clear()
            if not self._has_ended:
                host.trim_memory()

    def _requests(self, first: Ticket) -> Iterator[Request | None]:
        yield first.request
        while not self._has_ended:
            if len(self._under_way) >= self._width:
                yield None
                continue
            try:
                ticket = self._next(0 if self._under_way else self._idle_seconds)
            except Empty:
                if not self._under_way:
                    return
                ticket = None
            if ticket is not None:
                yield ticket.request
            elif self._under_way:
                yield None

    def _next(self, seconds: float | None) -> Ticket | None:
        """Return the next ticket, now in flight; None if it was refused or cancelled, or was no request.

        seconds: to wait for it; None waits forever. Raises Empty after that time.
        """
        if seconds != 0 and self._asked.empty():
            host.end_helpers()
        ticket = self._asked.get(block=seconds != 0, timeout=seconds)
        if ticket is None:
            self._has_ended = True
        elif isinstance(ticket, _Work):
            ticket.run(self.engine)
        elif self._is_closing:
            self._settle(ticket, EngineFailure(_CLOSED))
        else:
            with self._lock:  # a caller who cancels now is either settled or in flight
                if not ticket.is_settled:
                    self._under_way[ticket.request.key] = ticket
                    return ticket
        return None

    def _leave(self, ticket: Ticket) -> None:
        """Free the place of a request that the engine has not started. The caller's thread calls it."""
        with self._lock:
            is_begun = ticket.request.key in self._under_way
        if not is_begun:
            self._settle(ticket, EngineFailure("the caller left"))

    def _settle(self, ticket: Ticket, outcome: Reply | HeredityError) -> None:
        with self._lock:
            if ticket.is_settled:
                return
            ticket.is_settled = True
            self._n_open -= 1
            if isinstance(outcome, Reply):
                self.n_prompt_tokens += outcome.n_prompt_tokens
                self.n_tokens += outcome.n_answer_tokens
        if ticket.settled is not None:
            ticket.settled(outcome)
        with suppress(InvalidStateError):  # the caller has disconnected
            if isinstance(outcome, HeredityError):
                ticket.reply.set_exception(outcome)
            else:
                ticket.reply.set_result(outcome)

    # --- as a Listener --------------------------------------------------------------------------------

    def is_heard(self, key: int) -> bool:
        """Return True if the caller wants this answer in parts."""
        return self._under_way[key].hears is not None

    def hear(self, key: int, more: str) -> None:
        """Pass the next part of an answer to its caller."""
        if more and (hears := self._under_way[key].hears) is not None:
            hears(clean_text(more))

    def is_wanted(self, key: int) -> bool:
        """Return True if the caller still waits for the answer."""
        return self._under_way[key].is_wanted


MAX_OPEN_CALLS = 4096  # open requests: threads wait for their answers, so there are few


def shared(engine: Engine) -> SharedEngine:
    """The engine in a worker, with the capabilities to complete and to score that it has."""
    return SharedEngine(EngineWorker(engine, MAX_OPEN_CALLS))


class SharedEngine:
    """An Engine that waits for its worker."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self.name, self.numerics = worker.engine.name, worker.engine.numerics

    def render(self, request: Request) -> str:
        """The prompt of a request."""
        return self._worker.compute(lambda engine: engine.render(request)).result()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer requests, all of which are known (protocols.Engine)."""
        asked = [(each.key, self._worker.ask(each)) for each in requests if each is not None]
        for key, ticket in asked:
            yield replace(ticket.reply.result(), key=key)

    @property
    def capabilities(self) -> Capabilities:
        """Of the engine: whether it continues plain texts, and its scores."""
        can = capabilities(self._worker.engine)
        return Capabilities(is_base=can.is_base, scorer=None if can.scorer is None else self)

    @property
    def boundary(self) -> str:
        """As of protocols.Scorer."""
        return _scorer(self._worker.engine).boundary

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """The scores of each continuation (protocols.Scorer)."""
        return self._worker.compute(lambda engine: _scorer(engine).score(request, continuations)).result()

    def close(self) -> None:
        """End the worker and free the engine."""
        self._worker.close()


def _scorer(engine: Engine) -> Scorer:
    if (scorer := capabilities(engine).scorer) is None:
        raise EngineFailure("this engine scores no texts")
    return scorer
