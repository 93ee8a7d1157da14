"""One model that answers many who ask at once, each at its own time.

An engine answers a stream of requests. Here the stream is whatever comes: a thread holds the engine, takes
requests in the order in which they were put, and hands each answer to the one who waits for it.

Promises: an answer is the engine's own, the same alone and in company; who goes away frees its place; more
than `most` waiting are refused at once and not kept waiting; a fault is told to those that were under way,
and the next is tried again.
Leaves to others: what is asked, and in which words it is answered (serve.py, wire.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol, TypeGuard

import msgspec

from heredity.core.errors import Busy, EngineFailure, HeredityError
from heredity.core.records import Reply, Request
from heredity.core.sanitize import clean, clean_text
from heredity.engines.protocols import Engine, Streamer

WIDTH = 8  # requests that an engine is given at once, where it does not say how many are good
MOST = 256  # that may wait
_CLOSED = "the service is closed"
_log = logging.getLogger(__name__)


class Hears(Protocol):
    """Who hears an answer while it grows; called by the engine's thread."""

    def __call__(self, more: str) -> None: ...


@dataclass(eq=False)
class Ticket:
    """One request on its way. `reply` comes true with the answer, or with an error that is for all."""

    request: Request
    hears: Hears | None = None
    reply: Future[Reply] = field(default_factory=Future)
    is_wanted: bool = True
    is_settled: bool = False
    left: Callable[[Ticket], None] | None = None

    def drop(self) -> None:
        """Give up the request. One that still waits for the engine frees its place at once."""
        self.is_wanted = False
        if self.left is not None:
            self.left(self)


class EngineWorker:
    """An engine in a thread of its own. Close it, and what waits is told so."""

    def __init__(self, engine: Engine, most: int = MOST) -> None:
        self.engine, self.most = engine, most
        self._width: int = getattr(engine, "width", WIDTH)
        self._asked: SimpleQueue[Ticket | None] = SimpleQueue()
        self._under_way: dict[int, Ticket] = {}
        self._n_asked = self._n_open = 0
        self._lock = threading.Lock()
        self.failure: HeredityError | None = None  # the last fault, since when nothing was answered
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_open(self) -> int:
        """Requests that wait or are being answered."""
        return self._n_open

    def ask(self, request: Request, hears: Hears | None = None) -> Ticket:
        """Put a request. Raises Busy where too many wait, EngineFailure where the service is closed."""
        with self._lock:
            if self._is_closing:
                raise EngineFailure(_CLOSED, code="service-closed")
            if self._n_open >= self.most:
                raise Busy(
                    f"{self._n_open:,} requests wait already. Ask again in a while.", code="queue-full"
                )
            self._n_open += 1
            self._n_asked += 1
            ticket = Ticket(msgspec.structs.replace(request, key=self._n_asked), hears, left=self._leave)
            self._asked.put(ticket)
        return ticket

    def close(self) -> None:
        """Answer what is under way, refuse what waits, and free the engine."""
        with self._lock:
            self._is_closing = True
            self._asked.put(None)  # behind all that was asked
        self._thread.join()
        self.engine.close()

    # --- the engine's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        """Put to the engine what comes, in one stream; after a fault in another, begun with the next request.

        The fault may lie in one of those that were under way, or pass; and no one may wait for ever.
        """
        while not self._has_ended:
            if (first := self._next(is_patient=True)) is None:
                continue
            try:
                for reply in self._replies(first):
                    self._settle(self._under_way.pop(reply.key), clean(reply))
                    self.failure = None
                said: HeredityError = EngineFailure(
                    "the engine stopped before it had answered", code="engine-stopped"
                )
            except HeredityError as error:
                said = error
            except BaseException as error:
                _log.error("an engine failed", exc_info=error)
                said = EngineFailure(f"{type(error).__name__}: {str(error)[:300]}", code="engine-fault")
            if self._under_way:
                self.failure = said
            for ticket in self._under_way.values():
                self._settle(ticket, said)
            self._under_way.clear()

    def _replies(self, first: Ticket) -> Iterator[Reply]:
        if _is_heard(self.engine):
            return self.engine.stream(self._requests(first), self)
        return self.engine.reply(self._requests(first))

    def _requests(self, first: Ticket) -> Iterator[Request | None]:
        yield first.request
        while not self._has_ended:
            if len(self._under_way) >= self._width:
                yield None
            # With nothing under way there is nothing to do but to wait.
            elif (ticket := self._next(is_patient=not self._under_way)) is not None:
                yield ticket.request
            elif self._under_way:
                yield None

    def _next(self, is_patient: bool) -> Ticket | None:
        """Who is to be answered next, from here on under way; None where no one is, or not any more."""
        try:
            ticket = self._asked.get(block=is_patient)
        except Empty:
            return None
        if ticket is None:
            self._has_ended = True
        elif self._is_closing:
            self._settle(ticket, EngineFailure(_CLOSED, code="service-closed"))
        else:
            with self._lock:  # a caller who leaves now is either settled already or under way
                if not ticket.is_settled:
                    self._under_way[ticket.request.key] = ticket
                    return ticket
        return None

    def _leave(self, ticket: Ticket) -> None:
        """Free the place of a request that the engine has not begun. Called by the caller's thread."""
        with self._lock:
            is_begun = ticket.request.key in self._under_way
        if not is_begun:
            self._settle(ticket, EngineFailure("the caller left", code="caller-left"))

    def _settle(self, ticket: Ticket, outcome: Reply | HeredityError) -> None:
        with self._lock:
            if ticket.is_settled:
                return
            ticket.is_settled = True
            self._n_open -= 1
        with suppress(InvalidStateError):  # whoever waited has gone away
            if isinstance(outcome, HeredityError):
                ticket.reply.set_exception(outcome)
            else:
                ticket.reply.set_result(outcome)

    # --- as a Listener --------------------------------------------------------------------------------

    def is_heard(self, key: int) -> bool:
        """Whether someone hears this answer while it grows."""
        return self._under_way[key].hears is not None

    def hear(self, key: int, more: str) -> None:
        """Hand on what an answer has grown by."""
        if more and (hears := self._under_way[key].hears) is not None:
            hears(clean_text(more))

    def is_wanted(self, key: int) -> bool:
        """Whether someone still waits for it."""
        return self._under_way[key].is_wanted


def _is_heard(engine: Engine) -> TypeGuard[Streamer]:
    return hasattr(engine, "stream")
