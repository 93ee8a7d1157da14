"""One model that answers many who ask at once, each at its own time.

An engine answers a stream of requests. Here the stream is whatever comes: a thread holds the engine, takes
requests in the order in which they were put, and hands each answer to the one who waits for it.

Promises: an answer is the engine's own, the same alone and in company; who goes away frees its place; more
than `most` waiting are refused at once and not kept waiting; what fails for all is told to all.
Leaves to others: what is asked, and in which words it is answered (serve.py, wire.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol, TypeGuard

import msgspec

from heredity.clean import clean, clean_text
from heredity.engines import Engine, Streamer
from heredity.errors import Busy, EngineFailure, HeredityError
from heredity.records import Reply, Request

WIDTH = 8  # requests that an engine is given at once, where it does not say how many are good
MOST = 256  # that may wait
_PATIENCE = 3  # faults of an engine in a row, between which it answers nothing


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

    def drop(self) -> None:
        """Say that no one waits for it any more."""
        self.is_wanted = False


class Service:
    """An engine in a thread of its own. Close it, and what waits is told so."""

    def __init__(self, engine: Engine, most: int = MOST) -> None:
        self.engine, self._most = engine, most
        self._width: int = getattr(engine, "width", WIDTH)
        self._asked: SimpleQueue[Ticket | None] = SimpleQueue()
        self._under_way: dict[int, Ticket] = {}
        self._n_asked = self._n_open = 0
        self._lock = threading.Lock()
        self.failure: HeredityError | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_open(self) -> int:
        """Requests that wait or are being answered."""
        return self._n_open

    def ask(self, request: Request, hears: Hears | None = None) -> Ticket:
        """Put a request. Raises Busy where too many wait, EngineFailure where the engine has failed."""
        with self._lock:
            if self.failure is not None:
                raise self.failure
            if self._n_open >= self._most:
                raise Busy(f"{self._n_open:,} requests wait already. Ask again in a while.")
            self._n_open += 1
            self._n_asked += 1
            ticket = Ticket(msgspec.structs.replace(request, key=self._n_asked), hears)
            self._asked.put(ticket)
        return ticket

    def close(self) -> None:
        """Answer what is under way, refuse what waits, and free the engine."""
        self._is_closing = True
        self._asked.put(None)
        self._thread.join()
        self.engine.close()

    # --- the engine's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        n_faults = 0
        while True:
            try:
                for reply in self._replies():
                    self._settle(self._under_way.pop(reply.key), clean(reply))
                    n_faults = 0
                return self._end(EngineFailure("the service is closed"))
            except HeredityError as error:
                return self._end(error)
            except BaseException as error:  # whatever it was, no one may wait for ever
                n_faults += 1
                said = EngineFailure(f"{type(error).__name__}: {str(error)[:300]}")
                if n_faults > _PATIENCE or not isinstance(error, Exception):
                    return self._end(said)
                # It may lie in one of those that were under way. The engine begins anew with the next.
                self._fail(said)

    def _replies(self) -> Iterator[Reply]:
        if _is_heard(self.engine):
            return self.engine.stream(self._requests(), self)
        return self.engine.reply(self._requests())

    def _requests(self) -> Iterator[Request | None]:
        while True:
            if len(self._under_way) >= self._width:
                yield None
                continue
            try:
                # With nothing under way there is nothing to do but to wait.
                ticket = self._asked.get(block=not (self._under_way or self._is_closing))
            except Empty:
                if not self._under_way:  # closing, after a fault
                    return
                yield None
                continue
            if ticket is None:
                return
            if self._is_closing:
                self._settle(ticket, EngineFailure("the service is closed"))
            elif not ticket.is_wanted:
                self._settle(ticket, EngineFailure("no one waits for it"))
            else:
                self._under_way[ticket.request.key] = ticket
                yield ticket.request

    def _settle(self, ticket: Ticket, outcome: Reply | HeredityError) -> None:
        with self._lock:
            self._n_open -= 1
        with suppress(InvalidStateError):  # whoever waited has gone away
            if isinstance(outcome, HeredityError):
                ticket.reply.set_exception(outcome)
            else:
                ticket.reply.set_result(outcome)

    def _fail(self, error: HeredityError) -> None:
        """Tell those that are under way."""
        for ticket in self._under_way.values():
            self._settle(ticket, error)
        self._under_way.clear()

    def _end(self, error: HeredityError) -> None:
        """Tell all who wait, and those who come later."""
        with self._lock:
            self.failure = error
        self._fail(error)
        while True:
            try:
                waiting = self._asked.get_nowait()
            except Empty:
                return
            if waiting is not None:
                self._settle(waiting, error)

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
