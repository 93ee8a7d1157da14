"""Many slow answers at once, each in a thread of its own: for targets that are waited for, not computed.

Promises: requests are pulled by the thread that iterates over the replies; an answer that does not come in
time is an error row and its late coming is forgotten; nothing keeps the process from ending.
Leaves to others: how one request is answered (call.py, url.py).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from heredity.core.errors import EngineFailure, HeredityError
from heredity.core.records import Reply, Request
from heredity.engines import RequestStream

Answer = Callable[[Request], Reply]
ASK_AGAIN = 0.02  # seconds: whoever sends requests may have another by then, as a server has
_LOST_PER_SEAT = 4  # answers that never came, a seat: past this the target hangs and the run ends


class _Came(NamedTuple):
    ticket: int
    reply: Reply | BaseException


class _Waiting(NamedTuple):
    request: Request
    deadline: float


class WorkerPool:
    """Answers a stream of requests, `width` at a time. `answer` raises EngineFailure to end the run."""

    def __init__(self, answer: Answer, width: int, timeout_seconds: float, render: Callable[[Request], str]):
        self._answer, self._width, self._timeout, self._render = answer, width, timeout_seconds, render
        self._came: SimpleQueue[_Came] = SimpleQueue()
        self._under_way: dict[int, _Waiting] = {}
        self._n_lost = 0

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """The replies, as they come."""
        source, ticket = RequestStream(requests), 0
        while True:
            while len(self._under_way) < self._width and (request := source.next()) is not None:
                ticket += 1
                self._start(ticket, request)
            if not self._under_way:
                return source.refuse_idle()
            has_room = source.is_open and len(self._under_way) < self._width
            yield from self._wait(ASK_AGAIN if has_room else math.inf)

    def _start(self, ticket: int, request: Request) -> None:
        self._under_way[ticket] = _Waiting(request, time.monotonic() + self._timeout)
        # A daemon: a target that never answers must not keep the process from ending.
        threading.Thread(target=self._work, args=(ticket, request), daemon=True).start()

    def _work(self, ticket: int, request: Request) -> None:
        try:
            self._came.put(_Came(ticket, self._answer(request)))
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            self._came.put(_Came(ticket, error))

    def _wait(self, seconds: float) -> Iterator[Reply]:
        """What comes next, or what is too late by then; at most so long."""
        left = min(waiting.deadline for waiting in self._under_way.values()) - time.monotonic()
        came = None
        with suppress(Empty):
            came = self._came.get(timeout=min(max(left, 0.0), seconds))
        if came is None:
            yield from self._give_up()
            return
        waiting = self._under_way.pop(came.ticket, None)
        if waiting is None:  # given up long ago
            self._n_lost -= 1
        elif isinstance(came.reply, EngineFailure):
            raise came.reply
        elif isinstance(came.reply, BaseException):
            yield error_row(waiting.request, self._render, describe_error(came.reply))
        else:
            yield came.reply

    def _give_up(self) -> Iterator[Reply]:
        now = time.monotonic()
        late = [ticket for ticket, waiting in self._under_way.items() if waiting.deadline <= now]
        for ticket in late:
            waiting = self._under_way.pop(ticket)
            self._n_lost += 1
            yield error_row(waiting.request, self._render, f"no answer within {self._timeout:g} s")
        if self._n_lost > _LOST_PER_SEAT * self._width:
            raise EngineFailure(
                f"{self._n_lost} requests never came back within {self._timeout:g} s each: it hangs",
                code="request-hangs",
            )


def error_row(
    request: Request, render: Callable[[Request], str], error: str, code: str = EngineFailure.code
) -> Reply:
    """The error row of one request."""
    return Reply(request.key, render(request), "", stop="error", error=error[:500], error_code=code)


def describe_error(error: BaseException) -> str:
    """An exception in one line; heredity's own speak for themselves."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, HeredityError) else f"{type(error).__name__}: {text}".rstrip(": ")


def conversation_text(request: Request) -> str:
    """A request as one text: what heredity says it sent, where the target's own template is not known."""
    said = "".join(f"<|{message.role}|>\n{message.content}\n" for message in request.messages)
    return f"{said}<|assistant|>\n{request.prefill}"


def conversation_id(nonce: str, request: Request) -> str:
    """A name for the conversation that a request is part of, the same in all its turns.

    With a `nonce` of the engine's own it is never used twice, in this run or another: a target that remembers
    must not mix two trials, nor take up one that was broken off.
    """
    first = next((m.content for m in request.messages[request.n_shared :] if m.role == "user"), "")
    named = f"{nonce}\0{request.key}\0{request.seed}\0{first}".encode(errors="surrogatepass")
    return hashlib.blake2b(named, digest_size=12).hexdigest()
